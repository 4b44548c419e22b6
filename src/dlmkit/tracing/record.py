"""The record of how texts formed: what every step changed, how sure the network was, and what it thought of instead.

Plain values, so that a record is read and shown without torch. L positions of a text; t = 0 is data, t = 1 is noise.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dlmkit.tracing.reading import damaged, read

VERSION = 1
"""Of the form; a change of it that old readers would misread gets another number."""

Kind = Literal["committed", "remasked", "replaced"]
"""Mask to token, token to mask, token to another token."""

Setting = bool | int | float | str | None


@dataclass(frozen=True)
class Token:
    """A token as it is shown.

    Attributes:
        id: in the vocabulary.
        text: its text alone; bytes that are no whole UTF-8 character are escaped, such as ``\\xe2``.
    """

    id: int
    text: str


@dataclass(frozen=True)
class Alternative:
    """A token that the network thought of.

    Attributes:
        id: in the vocabulary.
        text: as in `Token`.
        probability: in [0, 1], under the prediction that the step read.
    """

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class Change:
    """What a step did at one position.

    Attributes:
        position: in [0, L).
        token: after the step; ``None`` for the mask.
        before: before the step; ``None`` for the mask, or for a position that held nothing yet.
        kind: committed (mask to token), remasked (token to mask) or replaced (token to another token).
        confidence: probability, in [0, 1], of `token` under the prediction that the step read, before temperature and
            other filters; where the token was taken back (remasked), of `before`. ``None`` where it is not known.
        alternatives: the likeliest tokens of that prediction, most likely first, `token` among them if it is one.
    """

    position: int
    token: Token | None
    before: Token | None
    kind: Kind
    confidence: float | None
    alternatives: list[Alternative]


@dataclass(frozen=True)
class TraceStep:
    """One step of one text.

    Attributes:
        index: 0 for the text's first step.
        t: time before the step, in [0, 1].
        passes: of the network for this text in this step; a cached or skipped one is none.
        changes: by position.
        decided: free positions that hold a token after the step.
    """

    index: int
    t: float
    passes: int
    changes: list[Change]
    decided: int


@dataclass(frozen=True)
class SampleTrace:
    """How one text formed.

    Attributes:
        prompt: what was asked for: a prompt, a text with gaps, or "".
        given: the given token at each of the L positions; ``None`` where the position is free.
        initial: what each position holds before the first step, given tokens included; ``None`` for the mask.
        steps: in order.
        text: the final text, decoded as a whole.
    """

    prompt: str
    given: list[Token | None]
    initial: list[Token | None]
    steps: list[TraceStep]
    text: str

    @property
    def final(self) -> list[Token | None]:
        """What each position holds after the last step; ``None`` for the mask."""
        tokens = list(self.initial)
        for step in self.steps:
            for change in step.changes:
                tokens[change.position] = change.token
        return tokens


@dataclass(frozen=True)
class Trace:
    """How the texts of one request formed.

    Attributes:
        model: name or folder of the model.
        sampler: its name.
        settings: of the sampler and the request, by name.
        seed: of the noise.
        samples: in the order of the request.
        version: of this form.
    """

    model: str
    sampler: str
    settings: dict[str, Setting]
    seed: int
    samples: list[SampleTrace]
    version: int = VERSION

    def to_json(self) -> str:
        """Return the record as JSON: the fields are the keys.

        Raises:
            ValueError: a number that JSON has no form for.
        """
        return json.dumps(self, default=vars, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"

    @staticmethod
    def from_json(text: str) -> Trace:
        """Return the record that `to_json` wrote.

        Raises:
            ValueError: it is not JSON, is of another version, or does not hold together; the message says where.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise damaged("it is not JSON") from error
        version = content.get("version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != VERSION:
            raise ValueError(f"the trace has version {version}, and this dlmkit reads {VERSION}: make it again")
        trace: Trace = read(Trace, content, "trace")
        for index, sample in enumerate(trace.samples):
            _check(sample, f"samples[{index}]")
        return trace


def read_trace(path: Path) -> Trace:
    """Return the trace in a JSON file.

    Raises:
        ValueError: there is none, or a damaged one.
    """
    try:
        return Trace.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): name a file that --trace wrote") from error
    except ValueError as error:  # a damaged one, or bytes that are no text
        raise ValueError(f"{path}: {error}") from error


def _check(sample: SampleTrace, where: str) -> None:
    length = len(sample.given)
    if len(sample.initial) != length:
        raise damaged(f"{where} has {length} positions in given and {len(sample.initial)} in initial")
    tokens = [None if token is None else token.id for token in sample.initial]
    for index, step in enumerate(sample.steps):
        place = f"{where}.steps[{index}]"
        if step.index != index or not 0 <= step.t <= 1 or step.passes < 0 or not 0 <= step.decided <= length:
            raise damaged(f"{place} has a wrong index, t, passes or decided")
        for change in step.changes:
            _check_change(change, tokens, place)


def _check_change(change: Change, tokens: list[int | None], place: str) -> None:
    """Check one change against the ids at each position before it, and apply it to them."""
    if not 0 <= change.position < len(tokens):
        raise damaged(f"{place} changes position {change.position} of {len(tokens)}")
    before, after = tokens[change.position], None if change.token is None else change.token.id
    if (None if change.before is None else change.before.id) != before or change.kind != kind_of(before, after):
        raise damaged(f"{place} does not follow from the steps before it at position {change.position}")
    known = [
        *(() if change.confidence is None else (change.confidence,)),
        *(a.probability for a in change.alternatives),
    ]
    if not all(math.isfinite(p) and 0 <= p <= 1 for p in known):
        raise damaged(f"{place} has a probability outside [0, 1] at position {change.position}")
    tokens[change.position] = after


def kind_of(before: int | None, after: int | None) -> Kind:
    """Return what a change from one id to another is; ``None`` stands for the mask."""
    if after is None:
        return "remasked"
    return "committed" if before is None else "replaced"
