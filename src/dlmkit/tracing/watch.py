"""Texts in a terminal while they form.

Shapes: B texts, L positions, R rows of a step, N positions where it read logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from dlmkit.generation import Beginning, Event
from dlmkit.tracing.visible import visible

SHOWN = 3
"""Texts that are shown at a time."""
FRAME = 2
"""Lines of a panel's border."""
PER_SECOND = 12
MASK_BOX = "\u2591\u2591"

GIVEN, NEW, REMASKED, MASKED = "bold", "black on green", "black on yellow", "dim"


@dataclass
class _Row:
    """One text as it stands: its place, the ids, what was given, and what the last step did."""

    place: int
    ids: list[int]
    fixed: list[bool]
    blank: list[bool]
    changed: list[bool] = field(default_factory=list)
    steps: int = 0
    passes: int = 0
    t: float = 1.0


class Watch:
    """A live view of the first texts of each batch; quiet where the console is no terminal.

    Used as a context manager, with `start` and `step` of :class:`dlmkit.tracing.builder.TraceBuilder`. It draws at most
    twelve times a second, whatever the pace of the steps.

    Args:
        decode: the text of one token, such as a tokenizer's `piece`.
        mask_id: id of the mask; ``None`` for noise without one.
        num_shown: texts that are shown, at least 1; as many as fit the terminal.
        console: where; standard output by default.
    """

    def __init__(
        self, decode: Callable[[int], str], mask_id: int | None, num_shown: int = SHOWN, console: Console | None = None
    ) -> None:
        self._decode = decode
        self._mask_id = mask_id
        self._num_shown = num_shown
        self._console = Console() if console is None else console
        self._rows: list[_Row] = []
        self._live: Live | None = None

    @property
    def quiet(self) -> bool:
        """Whether nothing is shown."""
        return not self._console.is_terminal

    def __enter__(self) -> Self:
        if not self.quiet:
            self._live = Live(
                console=self._console,
                get_renderable=self.__rich__,
                refresh_per_second=PER_SECOND,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def start(self, beginning: Beginning) -> None:
        """Begin a batch."""
        if self.quiet:
            return
        columns = (beginning.places, beginning.tokens, beginning.fixed, beginning.blank)
        shown = (column[: self._num_shown].tolist() for column in columns)
        self._rows = [_Row(*row) for row in zip(*shown, strict=True)]

    def step(self, event: Event) -> None:
        """Show a step."""
        if self.quiet:
            return
        for index, row in enumerate(event.rows.tolist()):
            if row >= len(self._rows):
                continue
            old = self._rows[row]
            read = [False] * len(old.ids) if event.reading is None else event.reading.where[index].tolist()
            filled = [blank and now for blank, now in zip(old.blank, read, strict=True)]
            moved = (event.before[index] != event.after[index]).tolist()
            changed = [a or b for a, b in zip(moved, filled, strict=True)]
            blank = [was and not now for was, now in zip(old.blank, changed, strict=True)]
            count = old.passes + int(event.passes[index])
            ids, time = event.after[index].tolist(), float(event.t[index])
            self._rows[row] = _Row(old.place, ids, old.fixed, blank, changed, old.steps + 1, count, time)

    def __rich__(self) -> Group:
        """Return what is shown now, cut to the terminal's height."""
        rows = list(self._rows)  # a step in another thread may replace one meanwhile
        fitting = max(1, min(len(rows), self._console.height // (FRAME + 2)))
        lines = max(1, (self._console.height - 1) // fitting - FRAME)
        return Group(*(self._panel(row, lines) for row in rows[:fitting]))

    def _panel(self, row: _Row, lines: int) -> Panel:
        text = self._text(row).wrap(self._console, max(10, self._console.width - 4))
        newest = [k for k, line in enumerate(text) if any(span.style in (NEW, REMASKED) for span in line.spans)]
        first = max(0, min(len(text) - lines, (newest[0] if newest else 0) - lines // 2))
        body = Text("\n").join(text[first : first + lines])
        return Panel(body, title=self._title(row), title_align="left", padding=(0, 1))

    def _title(self, row: _Row) -> str:
        free = [i for i, fixed in enumerate(row.fixed) if not fixed]
        decided = sum(not self._is_empty(row, i) for i in free)
        passes = f"{row.passes} pass{'' if row.passes == 1 else 'es'}"
        facts = (str(row.place + 1), f"step {row.steps}", f"{decided} of {len(free)} decided", passes, f"t {row.t:.3f}")
        return " \u00b7 ".join(facts)

    def _is_empty(self, row: _Row, position: int) -> bool:
        return row.blank[position] or row.ids[position] == self._mask_id

    def _text(self, row: _Row) -> Text:
        text = Text()
        for position, token in enumerate(row.ids):
            new = bool(row.changed) and row.changed[position]
            if self._is_empty(row, position):
                text.append(MASK_BOX, style=REMASKED if new else MASKED)
            else:
                style = NEW if new else GIVEN if row.fixed[position] else ""
                text.append(visible(self._decode(token)), style=style)
        return text
