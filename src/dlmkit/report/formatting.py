"""Formatting numbers as text."""

from __future__ import annotations

import math

from dlmkit.report.load import short_name
from dlmkit.runs import RunSummary

DASH = "\u2013"
SUPERSCRIPTS = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def sign_of(exact: bool) -> str:
    """Return "=" for an exact value and "at most" for a bound."""
    return "=" if exact else "\u2264"


def marked(exact: bool, value: float, stderr: float | None) -> str:
    """Return a value with its sign and its standard error."""
    text = f"{sign_of(exact)} {value:.3f}"
    return text if stderr is None else f"{text} \u00b1 {stderr:.3f}"


def perplexity(nll: float) -> float:
    """Return exp(nll), infinite where that leaves the range of floats."""
    return math.exp(nll) if nll < 700 else math.inf


def tokens_of(summary: RunSummary) -> str:
    """Return own tokens, and those of the run that it started from."""
    total, own = summary.total_tokens, summary.tokens_seen
    if total == own:
        return count(own)
    before = short_name(summary.init_from or "before")
    return f"{count(own)} + {count(total - own)} ({before}) = {count(total)}"


def count(number: float | None) -> str:
    """Return a count with three digits and a unit."""
    if number is None:
        return DASH
    number = float(f"{number:.3g}")
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= scale:
            return f"{number / scale:#.3g}".rstrip(".") + unit
    return f"{number:.3g}"


def short_count(number: float) -> str:
    """Return a count for an axis: as `count`, without zeros at the end."""
    text = count(number)
    digits, unit = text.rstrip("kMBT"), text.lstrip("0123456789.")
    return (digits.rstrip("0").rstrip(".") if "." in digits else digits) + unit


def power(number: float) -> str:
    """Return a large number for an axis, such as 5×10¹³."""
    if number == 0:
        return "0"
    mantissa, _, exponent = f"{number:.3g}".partition("e") if number < 1e4 else f"{number:.2e}".partition("e")
    if not exponent:
        return mantissa
    mantissa = mantissa.rstrip("0").rstrip(".")
    ten = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    return ten if mantissa == "1" else f"{mantissa}×{ten}"


def scientific(number: float | None) -> str:
    """Return a large number such as 3.10e13."""
    if number is None:
        return DASH
    mantissa, _, exponent = f"{number:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def size(number: float | None) -> str:
    """Return bytes in MiB or GiB."""
    if not number:
        return DASH
    return f"{number / 2**30:.2f} GiB" if number >= 2**30 else f"{number / 2**20:.0f} MiB"


def duration(seconds: float | None) -> str:
    """Return a duration in its two largest units."""
    if seconds is None:
        return DASH
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def thousands(number: float | None) -> str:
    """Return a number with separators."""
    return DASH if number is None else f"{number:,.0f}"
