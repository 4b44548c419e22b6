"""`dlmkit plan`: what it prints is what the READMEs show, and what it cannot know is said in a line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from toy_runs import dlmkit

ROOT = Path(__file__).parents[2]
TINY = ["backbone=dit_tiny", "length=32", "batch.size=4"]


@pytest.mark.parametrize("name", ["diffugpt_s", "diffugpt_m", "diffullama_7b"])
def test_a_readme_shows_what_the_command_prints(name: str) -> None:
    text = (ROOT / "experiments" / name / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```\n(dlmkit plan .*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert dlmkit("plan", f"experiment={name}").out == shown


def test_json() -> None:
    """Block diffusion on the kit's own network, several devices, a price."""
    flags = ["--devices", "2", "--on", "a100", "--price", "2", "--json"]
    done = dlmkit("plan", "family=block", "objective.block_size=8", *TINY, *flags)
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert (plan["devices"], plan["strategy"], plan["micro_size"]) == (2, "ddp", 2)
    assert plan["parameters"]["trained"] > 0
    assert plan["memory"][0]["peak"] > plan["memory"][0]["activations"] > 0
    assert plan["speed"]["cost"] == pytest.approx(2 * plan["speed"]["device_hours"])
    assert plan["fits"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["tokenizer=characters"], "the vocabulary comes with the data, which a plan does not read: state its size"),
        (["experiment=adapt", "backbone.name=no/such"], "is not on this machine, and a plan downloads nothing"),
        (["--devices", "0"], "--devices 0 is no number of devices: give one of at least 1"),
        (["--on", "abacus"], "--on 'abacus' is unknown: choose one of b200"),
        (["--frob"], "--frob is no flag of `dlmkit plan`"),
        (["trainer.strategy=fsdp"], "trainer.strategy 'fsdp' cannot be planned"),
        (["--devices", "3"], "does not divide into"),
        (["trainer.precision=bf16-mixed", "--on", "v100"], "has no known peak rate of bfloat16 products"),
    ],
)
def test_what_cannot_be_planned_gets_one_line(arguments: list[str], line: str) -> None:
    done = dlmkit("plan", *TINY, *arguments) if "experiment" not in arguments[0] else dlmkit("plan", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert line in done.line
