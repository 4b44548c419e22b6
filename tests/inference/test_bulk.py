"""Files of prompts: whatever happened on the way, the output is that of one undisturbed command."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from dlmkit import LoadedModel
from dlmkit.inference.bulk import Bulk
from dlmkit.inference.decoding import Decoding
from dlmkit.inference.output import opened, settings_file
from dlmkit.inference.prompts import PromptFile
from toy_models import toy_model

PROMPTS: list[dict[str, Any]] = [
    {"prompt": "In the"},
    {"id": "gap", "infill": "In[MASK:3]God [MASK:<=4]"},
    {"id": "ünï", "prompt": ""},
    {"id": 40, "prompt": "And"},
    {"infill": "the [MASK:2]", "note": "for its owner"},
    {"prompt": "In the beginning"},
    {"infill": "[MASK:<=5]\n"},
    {"prompt": "\u2028 lines\nwithin"},
    {"infill": "In[MASK:3]God [MASK:<=5]"},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    written("p.jsonl", PROMPTS)
    return tmp_path


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return toy_model()


def written(name: str, lines: list[dict[str, Any]]) -> Path:
    Path(name).write_text("\n".join(json.dumps(line) for line in lines) + "\n\n", encoding="utf-8")
    return Path(name)


def decoding(model: LoadedModel, **changes: Any) -> Decoding:
    return Decoding(model.sampler, **{"steps": 4, "batch_size": 2, **changes})


def run(model: LoadedModel, out: str = "o.jsonl", prompts: str = "p.jsonl", **changes: Any) -> bytes:
    bulk = Bulk(model, PromptFile(Path(prompts)), decoding(model, **changes))
    with opened(Path(out), bulk.settings(), bulk.known_lines()) as output:
        bulk.write(output)
        assert output.num_lines == bulk.num_texts
    return Path(out).read_bytes()


def rows(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def test_lines_are_those_of_single_texts(model: LoadedModel) -> None:
    """In the order of the file, with the noise of their places."""
    found = rows(run(model, num_samples=2, seed=5))
    assert [row["id"] for row in found[::2]] == [1, "gap", "ünï", 40, 5, 6, 7, 8, 9]
    assert [row["sample"] for row in found] == [0, 1] * 9
    for place, row in enumerate(found):
        prompt = PROMPTS[place // 2]
        request = model.request(prompt.get("infill", prompt.get("prompt")), "infill" in prompt)
        done = model.complete([request], 4, model.sampler, 5, places=[place])
        text = model.completed_text(request, done.tokens[0])
        expected = {"text": text.text, "num_tokens": text.num_generated, "passes": done.passes[0], "seed": 5}
        assert {key: row[key] for key in expected} == expected
        assert set(row) == {"id", "sample", *expected}


def test_lines_do_not_depend_on_the_batch(model: LoadedModel) -> None:
    assert len({run(model, f"{size}.jsonl", batch_size=size) for size in (1, 2, 5, 64)}) == 1


def test_a_command_that_was_stopped_anywhere_ends_as_one_that_was_not(model: LoadedModel) -> None:
    whole = run(model)
    settings = settings_file(Path("o.jsonl")).read_bytes()
    ends = [0, *(place + 1 for place, byte in enumerate(whole) if byte == ord("\n"))]
    for cut in sorted({*ends, *(end + 7 for end in ends[:-1]), *(end - 1 for end in ends[1:])}):
        Path("o.jsonl").write_bytes(whole[:cut])
        assert run(model) == whole, cut
        assert settings_file(Path("o.jsonl")).read_bytes() == settings


def test_what_is_there_is_not_made_again(model: LoadedModel) -> None:
    whole = run(model, batch_size=1)
    lines = whole.splitlines(keepends=True)
    marked = json.dumps({**json.loads(lines[0]), "text": "kept"}).encode() + b"\n"
    Path("o.jsonl").write_bytes(marked + lines[1])
    assert run(model, batch_size=1) == b"".join([marked, *lines[1:]])


OTHER = {
    "steps": ({"steps": 5}, "steps 4, not 5"),
    "seed": ({"seed": 1}, "seed 0, not 1"),
    "samples": ({"num_samples": 2}, "num_samples 1, not 2"),
    "length": ({"length": 20}, "length 24, not 20"),
    "guidance": ({"guidance": 0.5, "prompts": "given.jsonl"}, "guidance 0.0, not 0.5"),
    "stop": ({"stop_at_eos": True}, "stop_at_eos false, not true"),
    "prompts": ({"prompts": "given.jsonl"}, "prompts '"),
}


@pytest.mark.parametrize("case", OTHER)
def test_other_settings_are_refused_by_name(case: str, model: LoadedModel) -> None:
    written("given.jsonl", [{"prompt": "In"}])
    before = run(model)
    changes, line = OTHER[case]
    with pytest.raises(ValueError, match=rf"'o\.jsonl' was made with .*{line}.*name another --out"):
        run(model, **changes)
    assert Path("o.jsonl").read_bytes() == before


def test_another_sampler_or_network_is_refused(model: LoadedModel) -> None:
    run(model)
    bulk = Bulk(model, PromptFile(Path("p.jsonl")), decoding(model))
    other = Decoding(model.choose_sampler("confidence", score="margin"), steps=4, batch_size=2)
    settings = Bulk(model, PromptFile(Path("p.jsonl")), other).settings()
    wanted = "sampler 'ancestral', not 'confidence'.*sampler.score null, not 'margin'"
    with pytest.raises(ValueError, match=wanted), opened(Path("o.jsonl"), settings, bulk.known_lines()):
        pass
    trained = toy_model()
    with torch.no_grad():
        next(trained.backbone.parameters()).view(-1)[0] += 1e-4
    with pytest.raises(ValueError, match="weights"):
        run(trained)


def test_what_is_no_output_is_never_overwritten(model: LoadedModel) -> None:
    for content in (b"notes\n", b'{"id": 1}\n'):
        Path("mine.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=r"'mine\.jsonl' is there and no output of dlmkit sample"):
            run(model, "mine.jsonl")
        assert Path("mine.jsonl").read_bytes() == content
        assert not settings_file(Path("mine.jsonl")).exists()
    prompts = Path("p.jsonl").read_bytes()
    with pytest.raises(ValueError, match="no output"):
        run(model, "p.jsonl")
    assert Path("p.jsonl").read_bytes() == prompts
    settings_file(Path("new.jsonl")).write_text('{"mine": true}')
    with pytest.raises(ValueError, match=r"'new\.jsonl\.settings\.json' is no file of settings"):
        run(model, "new.jsonl")
    assert not Path("new.jsonl").exists()
    Path("folder").mkdir()
    with pytest.raises(ValueError, match="'folder' is no file"):
        run(model, "folder")
    Path("empty.jsonl").touch()  # nothing is lost
    assert run(model, "empty.jsonl") == run(model)


def test_an_output_that_was_changed_is_refused(model: LoadedModel) -> None:
    whole = run(model)
    lines = whole.splitlines(keepends=True)
    for changed in (lines[1:], [*lines[:2], b"{}\n", *lines[3:]], [*lines[:3], b"\0\0\n"], [*lines, lines[0]]):
        Path("o.jsonl").write_bytes(b"".join(changed))
        with pytest.raises(ValueError, match=r"'o\.jsonl' line \d+ is not what this command writes there"):
            run(model)
        assert Path("o.jsonl").read_bytes() == b"".join(changed)


def test_one_process_writes_at_a_time(model: LoadedModel) -> None:
    bulk = Bulk(model, PromptFile(Path("p.jsonl")), decoding(model))
    with opened(Path("o.jsonl"), bulk.settings(), bulk.known_lines()) as output:
        with pytest.raises(ValueError, match="being written by another process"):
            run(model)
        bulk.write(output)
    assert run(model) == Path("o.jsonl").read_bytes()


BAD = {
    "no JSON": ('{"prompt": "a"', "line 2 is not JSON"),
    "no object": ("[1]", "line 2 holds a list"),
    "neither": ('{"promt": "a"}', "line 2 has neither prompt nor infill, but 'promt': give one of them"),
    "both": ('{"prompt": "a", "infill": "[MASK:2]"}', "line 2 has prompt and infill: give one"),
    "no text": ('{"prompt": 3}', "line 2: prompt 3 is not text"),
    "no gap": ('{"infill": "a"}', "line 2: the text has no gap"),
    "bad gap": ('{"infill": "a[MASK:x]"}', r"line 2: '\[MASK:x\]' is no gap"),
    "too long": (json.dumps({"prompt": "a" * 24}), "line 2: length 24 leaves no room behind 24 given tokens"),
    "longer than the network": (json.dumps({"prompt": "a" * 99}), "line 2: the prompt has 99 tokens.* reads 96"),
    "gap too long": ('{"infill": "a[MASK:99]"}', "line 2: the text has 100 tokens with its gaps.* reads 96"),
    "bad id": ('{"id": 1.5, "prompt": "a"}', "line 2: id 1.5 is neither text nor a whole number"),
    "half an id": ('{"id": "\\ud800", "prompt": "a"}', "line 2: id .* has half of a surrogate pair"),
    "half a letter": ('{"prompt": "\\ud800"}', "line 2: the text has half of a surrogate pair"),
    "twice": ('{"id": "x", "prompt": "b"}', "line 2: id 'x' is that of line 1 too"),
    "no UTF-8": (b'{"prompt": "\xff"}', "line 2 is not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lines_are_named_before_anything_is_made(case: str, model: LoadedModel) -> None:
    line, message = BAD[case]
    bad = line if isinstance(line, bytes) else line.encode()
    Path("bad.jsonl").write_bytes(b'{"id": "x", "prompt": "a"}\n' + bad + b"\n")
    with pytest.raises(ValueError, match=rf"^'bad\.jsonl' {message}"):
        run(model, "new.jsonl", "bad.jsonl")
    assert not Path("new.jsonl").exists()


def test_files_without_prompts_are_refused(model: LoadedModel) -> None:
    Path("blank.jsonl").write_text("\n \n")
    for name, message in (("blank.jsonl", "has no prompt"), ("none.jsonl", "does not exist"), (".", "must be a file")):
        with pytest.raises(ValueError, match=message):
            run(model, "new.jsonl", name)


def test_what_the_sampler_cannot_do_is_refused_before_anything_is_made() -> None:
    with pytest.raises(ValueError, match=r"'p\.jsonl' line 2: an autoregressive model"):
        run(toy_model("ar"), "new.jsonl")
    with pytest.raises(ValueError, match=r"'p\.jsonl' line 3: guidance 1\.0 without a prompt"):
        run(toy_model(), "new.jsonl", guidance=1.0)
    written("gaps.jsonl", [{"infill": "a[MASK:2]"}, {"prompt": "a"}])
    with pytest.raises(ValueError, match="line 2 is no text with gaps"):
        list(PromptFile(Path("gaps.jsonl"), gaps_only=True))
    assert not Path("new.jsonl").exists()


def test_memory_does_not_grow_with_the_file() -> None:
    """Lines are read one by one; what is kept of each are the 8 bytes that say whether its id came before."""
    line = json.dumps({"prompt": "word " * 200}) + "\n"
    peaks = []
    for num in (300, 3_000):
        Path("big.jsonl").write_text(line * num)
        prompts = PromptFile(Path("big.jsonl"))
        tracemalloc.start()
        assert prompts.check(lambda _prompt: None) == num
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 2_700 * 64  # of the 1,000 of a line: digests, sorted ones and counts
