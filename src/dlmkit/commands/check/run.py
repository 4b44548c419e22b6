"""`dlmkit check`: the laws, on the parts that are named or on all of conf/."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from dlmkit.commands.check.candidates import select
from dlmkit.commands.check.show import as_json, failures, not_applicable, table, worst_of
from dlmkit.laws.findings import Finding
from dlmkit.laws.pairing import Job, plan

LAW_VIOLATED = 1
"""Exit code when a law does not hold."""


def main(arguments: Sequence[str], json_file: Path | None) -> int:
    """Run the laws, print the table, and return the exit code.

    Args:
        arguments: part=name and part.key=value; none for all parts of conf/.
        json_file: where the findings go as well.

    Returns:
        0 when every law holds, 1 when one does not.

    Raises:
        ValueError: a part that does not exist, cannot be built, or fits nothing that it was named with.
    """
    begin = time.perf_counter()
    if json_file is not None:
        _check_place(json_file)
    selection = select(arguments)
    jobs = plan(selection.candidates, selection.named)
    console = Console(width=None if sys.stdout.isatty() else 140)
    found, left_out = run(jobs)
    findings = worst_of(found)
    console.print(table(findings))
    for line in failures(findings):
        console.print(Text(line), soft_wrap=True)
    for part, count in left_out.items():
        console.print(Text(f"{count} laws of other parts that rest on {part} were not run"), soft_wrap=True)
    broken = sum(not finding.passed for finding in findings)
    seconds = time.perf_counter() - begin
    num_parts = len({finding.part for finding in findings})
    shown = "1 part" if num_parts == 1 else f"{num_parts} parts"
    console.print(f"{len(findings) - broken} of {len(findings)} laws hold, {shown}, {seconds:.0f} s")
    if json_file is not None:
        json_file.write_text(as_json([*findings, *not_applicable(found)], seconds), encoding="utf-8")
    return LAW_VIOLATED if broken else 0


def _check_place(file: Path) -> None:
    """Check that a file can be written, before a minute is spent on what goes into it."""
    if file.is_dir() or not os.access(file if file.exists() else file.absolute().parent, os.W_OK):
        raise ValueError(f"--json {file} is a folder, or cannot be written: name a file in a folder that can be")


def run(jobs: Sequence[Job]) -> tuple[list[Finding], Counter[str]]:
    """Run the laws behind a progress bar (on a terminal).

    Returns:
        findings: of the laws that were run.
        left_out: for each part that violates a law of its own, how many laws of other parts were not run therefore.
    """
    console, findings, broken, left_out = Console(stderr=True), [], set[str](), Counter[str]()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("laws", total=len(jobs))
        for job in jobs:
            progress.update(task, description=job.part)
            if job.rests_on & broken:
                left_out.update(job.rests_on & broken)
            else:
                found = [_paired(finding, job.paired) for finding in job.run()]
                if not all(finding.passed for finding in found):
                    broken.add(job.subject)
                findings += found
            progress.advance(task)
    return findings, left_out


def _paired(finding: Finding, paired: str) -> Finding:
    meaning = f"{finding.meaning} (with {paired})" if paired and finding.meaning else finding.meaning
    return replace(finding, meaning=meaning)
