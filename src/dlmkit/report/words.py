"""How numbers are written in tables."""

from __future__ import annotations

import math
from typing import Any

from dlmkit.report.reading import Run

COLUMNS = (
    "run", "NLL (nats/token)", "perplexity", "bits/byte", "tokens (own + before = total)", "FLOPs in all",
    "parameters", "tokens/s", "peak memory", "time", "seed",
)  # fmt: skip

NOTE = (
    "= is an exact negative log-likelihood, \u2264 an upper bound on it; \u00b1 is one standard error over validation"
    " blocks. A bound above an exact value does not prove a worse model."
)


def row(run: Run) -> list[str]:
    """Return the cells of a finished run, in the order of `COLUMNS`."""
    s = run.summary
    sign = sign_of(s["nll_is_exact"])
    nll, error = float(s["val_nll"]), float(s["val_nll_stderr"])
    bpb = s.get("val_bpb")
    return [
        run.name,
        f"{sign} {nll:.3f} \u00b1 {error:.3f}" + _above_entropy(s),
        f"{sign} {math.exp(nll):.1f} \u00b1 {math.exp(nll) * error:.1f}",
        "\u2013" if bpb is None else f"{sign} {bpb:.3f} \u00b1 {bpb * error / nll:.3f}",
        tokens_of(s),
        f"{s['total_flops']:.2e}",
        count(s.get("params")),
        "\u2013" if s.get("tokens_per_second") is None else f"{s['tokens_per_second']:,.0f}",
        size(s.get("peak_memory_bytes")),
        duration(s.get("wall_seconds")),
        str(s["seed"]),
    ]


def sign_of(exact: bool) -> str:
    """Return "=" for an exact value and "at most" for a bound."""
    return "=" if exact else "\u2264"


def tokens_of(summary: dict[str, Any]) -> str:
    """Return own tokens, and those of the run that it started from."""
    total, own = summary["total_tokens"], summary["tokens_seen"]
    if total == own:
        return count(own)
    before = str(summary.get("init_from") or "before").removeprefix("family=")
    return f"{count(own)} + {count(total - own)} ({before}) = {count(total)}"


def count(number: float | None) -> str:
    """Return a count with three digits and a unit."""
    if number is None:
        return "\u2013"
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"


def size(number: float | None) -> str:
    """Return bytes in MiB or GiB."""
    if not number:
        return "\u2013"
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Return a duration in minutes and seconds, or hours and minutes."""
    if seconds is None:
        return "\u2013"
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60}:{whole % 60:02d}"


def _above_entropy(summary: dict[str, Any]) -> str:
    entropy = summary.get("entropy_per_token")
    return "" if entropy is None else f" (entropy {entropy:.3f} + {summary['val_nll'] - entropy:.3f})"
