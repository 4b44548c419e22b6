"""`dlmkit sample`: its options, what it prints, files of prompts, and one line for each mistake."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from dlmkit.cli import main
from toy_runs import MODEL, SMALL, Outcome, dlmkit, text_corpus, text_data

FAMILIES = ("absorbing", "ar", "block_4", "score_entropy", "uniform")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step of each family, on bytes; the network reads 31 tokens."""
    folder = tmp_path_factory.mktemp("sampled")
    data = text_data(text_corpus(folder / "t.txt", documents=8))
    network = [MODEL[0].replace("n_positions: 16", "n_positions: 32")]
    for family in FAMILIES:
        run = [f"family={family}", f"hydra.run.dir={folder / family}", "callbacks=[checkpoint]", "budget.tokens=32"]
        quick = [one for one in SMALL if not one.startswith("callbacks.")]
        outcome = dlmkit("train", *network, *quick, *data, *run)
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sample(runs: Path, family: str, *options: str) -> Outcome:
    return dlmkit("sample", str(runs / family), *options)


def text_of(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome.err
    return outcome.out


def test_json_has_texts_and_what_they_cost(runs: Path) -> None:
    options = ["--prompt", "the", "--num-samples", "3", "--steps", "4", "--seed", "7", "--json"]
    content = json.loads(text_of(sample(runs, "absorbing", *options)))
    statistics = content.pop("statistics")
    texts = content.pop("texts")
    assert content == {
        "prompt": "the",
        "infill": None,
        "num_samples": 3,
        "seed": 7,
        "guidance": 0.0,
        "stop_at_eos": False,
        "sampler": "ancestral",
        "steps": 4,
    }
    assert len(texts) == len(set(texts)) == 3
    assert statistics["num_tokens"] == [5, 5, 5]
    assert all(1 <= passes <= 4 for passes in statistics["passes"])
    assert statistics["tokens_per_pass"] == 15 / sum(statistics["passes"])
    assert statistics["seconds"] > 0


SAME = [  # two ways to say one thing
    (["--temperature", "0.5", "--top-k", "3"], ["--set", "temperature=0.5", "--set", "top_k=3"]),
    (["--min-p", "0.1", "--top-p", "0.9"], ["--set", "min_p=1e-1", "--set", "top_p=0.9"]),
    (["--sampler", "confidence", "--score", "margin", "--token", "argmax"], ["--sampler", "confidence", "--set"]),
    (["--sampler", "confidence", "--block-length", "2"], ["--sampler", "semi_autoregressive", "--set"]),
]
SAME[2][1].extend(["score=margin", "--set", "token=argmax"])
SAME[3][1].extend(["block_length=2"])


@pytest.mark.parametrize(("one", "other"), SAME)
def test_settings_have_an_effect_and_one_meaning(one: list[str], other: list[str], runs: Path) -> None:
    several = ["--num-samples", "4", "--steps", "8"]
    plain = text_of(sample(runs, "absorbing", *several))
    assert text_of(sample(runs, "absorbing", *several, *one)) == text_of(sample(runs, "absorbing", *several, *other))
    assert text_of(sample(runs, "absorbing", *several, *one)) != plain


CHANGES = [
    ["--guidance", "900"],
    ["--set", "top_k=null", "--set", "temperature=0"],
    ["--sampler", "threshold", "--set", "threshold=0.01"],
    ["--sampler", "remdm", "--set", "eta=0.5", "--set", "rule=rescale"],
]


@pytest.mark.parametrize("options", CHANGES, ids=lambda options: options[1])
def test_other_options_change_the_texts(options: list[str], runs: Path) -> None:
    several = ["--num-samples", "4", "--steps", "8", "--prompt", "the"]
    assert text_of(sample(runs, "absorbing", *several, *options)) != text_of(sample(runs, "absorbing", *several))


def test_stop_at_eos_ends_texts(runs: Path) -> None:
    several = ["--num-samples", "64", "--length", "30", "--json", "--set", "temperature=50", "--steps", "16"]
    whole, stopped = (
        json.loads(text_of(sample(runs, "absorbing", *several, *more)))["texts"] for more in ([], ["--stop-at-eos"])
    )
    assert stopped == [text[: text.index("<|eos|>") + 7] if "<|eos|>" in text else text for text in whole]
    assert stopped != whole


REMARKS = [
    ("absorbing", ["--steps", "50"], "--steps 50 is more than the 8 tokens to fill: "),
    ("absorbing", ["--sampler", "confidence", "--steps", "50"], ": 8 passes of the network were enough, the other"),
    ("ar", ["--steps", "3"], "sampler=autoregressive takes as many steps as a text needs, here up to 8, whatever"),
    ("absorbing", ["--sampler", "first_hitting", "--steps", "50"], "takes as many steps as a text needs, here up to 8"),
    ("absorbing", ["--steps", "8"], None),
    ("uniform", ["--steps", "20"], None),  # each step reads the text
    ("absorbing", [], None),
    ("ar", [], None),
]


@pytest.mark.parametrize(("family", "options", "remark"), REMARKS)
def test_what_becomes_of_the_steps_is_said(family: str, options: list[str], remark: str | None, runs: Path) -> None:
    outcome = sample(runs, family, *options)
    assert outcome.code == 0, outcome.err
    assert (outcome.err == "") if remark is None else (remark in outcome.line)


BAD = {
    "long prompt": ("absorbing", ["--prompt", "a" * 9], "length 8 leaves no room behind 9 given tokens: ask for"),
    "endless prompt": ("ar", ["--prompt", "a" * 40], "the prompt has 40 tokens, and this network reads 32"),
    "long text": ("absorbing", ["--length", "32"], "length 32 is more than this backbone's 31 positions"),
    "no length": ("absorbing", ["--length", "0"], "length 0 is outside [1, "),
    "long gap": ("absorbing", ["--infill", "a[MASK:31]"], "the text has 32 tokens with its gaps, and this network"),
    "no gap": ("absorbing", ["--infill", "a"], "the text has no gap"),
    "gap of an AR model": ("ar", ["--infill", "a[MASK:2]b"], "cannot fill in the middle"),
    "unknown sampler": ("absorbing", ["--sampler", "confidense"], "sampler=confidense is unknown: choose one of anc"),
    "sampler of scores": ("score_entropy", ["--sampler", "confidence"], "objective=score_entropy trains one that pred"),
    "scores from x0": ("absorbing", ["--sampler", "score_analytic"], "set sampler=ancestral"),
    "masks under uniform noise": ("uniform", ["--sampler", "threshold"], "it decides masks, and this noise leaves"),
    "next tokens": ("absorbing", ["--sampler", "autoregressive"], "set sampler=ancestral"),
    "diffusion of an AR model": ("ar", ["--sampler", "ancestral"], "set sampler=autoregressive"),
    "blocks of blocks": ("block_4", ["--sampler", "semi_autoregressive"], "the model was trained in blocks of 4 tok"),
    "other blocks": ("block_4", ["--block-length", "2"], "block_length 2: the model was trained in blocks of 4"),
    "blocks of one token": ("ar", ["--block-length", "2"], "block_length 2 with sampler=autoregressive"),
    "no block": ("absorbing", ["--block-length", "0"], "block_length 0 is outside [1, "),
    "guidance of a causal model": ("ar", ["--guidance", "1", "--prompt", "a"], "no prediction without the given"),
    "guidance of blocks": ("block_4", ["--guidance", "1", "--prompt", "a"], "blocks before are kept; set guidance"),
    "guidance without masks": ("uniform", ["--guidance", "1", "--prompt", "a"], "where masks can stand for them"),
    "guidance without a prompt": ("absorbing", ["--guidance", "1"], "guidance 1.0 without a prompt"),
    "guidance below 0": ("absorbing", ["--guidance", "-1", "--prompt", "a"], "guidance -1.0 is outside [0, 1000]"),
    "unknown setting": ("absorbing", ["--set", "tempreture=1"], "sampler=ancestral has no tempreture: it has"),
    "nearest setting": ("absorbing", ["--set", "tempreture=1"], "(nearest: temperature)"),
    "setting of no sampler": ("absorbing", ["--set", "self=1"], "sampler=ancestral has no self"),
    "setting of another": ("absorbing", ["--set", "gamma=1"], "sampler=ancestral has no gamma"),
    "setting outside": (
        "absorbing",
        ["--sampler", "threshold", "--set", "threshold=2"],
        "threshold 2 is outside [0, 1]",
    ),
    "setting of no type": ("absorbing", ["--set", "top_k=1.5"], "top_k 1.5 is not a whole number in [1, "),
    "setting that is none": ("absorbing", ["--set", "threshold"], "--set 'threshold' is not KEY=VALUE"),
    "setting twice": ("absorbing", ["--top-k", "1", "--set", "top_k=2"], "top_k is given twice"),
    "no probability": ("absorbing", ["--min-p", "2"], "min_p 2.0 is outside [0, 1]"),
    "no penalty": ("absorbing", ["--repetition-penalty", "0.5"], "repetition_penalty 0.5 is outside [1, 1000]"),
    "unknown score": ("absorbing", ["--sampler", "confidence", "--score", "best"], "score 'best' is unknown: choose"),
    "score of ancestral": ("absorbing", ["--score", "margin"], "sampler=ancestral has no score"),
    "no steps": ("ar", ["--steps", "0"], "steps 0 is outside [1, "),
    "no texts": ("absorbing", ["--num-samples", "0"], "num_samples 0 is outside [1, "),
    "out without a file": ("absorbing", ["--out", "o.jsonl"], "--out is for a file of prompts"),
    "bad bytes": ("absorbing", ["--prompt", "a\udcff"], "half of a surrogate pair, or bytes that are not UTF-8"),
    "no file": ("absorbing", ["--prompts", "p.jsonl"], "'p.jsonl' does not exist"),
    "json lines as json": ("absorbing", ["--prompts", "p.jsonl", "--json"], "--json is for single texts"),
    "length of a gap": ("absorbing", ["--infill", "a[MASK:2]", "--length", "9"], "has a length of its own; leave them"),
    "length of gaps": ("absorbing", ["--infill-file", "p.jsonl", "--length", "9"], "--length with --infill-file"),
    "no batch at all": ("absorbing", ["--batch-size", "0"], "batch_size 0 is outside [1, "),
    "no batch": ("absorbing", ["--prompts", "p.jsonl", "--batch-size", "0"], "batch_size 0 is outside [1, "),
}


@pytest.mark.parametrize("case", BAD)
def test_mistakes_get_one_line(case: str, runs: Path) -> None:
    family, options, line = BAD[case]
    outcome = sample(runs, family, *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert line in outcome.line
    assert list(Path().iterdir()) == []


def test_a_damaged_checkpoint_gets_one_line(runs: Path) -> None:
    content = bytearray((runs / "ar/checkpoints/last.ckpt").read_bytes())
    content[-200] ^= 1
    Path("run").mkdir()
    os.symlink(runs / "ar/config.yaml", "run/config.yaml")
    Path("run/checkpoints").mkdir()
    Path("run/checkpoints/last.ckpt").write_bytes(content)
    outcome = dlmkit("sample", "run")
    assert (outcome.code, "last.ckpt is damaged" in outcome.line) == (2, True)


def prompts(num: int) -> None:
    lines = [
        {"id": f"n{i}", "prompt": "the"[: i % 4]} if i % 5 else {"infill": f"a[MASK:{i % 3 + 1}]b"} for i in range(num)
    ]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_killed_command_goes_on_and_ends_the_same(runs: Path) -> None:
    """SIGKILL at some moments; the last one leaves half a line."""
    prompts(60)
    command = ["sample", str(runs / "absorbing"), "--prompts", "p.jsonl", "--batch-size", "2", "--steps", "8", "--out"]
    assert dlmkit(*command, "whole.jsonl").line == "dlmkit: whole.jsonl has all 60 texts"
    whole = Path("whole.jsonl").read_bytes()
    out = Path("o.jsonl")
    seen = [0]
    for wanted in (3, 20, 41):
        if (child := os.fork()) == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os._exit(main([*command, "o.jsonl"]))
        while not out.exists() or out.read_bytes().count(b"\n") < wanted:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        seen.append(out.read_bytes().count(b"\n"))
        assert seen[-2] < seen[-1] < 60
        assert whole.startswith(out.read_bytes())
    with out.open("ab") as file:
        file.write(b'{"id": "n')
    assert dlmkit(*command, "o.jsonl").line == f"dlmkit: o.jsonl has all 60 texts, {seen[-1]} of them from before"
    assert out.read_bytes() == whole
    assert dlmkit(*command, "o.jsonl").code == 0
    refused = dlmkit(*command, "o.jsonl", "--temperature", "0.5", "--seed", "3")
    assert refused.code == 2
    assert "'o.jsonl' was made with sampler.temperature 1.0, not 0.5, seed 0, not 3:" in refused.line
    assert out.read_bytes() == whole


def test_lines_are_printed_without_a_file(runs: Path) -> None:
    prompts(7)
    command = ["--prompts", "p.jsonl", "--steps", "2", "--num-samples", "2", "--stop-at-eos"]
    assert "--steps 40 is more than the 8 tokens to fill" in sample(runs, "absorbing", *command, "--steps", "40").line
    printed = text_of(sample(runs, "absorbing", *command))
    assert sample(runs, "absorbing", *command, "--out", "folder/o.jsonl").code == 0
    assert Path("folder/o.jsonl").read_text() == printed
    assert [json.loads(line)["id"] for line in printed.splitlines()[::2]] == [1, "n1", "n2", "n3", "n4", 6, "n6"]


def test_a_file_of_gaps(runs: Path) -> None:
    Path("g.jsonl").write_text('{"infill": "a[MASK:2]😀"}\n{"infill": "[MASK:<=3]\\n"}\n')
    lines = [json.loads(line) for line in text_of(sample(runs, "absorbing", "--infill-file", "g.jsonl")).splitlines()]
    assert lines[0]["text"].startswith("a")
    assert lines[0]["text"].endswith("😀")
    assert lines[1]["text"].endswith("\n")
    prompts(2)
    assert "'p.jsonl' line 2 is no text with gaps" in sample(runs, "absorbing", "--infill-file", "p.jsonl").line
