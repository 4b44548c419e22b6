"""What `dlmkit check` prints: the table of laws, what each violation means, and the same as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table

from dlmkit.laws.findings import Finding


def worst_of(findings: Sequence[Finding]) -> list[Finding]:
    """Return one finding for each law and part: the one nearest to failing, or failing most; none that do not apply."""
    worst: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        if not finding.applies:
            continue
        key = (finding.part, finding.law)
        if key not in worst or (finding.passed, -finding.severity) < (worst[key].passed, -worst[key].severity):
            worst[key] = finding
    order = {part: number for number, part in enumerate(dict.fromkeys(part for part, _ in worst))}
    return sorted(worst.values(), key=lambda finding: order[finding.part])


def not_applicable(findings: Sequence[Finding]) -> list[Finding]:
    """Return the laws that do not apply to a part, with the reason, one for each law and part."""
    return list({(one.part, one.law): one for one in findings if not one.applies}.values())


def table(findings: Sequence[Finding]) -> Table:
    """Return the table of law, part, measured value, tolerance and verdict."""
    out = Table("part", "law", title="laws")
    for name in ("measured", "tolerance"):
        out.add_column(name, justify="right", no_wrap=True)
    out.add_column("", no_wrap=True)
    before = ""
    for finding in findings:
        if before not in ("", finding.part):
            out.add_section()
        verdict = "[green]pass[/green]" if finding.passed else "[red]FAIL[/red]"
        sign = "≥" if finding.at_least else "≤"
        shown = "" if finding.part == before else finding.part
        out.add_row(shown, finding.law, f"{finding.measured:.2g}", f"{sign} {finding.tolerance:.2g}", verdict)
        before = finding.part
    return out


def failures(findings: Sequence[Finding]) -> list[str]:
    """Return what each failure means, one line each; laws that fail for one reason share it."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if not finding.passed:
            reasons.setdefault((finding.part, finding.meaning), []).append(finding.law)
    return [f"FAIL {part}: {'; '.join(laws)}: {meaning}" for (part, meaning), laws in reasons.items()]


def as_json(findings: Sequence[Finding], seconds: float) -> str:
    """Return the findings as JSON; a number that is not finite is null."""
    rows = []
    for finding in findings:
        row = asdict(finding)
        row["measured"] = finding.measured if math.isfinite(finding.measured) else None
        rows.append(row)
    passed = all(finding.passed for finding in findings)
    return json.dumps({"passed": passed, "seconds": round(seconds, 1), "findings": rows}, indent=2) + "\n"
