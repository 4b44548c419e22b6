"""The live view on a terminal that is none: what it shows, and that what a model wrote acts on nothing."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from traces import HOSTILE, MASK, begun, decode, logits_of, stepped

from dlmkit.tracing.visible import LINE_END, visible
from dlmkit.tracing.watch import MASK_BOX, Watch


def terminal(width: int = 60, height: int = 20) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, color_system="standard")


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rendered(watch: Watch, width: int = 60, height: int = 20) -> str:
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(watch)
    return written(console)


def step(watch: Watch, before: list[list[int]], after: list[list[int]], where: torch.Tensor | None = None) -> None:
    rows = torch.arange(len(before))
    logits = None if where is None else logits_of(*[[1.0]] * int(where.sum()))
    t = torch.full((len(before),), 0.25)
    watch.step(stepped(rows, torch.tensor(before), torch.tensor(after), where, logits, t, torch.ones_like(rows)))


def test_masks_new_tokens_and_progress() -> None:
    with Watch(decode, MASK, console=terminal()) as watch:
        watch.start(begun(torch.tensor([[0, MASK, MASK]]), torch.tensor([[True, False, False]])))
        assert f"the{MASK_BOX}{MASK_BOX}" in rendered(watch)
        assert "step 0 \u00b7 0 of 2 decided \u00b7 0 passes" in rendered(watch)
        step(watch, [[0, MASK, MASK]], [[0, 1, MASK]])
        assert f"the sea{MASK_BOX}" in rendered(watch)
        assert "step 1 \u00b7 1 of 2 decided \u00b7 1 pass \u00b7 t 0.250" in rendered(watch)
        step(watch, [[0, 1, MASK]], [[0, MASK, 2]])
        assert f"the{MASK_BOX} sky" in rendered(watch)


def test_what_changed_is_marked() -> None:
    console = terminal()
    with Watch(decode, MASK, console=console) as watch:
        watch.start(begun(torch.tensor([[0, MASK, 1]]), torch.tensor([[True, False, False]])))
        step(watch, [[0, MASK, 1]], [[0, 2, MASK]])
    console.print(watch)
    shown = written(console)
    assert "\x1b[30;42m sky\x1b[0m" in shown
    assert f"\x1b[30;43m{MASK_BOX}\x1b[0m" in shown
    assert "\x1b[1mthe\x1b[0m" in shown


def test_text_acts_on_no_terminal() -> None:
    assert visible("a\x1b[31m\r\n\u202e\u200d\ud800\x9b") == f"a\\x1b[31m\\r{LINE_END}\\u202e\u200d\\ud800\\x9b"
    with Watch(decode, MASK, console=terminal(100)) as watch:
        watch.start(begun(torch.tensor([[5, 4, 3]]), torch.zeros(1, 3, dtype=torch.bool), places=[6]))
        assert "\u2500 7 \u00b7 step 0" in rendered(watch, width=100)
        shown = rendered(watch, width=100)
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b") + LINE_END + "\\xe2" in shown


def test_it_keeps_to_the_terminal_and_to_where_text_forms() -> None:
    console = terminal(30, 12)
    with Watch(decode, MASK, num_shown=9, console=console) as watch:
        before = torch.full((9, 400), 0)
        before[:, -1] = MASK
        watch.start(begun(before, torch.zeros(9, 400, dtype=torch.bool)))
        after = before.clone()
        after[:, -1] = 2
        step(watch, before.tolist(), after.tolist())
        shown = rendered(watch, 30, 12)
    assert 4 <= len(shown.splitlines()) <= 12
    assert "sky" in shown


def test_a_filler_is_no_token() -> None:
    with Watch(decode, None, console=terminal()) as watch:
        fixed = torch.tensor([[False, False]])
        watch.start(begun(torch.zeros(1, 2, dtype=torch.int64), fixed, blank=~fixed))
        step(watch, [[0, 0]], [[0, 0]], torch.tensor([[True, False]]))
        assert f"the{MASK_BOX}" in rendered(watch)
        assert "1 of 2 decided" in rendered(watch)


@pytest.mark.parametrize("rows", [1, 3])
def test_nothing_is_written_where_there_is_no_terminal(rows: int) -> None:
    console = Console(file=io.StringIO())
    with Watch(decode, MASK, console=console) as watch:
        watch.start(begun(torch.full((rows, 2), MASK), torch.zeros(rows, 2, dtype=torch.bool)))
        step(watch, [[MASK, MASK]] * rows, [[0, 1]] * rows)
        assert watch.quiet
    assert written(console) == ""


def stopped(console: Console) -> None:
    with Watch(decode, MASK, console=console) as watch:
        watch.start(begun(torch.full((1, 2), MASK), torch.zeros(1, 2, dtype=torch.bool)))
        raise KeyError("stopped")


def test_the_terminal_is_left_as_it_was() -> None:
    console = terminal()
    with pytest.raises(KeyError):
        stopped(console)
    assert written(console).count("\x1b[?25l") == written(console).count("\x1b[?25h") == 1  # the cursor is back
