"""Outputs that are full, closed, of another encoding, or read by nobody; devices and links in the place of files."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from dlmkit.cli import main
from dlmkit.commands.streams import BROKEN_PIPE
from dlmkit.files import write_text
from toy_runs import MODEL, SMALL, TOY, dlmkit, summary, text_corpus, text_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stream")
    data = text_data(text_corpus(folder / "t.txt"))
    outcome = dlmkit("train", *MODEL, *SMALL, *data, f"hydra.run.dir={folder}/run", "budget.tokens=64")
    assert outcome.code == 0, outcome.err
    return folder / "run"


@contextlib.contextmanager
def output(file: IO[str]) -> Iterator[io.StringIO]:
    """Make a file the standard output, and give what goes to standard error."""
    err = io.StringIO()
    with contextlib.redirect_stdout(file), contextlib.redirect_stderr(err):
        yield err


@contextlib.contextmanager
def gone() -> Iterator[IO[str]]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    file = os.fdopen(writer, "w")
    yield file
    with contextlib.suppress(BrokenPipeError):  # it still holds what it could not pass on
        file.close()


SAMPLE = ["--steps", "1", "--prompt", "grüße"]


def test_a_full_output_is_one_line(run: Path) -> None:
    with open("/dev/full", "w") as full, output(full) as err:
        assert main(["sample", str(run), *SAMPLE]) == 2
    assert err.getvalue() == "dlmkit sample: the output could not be written (No space left on device)\n"


def test_a_reader_that_has_gone_is_no_error(run: Path) -> None:
    with gone() as pipe, output(pipe) as err:
        assert main(["sample", str(run), *SAMPLE]) == BROKEN_PIPE
    assert err.getvalue() == ""


def test_letters_that_an_output_lacks_are_escaped(run: Path) -> None:
    raw = io.BytesIO()
    with output(io.TextIOWrapper(raw, encoding="ascii")):
        assert main(["sample", str(run), *SAMPLE]) == 0
        sys.stdout.flush()
        assert b"gr\\xfc\\xdfe" in raw.getvalue()


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "<&- 1>&- 2>&-"])
def test_closed_streams(run: Path, closed: str) -> None:
    command = f"{sys.executable} -m dlmkit.cli report {run} --json report.json {closed}"
    assert subprocess.run(["bash", "-c", command], check=False).returncode == 0
    assert Path("report.json").is_file()


def test_a_run_goes_on_when_nobody_reads_its_lines() -> None:
    with gone() as pipe, contextlib.redirect_stderr(pipe):
        assert main(["train", *TOY, "hydra.run.dir=run", "budget.tokens=32"]) == 0
    assert summary(Path("run"))["status"] == "finished"


def test_sampling_prints_the_text_alone(run: Path) -> None:
    outcome = dlmkit("sample", str(run), "--steps", "1")
    assert (outcome.code, outcome.err) == (0, "")
    outcome = dlmkit("export", str(run), "exported")
    assert (outcome.code, outcome.err) == (0, "")
    outcome = dlmkit("sample", "exported", "--steps", "1")
    assert (outcome.code, outcome.err) == (0, "")


def test_a_pipe_is_written_to_and_not_replaced() -> None:
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(Path("pipe"), "text")
    assert (os.read(reader, 9), Path("pipe").is_fifo()) == (b"text", True)
    os.close(reader)


def test_a_link_to_a_page_stays(run: Path) -> None:
    Path("elsewhere").mkdir()
    os.symlink("elsewhere/page.html", "page.html")
    os.symlink("elsewhere/tables.json", "tables.json")
    assert dlmkit("report", str(run), "--html", "page.html", "--json", "tables.json").code == 0
    assert Path("page.html").is_symlink()
    assert {path.name for path in Path("elsewhere").iterdir()} == {"page.html", "tables.json"}


def test_a_page_that_cannot_be_written_is_named(run: Path) -> None:
    Path("file").write_text("x")
    line = dlmkit("report", str(run), "--html", "/proc/page.html").line
    assert line.startswith("dlmkit report: '/proc/page.html' cannot be used (")
