"""The HTML page that plays a trace: one file that loads nothing and runs nothing but its own script.

What a model wrote is data: it lies in the page as JSON without the letters that HTML reads, and the script puts it into
text nodes. The policy in the head admits this script and this style by their digests, and no request at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from dlmkit import __version__
from dlmkit.tracing.record import Change, SampleTrace, Token, Trace, TraceStep
from dlmkit.tracing.visible import visible

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("player.js", "view.js")

KINDS = ("committed", "remasked", "replaced")

UNSAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}
"""Escapes inside JSON strings, so that no text ends the script or begins a comment."""


def page(trace: Trace) -> str:
    """Return the page of `trace` as one HTML document."""
    title = escape(_one_line(f"{trace.model}: {trace.sampler}"))
    style, script = _asset("page.css"), "".join(_asset(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; base-uri 'none';"
        " form-action 'none'"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f"<style>{style}</style></head><body><main>"
        f'<header><h1>{title}</h1><p class="quiet">{escape(_facts(trace))}</p></header>'
        f"{_asset('body.html')}</main>{_without_script(trace)}"
        f'<script type="application/json" id="trace">{embedded(trace)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def embedded(trace: Trace) -> str:
    """Return what the script reads, as JSON that may stand inside a script element.

    Tokens are numbers of `tokens`, a list of (id, text); -1 is the mask. A step is (t, passes, decided, changes), a
    change (position, token, before, kind, confidence or null, [token, probability, token, probability, ...]).
    """
    tokens = _Numbers()
    samples = [_sample(sample, tokens) for sample in trace.samples]
    content = {"tokens": [[token.id, token.text] for token in tokens.known], "samples": samples}
    return json.dumps(content, separators=(",", ":"), allow_nan=False).translate(UNSAFE)


class _Numbers:
    """Numbers of tokens, in the order in which they are met."""

    def __init__(self) -> None:
        self._numbers: dict[Token, int] = {}

    def __call__(self, token: Token | None) -> int:
        return -1 if token is None else self._numbers.setdefault(token, len(self._numbers))

    @property
    def known(self) -> list[Token]:
        return list(self._numbers)


def _sample(sample: SampleTrace, tokens: _Numbers) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "text": sample.text,
        "given": [int(token is not None) for token in sample.given],
        "initial": [tokens(token) for token in sample.initial],
        "steps": [_step(step, tokens) for step in sample.steps],
    }


def _step(step: TraceStep, tokens: _Numbers) -> list[Any]:
    return [step.t, step.passes, step.decided, [_change(change, tokens) for change in step.changes]]


def _change(change: Change, tokens: _Numbers) -> list[Any]:
    alternatives: list[float] = []
    for one in change.alternatives:
        alternatives += (tokens(Token(one.id, one.text)), one.probability)
    kind = KINDS.index(change.kind)
    return [change.position, tokens(change.token), tokens(change.before), kind, change.confidence, alternatives]


def _facts(trace: Trace) -> str:
    settings = [f"{_one_line(key)} {_shown(value)}" for key, value in trace.settings.items()]
    number = len(trace.samples)
    samples = f"{number} sample{'' if number == 1 else 's'}"
    return " \u00b7 ".join([samples, *settings, f"seed {trace.seed}", f"dlmkit {__version__}"])


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else _one_line(str(value))


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _without_script(trace: Trace) -> str:
    texts = "".join(f"<pre>{escape(sample.text)}</pre>" for sample in trace.samples)
    note = "The texts as they ended; a browser that runs scripts plays how they formed."
    return f"<noscript><p>{note}</p>{texts}</noscript>"


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
