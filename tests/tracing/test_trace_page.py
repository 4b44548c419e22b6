"""The page: one file that loads nothing, in which what a model wrote is data; its script goes through the steps."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser

import pytest
from traces import HOSTILE, long_trace, trace

from dlmkit.tracing.page import ASSETS, embedded, page
from dlmkit.tracing.record import SampleTrace, Trace

VOID = {"meta", "br", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and the contents of scripts and styles, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.raw: dict[str, list[str]] = {"script": [], "style": [], "title": [], "pre": []}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)
            self.raw.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.raw[self.open[-1]][-1] += data


def hostile() -> Trace:
    """Hostile in every text that a page shows."""
    one = trace().samples[0]
    sample = SampleTrace(HOSTILE, one.given, one.initial, one.steps, HOSTILE)
    return Trace(HOSTILE, HOSTILE, {HOSTILE: HOSTILE}, 0, [sample])


def test_nothing_is_loaded_and_only_its_own_script_runs() -> None:
    text = page(trace())
    reader = Reader(text)
    assert not re.search(r"(https?:)?//[a-z]|@import|url\(", text.replace("http://www.w3.org/2000/svg", ""))
    assert {"img", "link", "iframe", "object", "base", "form"} & set(reader.tags) == set()
    assert not [name for name, _ in reader.attributes if name in ("src", "style", "srcdoc") or name.startswith("on")]
    (policy,) = [value for name, value in reader.attributes if name == "content" and value and "default-src" in value]
    data, script = reader.raw["script"]
    for kind, content in (("script-src", script), ("style-src", reader.raw["style"][0])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    json.loads(data)


def test_no_text_of_a_model_is_markup() -> None:
    text = page(hostile())
    assert "<img" not in text
    assert text.count("</script>") == 2
    assert text.count("<!--") == 0
    reader = Reader(text)
    assert len(reader.raw["script"]) == 2
    data = json.loads(reader.raw["script"][0])
    assert data["samples"][0]["text"] == HOSTILE
    assert reader.raw["pre"][-1] == HOSTILE  # where no script runs
    assert "<" not in embedded(hostile())
    assert not {"\u202e", "\x1b"} & set(reader.raw["title"][-1] + reader.raw["h1"][0] + reader.raw["p"][0])


def test_the_script_writes_text_alone() -> None:
    script = "".join((ASSETS / name).read_text() for name in ("player.js", "view.js"))
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function(", "fetch", "</"):
        assert word not in script


def test_what_the_page_holds() -> None:
    data = json.loads(embedded(trace()))
    (sample,) = data["samples"]
    assert [data["tokens"][k][1] if k >= 0 else None for k in sample["initial"]] == ["the", None, None]
    assert sample["given"] == [1, 0, 0]
    t, passes, decided, changes = sample["steps"][1]
    assert (round(t, 3), passes, decided) == (0.667, 1, 1)
    assert [(position, kind) for position, _, _, kind, _, _ in changes] == [(1, 1), (2, 0)]
    assert [data["tokens"][k] for k in changes[0][5][::2]] == [[1, " sea"], [2, " sky"]]


def test_an_empty_trace_is_a_page() -> None:
    Reader(page(Trace("m", "s", {}, 0, [])))
    Reader(page(Trace("m", "s", {}, 0, [SampleTrace("", [], [], [], "")])))


def test_a_long_trace_is_a_small_page() -> None:
    """16 texts of 1,024 tokens with two alternatives in each: under 1.5 MB, about 80 bytes of a change."""
    begin = time.process_time()
    text = page(long_trace())
    assert len(text) < 1.5e6
    assert time.process_time() - begin < 10


WITH_NODE = pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")


def run_script(code: str, one: Trace) -> object:
    """Run the script's part without a page, then `code`, which returns what is printed as JSON."""
    script = (ASSETS / "player.js").read_text() + f"\nconst DATA = {embedded(one)};\nconst run = () => {{{code}}};\n"
    script += "console.log(JSON.stringify(run()));"
    return json.loads(subprocess.run(["node", "-"], input=script, capture_output=True, text=True, check=True).stdout)


@WITH_NODE
def test_the_script_goes_to_any_step_from_any_other() -> None:
    code = """
      const player = new Player(DATA.samples[0]), seen = [];
      for (const step of [0, 3, 1, 2, 0, 9, -1]) {
        player.seek(step);
        seen.push(player.given.map((_, i) => player.token(i) < 0 ? null : DATA.tokens[player.token(i)][0]));
      }
      return [seen, player.settled(), player.history(1).length, player.num];"""
    start, end = [0, None, None], [0, 2, 4]
    one, two = [0, 1, None], [0, None, 5]
    assert run_script(code, trace()) == [[start, end, one, two, start, end, start], [0, 0, 0, 2], 0, 3]


@WITH_NODE
@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["a \\xe2", "\\x80", "\\x99s"], ["a ", "", "\u2019s"]),
        (["\\xe2\\x80", None, "\\x99"], ["\\xe2\\x80", None, "\\x99"]),
        (["\\xff", "\\xc3", "\\xa9"], ["\\xff", "", "\u00e9"]),
        (["\\xf0\\x9f", "\\x98\\x80!"], ["", "\U0001f600!"]),
        (["\\xc3", "b"], ["\\xc3", "b"]),
    ],
)
def test_tokens_that_share_a_letter_show_it_once(texts: list[str | None], shown: list[str | None]) -> None:
    assert run_script(f"return joined({json.dumps(texts)});", trace()) == shown


@WITH_NODE
def test_controls_are_signs() -> None:
    code = f"return visible({json.dumps(HOSTILE + chr(10) + chr(9) + chr(0x200D))}, true);"
    shown = run_script(code, trace())
    assert (
        shown
        == HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b").replace(" ", "\u00b7") + "\u21b5\u21e5\u200d"
    )
