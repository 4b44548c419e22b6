"""Random overrides of every key of conf/: each is a run, or one line that a user can act on, and exit code 2.

    python -m tests.faults.fuzz --times 1000 --report fuzz.json

Every key has its turn, with one to three random values in all, legal ones and hostile ones. Each example is a training
of one step in a process of its own. Values that are legal but only cost time (`SIZES`) stay small; a run that has begun
and is not done after a minute counts as a run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, get_args, get_origin

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script
sys.path.insert(0, str(Path(__file__).parent))

import hypothesis
import yaml
from attempt import Result, attempt
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from dlmkit.config import compose
from dlmkit.config.declared import declared
from dlmkit.config.values import hints_at
from dlmkit.ranges import misfit, range_of
from toy_runs import MODEL, SMALL, TOY, text_corpus

TEXT = [
    "data=text",
    "data.source.files=t.txt",
    'data.source.separator="|"',
    "data.val_fraction=0.25",
    "tokenizer=bytes",
]
SETUPS: dict[str, list[str]] = {
    "toy": TOY,
    "all callbacks": [*TOY, "callbacks=[throughput,samples,lr,checkpoint,annealing,ema]"],
    "no loggers": [*TOY, "logger=none"],
    "llama": [*TOY[len(MODEL) :], "backbone=llama", "backbone.config.hidden_size=16"],
    "dit": [*TOY[len(MODEL) :], "backbone=dit_tiny", "backbone.hidden_size=16", "backbone.num_layers=1"],
    "text": [*MODEL, *SMALL, *TEXT],
    "bpe": [*MODEL, *SMALL, *TEXT, "tokenizer=bpe", "tokenizer.vocab_size=262"],
    "characters": [*MODEL, *SMALL, *TEXT, "tokenizer=characters"],
    "jsonl": [*MODEL, *SMALL, "data=jsonl", "data.source.files=t.jsonl", "data.val_fraction=0.25", "tokenizer=bytes"],
    "parquet": [*MODEL, *SMALL, "data=parquet", "data.source.files=t.jsonl", "tokenizer=bytes"],
    "huggingface": [*MODEL, *SMALL, "data=huggingface", "data.source.name=./none", "tokenizer=bytes"],
    "own tokenizer": [*MODEL, *SMALL, *TEXT, "tokenizer=huggingface", "tokenizer.name=./none"],
    "mixture": [
        *(*MODEL, *SMALL, "data=mixture", "data.val_fraction=0.25", "tokenizer=bytes"),
        *(
            "data.sources={a: {weight: 1, source: {_target_: dlmkit.data.sources.text.Text, files: t.txt,"
            ' separator: "|"}}}',
        ),
    ],
    "pairs": [
        *(*MODEL, *SMALL, "length=12", "data=pairs", "data.files=pairs.jsonl", "data.separator=x", "tokenizer=bytes"),
        *("callbacks=[samples,exact_match]", "callbacks.exact_match.num_steps=2", "data.val_fraction=0.25"),
    ],
    "ar": [*TOY, "family=ar"],
    "uniform": [*TOY, "family=uniform"],
    "hybrid": [*TOY, "family=hybrid", "sampler=self_correcting", "sampler.num_corrections=2"],
    "score entropy": [*TOY, "family=score_entropy"],
    "tau leaping": [*TOY, "family=score_entropy", "sampler=score_tau_leaping", "schedule=geometric"],
    "block": [*TOY, "family=block_4"],
    "discrete": [*TOY, "objective=discrete"],
    "elbo": [*TOY, "objective=elbo", "lr_schedule=constant"],
    "fixed count": [*TOY, "corruption=fixed_count", "schedule=cosine"],
    "complementary": [*TOY, "corruption=complementary", "schedule=cosine_mdlm"],
    "polynomial": [*TOY, "schedule=polynomial", "t_sampler=iid"],
    "log linear": [*TOY, "schedule=log_linear", "t_sampler=importance"],
    "learned": [*TOY, "t_sampler=learned"],
    "clipped": [*TOY, "t_sampler=clipped"],
    "offset grid": [*TOY, "t_sampler=offset_grid"],
    **{
        sampler: [*TOY, f"sampler={sampler}"]
        for sampler in ("confidence", "threshold", "factor", "entropy_bound", "remdm", "remdm_loop", "p2")
    },
    "first hitting": [*TOY, "sampler=first_hitting"],
    "semi-autoregressive": [*TOY, "sampler=semi_autoregressive", "sampler.block_length=4"],
}
"""Name -> overrides with which every part of conf/ is in some toy; left out are other sizes of the same parts, data of
the hub, and the loggers wandb and mlflow, which need packages."""

LEFT_OUT = {
    "backbone": {"dit_small", "dit_medium"},
    "data": {"kjv", "fineweb", "slimpajama_starcoder"},
    "family": {
        *("absorbing_extra", "adapted", "adapted_block", "adapted_no_annealing", "adapted_no_shift", "block"),
        "hybrid_half",
    },
    "logger": {"csv", "wandb", "mlflow"},
    "strategy": {"ddp", "fsdp2", "fsdp2_offload"},  # of several processes
    "tokenizer": {"own"},
}

SIZES: dict[str, float] = {
    "trainer.devices": 1,
    "trainer.num_nodes": 1,
    "batch.num_workers": 1,
    "*.window_size": 100,
    "*.num_bins": 65536,
    "*.dropout": 1,
    "*.seed": math.inf,
    "seed": math.inf,
    "*_seed": math.inf,
    "trainer.log_every_n_steps": math.inf,
    "*every*": math.inf,
    "callbacks.annealing.anneal_steps": math.inf,
    "callbacks.checkpoint.*": math.inf,
    "lr_schedule.*": math.inf,
    "non_finite.*": math.inf,
    "vocab.*": math.inf,
    "*vocab_size": 300,
    "*.lora.*": 8,
    "num_steps": 3,
    "budget.*": 128,
}
"""Pattern of whole-number keys -> largest value that costs no more than a toy can afford; others: 40."""

HOSTILE = [
    *("null", "nan", "inf", "-inf", "0", "-1", "1", "-0.0", "0.5", "1e30", "-1e30", "1e-300", "1e-12", "7"),
    *("99999999999999999999999999", "-99999999999999999999999999", "[]", "[1,2]", "[null]", "[[1]]", "{}", "{a: 1}"),
    *("{_target_: os.getcwd}", "true", "false", "abc", "''", '"two words"', "../up", "/dev/null", "auto", "none"),
    *("'é☃'", "\"'quoted'\"", "'a\nb'", "x" * 300, "${seed}", "${length}", "${nokey}", "???"),
]


@dataclass(frozen=True)
class Key:
    """A key in one of the setups.

    Attributes:
        setup: name of the setup.
        name: dotted key.
        hint: its type.
        default: its value in the setup, as it is typed; ``None`` for a section or a list.
    """

    setup: str
    name: str
    hint: Any
    default: str | None


COMMON = ("seed", "length", "trainer.precision")
"""Keys that are also tried in every setup, beside its own ones."""


def keys() -> list[Key]:
    """Return every key of every setup: values, lists and sections; one that two setups share is in the first."""
    found: dict[str, Key] = {}
    for setup, overrides in SETUPS.items():
        config = compose(overrides, Path("run"))
        for key in _walk(config, setup, ""):
            shared = key.name if key.name not in COMMON else f"{key.name} {setup}"
            found.setdefault(f"{shared} {key.hint}", key)
    return list(found.values())


def _walk(node: DictConfig, setup: str, prefix: str) -> Iterator[Key]:
    hints = hints_at(node, prefix)
    for name in map(str, node):
        key = f"{prefix}.{name}" if prefix else name
        written = OmegaConf.to_container(node, resolve=False)[name]  # type: ignore[call-overload,index]
        plain = isinstance(written, (bool, int, float)) or (isinstance(written, str) and written.isidentifier())
        default = json.dumps(written).strip('"') if plain or written is None else None
        yield Key(setup, key, declared(key, hints.get(name, Any)), default)
        inside = OmegaConf.is_interpolation(node, name) or OmegaConf.is_missing(node, name)
        if not inside and isinstance(node[name], DictConfig):
            yield from _walk(node[name], setup, key)


def legal(hint: Any, most: float) -> st.SearchStrategy[str]:
    """Return values that fit a type, as they are typed."""
    inside = get_args(hint)
    allowed = range_of(hint)
    if allowed is not None and inside[0] is int:
        low = int(allowed.low)
        return st.integers(low, max(low, int(min(allowed.high, low + 10**6 if most == math.inf else most)))).map(str)
    if allowed is not None:
        return st.floats(allowed.low, allowed.high).filter(allowed.__contains__).map(repr)
    if hint is bool:
        return st.sampled_from(["true", "false"])
    if hint is type(None):
        return st.just("null")
    if inside and isinstance(inside[0], (str, int)):
        return st.sampled_from([str(one) for one in inside])
    if get_origin(hint) is tuple:
        return st.tuples(*(legal(one, most) for one in inside)).map(lambda items: f"[{','.join(items)}]")
    if inside and get_origin(hint) is not dict:
        return st.one_of(*(legal(one, most) for one in inside))
    return st.sampled_from(["abc", "null", "''"])


def values(key: Key) -> st.SearchStrategy[str]:
    """Return legal and hostile values of a key, without those that are legal and only large."""
    most = next((most for pattern, most in SIZES.items() if fnmatchcase(key.name, pattern)), 40.0)

    def is_affordable(text: str) -> bool:
        value = yaml.safe_load(text) if "\n" not in text and "$" not in text else text
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return not is_number or misfit(value, key.hint) is not None or not value > most or isinstance(value, float)

    numbers = st.one_of(st.integers(-(2**70), 2**70).map(str), st.floats().map(repr))
    fits = legal(key.hint, most) if key.default is None else st.one_of(legal(key.hint, most), st.just(key.default))
    return st.one_of(fits, fits, fits, fits, st.sampled_from(HOSTILE), numbers).filter(is_affordable)


@st.composite
def examples(draw: st.DrawFn, key: Key, others: list[Key]) -> list[str]:
    """Draw overrides: a value of `key`, and of up to two other keys of its setup."""
    more = draw(st.lists(st.sampled_from(others), max_size=2))
    return [f"{one.name}={draw(values(one))}" for one in (key, *more)]


def write_files(folder: Path) -> None:
    """Write the text that the setups read."""
    text = text_corpus(folder / "t.txt").read_text().split("\n\n")
    (folder / "t.txt").write_text("|".join(text))
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in text))
    pairs = [{"prompt": f"p{index}", "response": f"#### {index}"} for index in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(one) + "\n" for one in pairs))


def is_answered(result: Result) -> bool:
    """Return whether an attempt was a run, or was refused in one line without words from inside."""
    if result.kind == "time":
        return " parameters, " in result.err  # it has begun
    inside = any(word in result.err for word in ("Traceback", "<class", " object at 0x", "HYDRA_FULL_ERROR"))
    return result.kind in ("run", "refused") and not inside


def fuzz(times: int, seed: int) -> dict[str, Any]:
    """Try random overrides and return the report."""
    every = keys()
    results: list[Result] = []
    began = time.monotonic()
    for index, key in enumerate(every):
        share = (index + 1) * times // len(every) - index * times // len(every)
        beside = [other for other in every if other.setup == key.setup]
        results += [_try(key, overrides) for overrides in _drawn(key, beside, share, seed + index)]
    return {
        "times": len(results),
        "seed": seed,
        "keys": len(every),
        "seconds": round(time.monotonic() - began),
        "kinds": dict(Counter(result.kind for result in results)),
        "faults": [
            {"overrides": result.overrides, "kind": result.kind, "code": result.code, "err": result.err[-1500:]}
            for result in results
            if not is_answered(result)
        ],
    }


def _drawn(key: Key, beside: list[Key], number: int, seed: int) -> list[list[str]]:
    """Return examples of one key, drawn by hypothesis."""
    drawn: list[list[str]] = []
    if number == 0:
        return drawn

    @hypothesis.seed(seed)
    @settings(
        max_examples=number + 1,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(examples(key, beside))
    def collect(overrides: list[str]) -> None:
        drawn.append(overrides)

    collect()
    return drawn[1:]  # the first one is always the simplest


def _try(key: Key, overrides: list[str]) -> Result:
    result = attempt([*SETUPS[key.setup], *overrides], prepare=write_files)
    if not is_answered(result):
        print(result.kind, result.code, key.setup, overrides, result.err[-400:], sep="\n", flush=True)
    return result


def main() -> int:
    """Run the full form, write its report, and return 1 where something was not answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path, default=Path("fuzz.json"))
    options = parser.parse_args()
    report_file = options.report.resolve()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        report = fuzz(options.times, options.seed)
    report_file.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "faults"}))
    return 1 if report["faults"] else 0


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.exit(main())
