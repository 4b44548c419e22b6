"""Mistakes of users: one line, exit code 2, no traceback, nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from toy_runs import MODEL, SMALL, TOY, Outcome, dlmkit, text_corpus, text_data, train, trained

# name: (overrides, what the line must contain)
CONFIGURATION = {
    "unknown part": (["schedule=cosin"], ["schedule=cosin is unknown", "linear", "polynomial", "(nearest: cosine)"]),
    "unknown part in a list": (["callbacks=[samples,emma]"], ["callbacks=emma", "annealing", "(nearest: ema)"]),
    "part that is no text": (["optimizer=3"], ["optimizer=3 is unknown", "adamw"]),
    "unknown family": (["family=adaptd"], ["family=adaptd", "uniform", "(nearest: adapted)"]),
    "unknown experiment": (["experiment=quikstart"], ["experiment=quikstart", "(nearest: quickstart)"]),
    "unknown group": (["scedule=cosine"], ["scedule is no key", "(nearest: schedule)"]),
    "unknown key": (["batch.sise=3"], ["batch has accumulate, micro_size, num_workers, size", "(nearest: batch.size)"]),
    "unknown key of the chosen part": (["objective.waiting=bound"], ["max_weight", "(nearest: objective.weighting)"]),
    "key without its section": (["lr=0.1"], ["lr is no key", "(nearest: optimizer.lr)"]),
    "key below a value": (["batch.size.all=3"], ["batch.size is one value"]),
    "added key that nothing reads": (["+batch.sise=3"], ["(nearest: batch.size)"]),
    "added top-level key": (["+sed=3"], ["(nearest: seed)"]),
    "added keyword that a part lacks": (
        ["+schedule.power=3"],
        ["schedule.power is no setting of schedule=linear", "set schedule=polynomial"],
    ),
    "added keyword that the optimizer lacks": (
        ["+optimizer.amsgrd=true"],
        ["optimizer.amsgrd is no setting", "amsgrad"],
    ),
    "added keyword that the trainer lacks": (
        ["+trainer.acelerator=cpu"],
        ["(nearest: accelerator)"],
    ),
    "needed section taken away": (["~optimizer"], ["optimizer was taken away"]),
    "absent key taken away": (["~optimizer.lrr"], ["optimizer.lrr"]),
    "text for a whole number": (["lr_schedule.warmup_steps=abc"], ["lr_schedule.warmup_steps 'abc'", "default 20"]),
    "text for a number": (["optimizer.lr=fast"], ["optimizer.lr 'fast' is not a number", "0.002"]),
    "fraction for a whole number": (["length=8.5"], ["length 8.5 is not a whole number"]),
    "float that is whole": (["batch.size=1e1"], ["batch.size 10.0 is not a whole number: write 10"]),
    "text for a truth value": (["causal=maybe"], ["causal 'maybe' is not true or false"]),
    "number for a list": (["optimizer.betas=0.9"], ["optimizer.betas 0.9 is not a list", "[0.9, 0.95]"]),
    "value for a section": (["trainer=cpu"], ["trainer 'cpu' is not a section", "trainer.accelerator=VALUE"]),
    "unbalanced bracket": (["optimizer.betas=[1,"], ["'optimizer.betas=[1,' is not key=value"]),
    "equals sign in a value": (["init_from=runs/a=b"], ["such as init_from='\"runs/a=b\"'"]),
    "no equals sign": (["optimizer.lr"], ["'optimizer.lr' is not key=value"]),
    "sweep without -m": (["schedule=linear,cosine"], ["schedule=linear,cosine has several values: add -m"]),
    "unknown flag": (["--multirn"], ["--multirn is no flag", "--multirun"]),
    "if_exists typo": (["if_exists=overwrit"], ["'overwrit'", "refuse, overwrite, resume"]),
    "no budget": (["budget.tokens=0"], ["budget.tokens 0 is outside [1, "]),
    "negative budget": (["budget.tokens=-5"], ["budget.tokens -5"]),
    "batch does not divide": (["batch.size=6", "batch.accumulate=4"], ["batch.size 6", "choose a multiple of 4"]),
    "no accumulation": (["batch.accumulate=0"], ["batch.accumulate 0 is outside [1, "]),
    "more workers than can run": (
        ["batch.num_workers=999999999999"],
        ["batch.num_workers 999999999999 is outside [0, ", "8 for each core"],
    ),
    "no validation": (["validation.every_steps=0"], ["validation.every_steps 0 is outside [1, "]),
    "no validation times": (["validation.num_times=0"], ["validation.num_times 0 is outside [1, "]),
    "warm-up longer than the run": (["lr_schedule.warmup_steps=9"], ["warmup_steps 9", "2 steps", "budget.tokens"]),
    "negative learning rate": (["optimizer.lr=-1"], ["optimizer.lr -1 is outside [0, 100]"]),
    "unknown precision": (["trainer.precision=99"], ["trainer.precision 99 is not text or one of 16, 32, 64"]),
    "accelerator that is not here": (["trainer.accelerator=tpu"], ["trainer:", "torch_xla"]),
    "sequence longer than the model": (["length=32"], ["length 32", "15 positions"]),
    "mask outside the vocabulary": (["backbone.mask_id=99"], ["mask_id 99 is outside the vocabulary of 18"]),
    "process's mask outside": (["process.mask_id=99"], ["process.mask_id 99 is outside the vocabulary"]),
    "two masks": (["process.mask_id=3"], ["process.mask_id 3 is not backbone.mask_id 16"]),
    "no mask": (["process.mask_id=null"], ["process=absorbing needs a mask token"]),
    "sampler against objective": (["sampler=autoregressive"], ["sampler=autoregressive", "set sampler=ancestral"]),
    "process against objective": (["process=uniform"], ["objective=masked with process=uniform"]),
    "no noise to diffuse": (["process=none"], ["objective=masked with process=none"]),
    "causal diffusion": (["causal=true"], ["causal=true does not fit objective=masked"]),
    "two-way autoregression": (["family=ar", "causal=false"], ["causal=false does not fit objective=autoregressive"]),
    "blocks that do not fill": (["family=block", "objective.block_size=3"], ["no multiple of objective.block_size 3"]),
    "blocks for no blocks": (["sampler=blockwise"], ["sampler=blockwise", "blocks of 16", "set sampler=ancestral"]),
    "no blocks for blocks": (["objective=block"], ["sampler=ancestral", "sampler=blockwise sampler.block_size=16"]),
    "no such weighting": (["objective.weighting=bond"], ["weighting 'bond' is unknown", "constant"]),
    "unknown model family": (["backbone.config.model_type=gtp2"], ["'gtp2'", "gpt2", "llama"]),
    "model that is not there": (["backbone.name=no/model", "backbone.config=null"], ["backbone.name 'no/model'"]),
    "name and configuration": (["backbone.name=no/model"], ["give exactly one"]),
    "start that is not there": (["init_from=nowhere"], ["init_from names nowhere, which holds no finished run"]),
    "sibling that was not trained": (["init_from={family: ar}"], ["holds no finished run", "the sweep does"]),
}


@pytest.mark.parametrize("case", CONFIGURATION)
def test_configuration(case: str) -> None:
    overrides, expected = CONFIGURATION[case]
    assert_refused(train("runs/x", *overrides), *expected)


def assert_refused(outcome: Outcome, *expected: str) -> None:
    assert outcome.code == 2, outcome.err
    assert outcome.out == ""
    for text in expected:
        assert text in outcome.line
    assert "Traceback" not in outcome.err
    left = [path for path in Path("runs").rglob("*") if path.is_file() or path.name in ("x", "sweep")]
    assert left == []


DATA = {
    "no file named": (["data=text"], ["data.source.files is not set: give data.source.files=VALUE"]),
    "missing file": (["data=text", "data.source.files=tale.txt"], ["no file matches 'tale.txt'", "text.txt"]),
    "empty file": (["data=text", "data.source.files=empty.txt"], ["'empty.txt' is empty"]),
    "one document": (
        ["data=text", "data.source.files=short.txt"],
        ["all text is one document", "set data.source.separator"],
    ),
    "no such tokenizer": (["tokenizer=huggingface", "tokenizer.name=no/words"], ["tokenizer.name = 'no/words'"]),
    "vocabulary too small": (["tokenizer=bpe", "tokenizer.vocab_size=10"], ["10"]),
    "validation share": (["data.val_fraction=2.0"], ["val_fraction"]),
}


RENAMED = {
    "data.num_workers=2": "data.num_workers is now batch.num_workers",
    "+data.num_workers=2": "data.num_workers is now batch.num_workers",
    "data.keep_documents_apart=true": "data.keep_documents_apart is now data.document_masking",
    "data.parts={}": "data.parts is now data.sources",
    "+data.parts.prose.weight=2": "data.parts.prose.weight is now data.sources.prose.weight",
    "data.num_train_blocks=9": "data.num_train_blocks is now data.num_train_sequences",
    "data.num_val_blocks=9": "data.num_val_blocks is now data.num_val_sequences",
    "data.seed=1": "data.seed is now seed",
    "t_sampler.centred=true": "t_sampler.centred is now t_sampler.by_variance",
    "t_sampler.floor=0.1": "t_sampler.floor is now t_sampler.uniform_share",
    "process.min_share=0.01": "process.min_share is now corruption.min_share",
    "process=absorbing_complementary": "process=absorbing_complementary is now corruption=complementary",
    "process=absorbing_fixed_count": "process=absorbing_fixed_count is now corruption=fixed_count",
}


@pytest.mark.parametrize("override", RENAMED)
def test_a_name_of_an_earlier_version(override: str) -> None:
    assert_refused(train("runs/x", override), RENAMED[override])


def test_a_name_of_an_earlier_version_in_an_experiment() -> None:
    Path("mine/experiment").mkdir(parents=True)
    Path("mine/experiment/old.yaml").write_text("# @package _global_\ndata:\n  num_train_blocks: 9\n")
    outcome = train("runs/x", "experiment=old", "--config-dir=mine")
    assert_refused(outcome, "data.num_train_blocks is now data.num_train_sequences")


@pytest.mark.parametrize("case", DATA)
def test_data(case: str) -> None:
    overrides, expected = DATA[case]
    corpus = text_corpus(Path("text.txt"))
    Path("empty.txt").touch()
    Path("short.txt").write_text("short")
    given = text_data(corpus) if overrides[0] != "data=text" else ["tokenizer=bytes"]
    outcome = dlmkit("train", *MODEL, *SMALL, "hydra.run.dir=runs/x", "budget.tokens=64", *given, *overrides)
    assert_refused(outcome, *expected)


def test_tokenizer_without_the_needed_ids() -> None:
    """A tokenizer of words alone: nothing ends a document."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"the": 0, "word": 1, "?": 2}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained("words")
    data = [*text_data(text_corpus(Path("text.txt"))), "tokenizer=huggingface", "tokenizer.name=words"]
    outcome = dlmkit("train", *MODEL, *SMALL, "hydra.run.dir=runs/x", "budget.tokens=64", *data)
    assert_refused(outcome, "eos")


def test_run_folder_in_use_is_left_as_it_is() -> None:
    run = trained("runs/x")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    outcome = train("runs/x")
    assert outcome.code == 2
    assert "already holds a run (finished): set if_exists=overwrite" in outcome.line
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_bad_setting_does_not_cost_the_run_that_it_would_replace() -> None:
    run = trained("runs/x")
    before = (run / "summary.json").read_text()
    for override in ("optimizer.lr=-1", "trainer.precision=99", "length=32"):
        assert train("runs/x", "if_exists=overwrite", override).code == 2
    assert (run / "summary.json").read_text() == before


def test_start_of_another_shape() -> None:
    parent = trained("parent")
    outcome = train("runs/x", f"init_from={parent}", "backbone.config.n_embd=32")
    assert_refused(outcome, "of shape (18, 16), this backbone needs (18, 32)")
    outcome = train("runs/x", f"init_from={parent}", "backbone.config.n_layer=2")
    assert_refused(outcome, "lacks weight", "another kind of backbone")


def test_start_that_has_not_finished() -> None:
    parent = trained("parent")
    summary = (parent / "summary.json").read_text()
    (parent / "summary.json").write_text(summary.replace('"finished"', '"interrupted"'))
    assert_refused(train("runs/x", f"init_from={parent}"), "parent, which has not finished")
    (parent / "summary.json").write_text("{")
    assert_refused(train("runs/x", f"init_from={parent}"), "is not valid JSON")


def test_sweep() -> None:
    sweep = ["train", *TOY, "budget.tokens=64", "hydra.sweep.dir=runs/sweep", "hydra.sweep.subdir=${hydra:job.num}"]
    assert_refused(dlmkit(*sweep, "schedule=linear,cosin", "-m"), "(nearest: cosine)")
    assert_refused(dlmkit(*sweep, "batch.sise=1,2", "-m"), "(nearest: batch.size)")
    assert_refused(
        dlmkit(*sweep, "optimizer.lr=fast,slow", "-m"), "2 of 2 runs failed: optimizer.lr=fast: optimizer.lr 'fast'"
    )
    circle = ["init_from={family: ${other.${family}}}", "+other={ar: uniform, uniform: ar}"]
    assert dlmkit(*sweep, "family=ar,uniform", *circle, "-m").code == 2


def test_long_overrides_make_no_long_folder_names() -> None:
    outcome = dlmkit("train", *TOY, "budget.tokens=64", *[f"+backbone.config.n_inner={n}" for n in range(20, 90)][:1])
    assert outcome.code == 0, outcome.err
    (folder,) = Path("runs/single").iterdir()
    assert 100 < len(folder.name) <= 180
    assert (folder / "summary.json").is_file()


SAMPLE = {
    "no such run": (["nowhere"], ["nowhere is neither a run folder"]),
    "no run": (["."], [". is neither a run folder"]),
    "no gap": (["text", "--infill", "no gap"], ["the text has no gap", "[MASK:4]"]),
    "gap of nothing": (["text", "--infill", "a [MASK:0] b"], ["only gaps of no token"]),
    "no samples": (["text", "--num-samples", "0"], ["num_samples 0 is outside [1, "]),
    "no steps": (["text", "--steps", "0"], ["steps 0 is outside [1, "]),
    "unknown sampler": (["text", "--sampler", "ancestrl"], ["ancestrl", "autoregressive", "(nearest: ancestral)"]),
    "sampler that disagrees": (["text", "--sampler", "autoregressive"], ["set sampler=ancestral"]),
    "no length": (["text", "--length", "0"], ["length 0 is outside [1, "]),
    "prompt longer than the text": (["text", "--length", "4", "--prompt", "In the"], ["length 4", "7"]),
    "text longer than the model": (["text", "--length", "99"], ["99", "15"]),
    "infill longer than the model": (["text", "--infill", "a [MASK:99] b"], ["15"]),
    "negative temperature": (["text", "--temperature", "-1"], ["temperature -1"]),
    "no tokens kept": (["text", "--top-k", "0"], ["top_k 0"]),
    "no probability kept": (["text", "--top-p", "0"], ["top_p 0"]),
    "no text": (["markov"], ["was trained on data without text"]),
    "two requests": (["text", "--prompt", "a", "--infill", "[MASK:2]"], ["not allowed with"]),
    "not a number": (["text", "--steps", "many"], ["many"]),
    "no checkpoint in it": (["unfinished"], ["unfinished has no checkpoints/last.ckpt"]),
    "checkpoint without its run": (["alone.ckpt"], ["alone.ckpt is neither a run folder"]),
    "not a checkpoint": (["text/checkpoints/broken.ckpt"], ["broken.ckpt"]),
}


@pytest.fixture(scope="module")
def trained_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    here = Path.cwd()
    os.chdir(folder)
    data = text_data(text_corpus(Path("text.txt")))
    assert dlmkit("train", *MODEL, *SMALL, *data, "budget.tokens=32", "hydra.run.dir=text").code == 0
    trained("markov", steps=1)
    Path("unfinished").mkdir()
    Path("unfinished/config.yaml").touch()
    Path("text/checkpoints/broken.ckpt").write_text("broken")
    Path("alone.ckpt").write_bytes(Path("text/checkpoints/last.ckpt").read_bytes())
    os.chdir(here)
    return folder


@pytest.mark.parametrize("case", SAMPLE)
def test_sample(case: str, trained_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained_runs)
    arguments, expected = SAMPLE[case]
    assert_refused(dlmkit("sample", *arguments), *expected)


def test_sample_works_at_all(trained_runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained_runs)
    for request in ([], ["--prompt", "In"], ["--infill", "a[MASK:3]b"], ["--length", "4", "--json"]):
        outcome = dlmkit("sample", "text", "--steps", "2", *request)
        assert outcome.code == 0, outcome.err
        assert outcome.out
        assert outcome.err == ""


def test_report() -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/summary.json").write_text("{")
    assert_refused(dlmkit("report", "nowhere"), "nowhere is no folder")
    assert_refused(dlmkit("report", "empty"), "empty holds no finished run")
    assert_refused(dlmkit("report", "broken"), "broken")
    assert_refused(dlmkit("report"), "RUN_DIR")


def test_commands() -> None:
    assert_refused(dlmkit("trian"), "'trian'", "train", "dlmkit --help")
    assert_refused(dlmkit(), "COMMAND")
    assert_refused(dlmkit("doctor", "now"), "now")


def test_debug_shows_where() -> None:
    with pytest.raises(ValueError, match=r"batch\.size 3"):
        train("runs/x", "--debug", "batch.size=3", "batch.accumulate=2")
