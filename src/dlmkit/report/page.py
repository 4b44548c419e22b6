"""The HTML page: one file that loads nothing, with a light, a dark and a printed style."""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from dlmkit import __version__
from dlmkit.report.compare import differences, warnings_for
from dlmkit.report.figures import cost_figures, curve_figures, likelihood_figure, looks, small_figures
from dlmkit.report.formatting import DASH, sign_of, thousands
from dlmkit.report.load import Run
from dlmkit.report.tables import BOUNDS_NOTE, Cell, Table, budget_tables, run_table, seed_table

ASSETS = Path(__file__).parent / "assets"

PROVENANCE = (
    "status", "steps", "precision", "val_tokens", "val_t_grid", "init_from", "data_fingerprint", "git_commit",
    "dlmkit_version",
)  # fmt: skip

HOW_TO_READ = (
    "<b>=</b> and filled dots: the exact negative log-likelihood of held-out text (autoregressive models)."
    " <b>\u2264</b> and hollow dots: an upper bound on it (diffusion models), the true value lies at or below. Lower is"
    " better. The budget of a run that started from another one includes that run\u2019s tokens and FLOPs, and its"
    " curve begins where the other\u2019s ends (dotted)."
)
COST_NOTE = (
    "The line joins the runs that no other run beats in both. It compares bounds like exact values, which is to their"
    " disadvantage."
)


def page(runs: Sequence[Run]) -> str:
    """Return the page of `runs` as one HTML document."""
    look = looks(runs)
    title = _title(runs)
    sections = [
        _section("Held-out likelihood", _likelihood(runs, look)),
        _section("On equal terms", _budgets(runs, look)),
        _section("Over seeds", _seeds(runs)),
        _section("Curves", _curves(runs, look)),
        _section("What it cost", _costs(runs, look)),
        _section("Samples", _samples(runs, look)),
        _section("What differs in the configuration", _differences(runs, look)),
        _section("Provenance", _provenance(runs, look)),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><style>{_asset("page.css")}</style></head><body><main>'
        f'<header><h1>{escape(title)}</h1><p class="quiet">{escape(_facts(runs))}</p></header>'
        f'{_warnings(runs)}<p class="how">{HOW_TO_READ}<br>{escape(BOUNDS_NOTE)}</p>{_legend(runs, look)}'
        + "".join(sections)
        + f'</main><div class="tip" role="status" hidden></div><script>{_asset("page.js")}</script></body></html>\n'
    )


def _title(runs: Sequence[Run]) -> str:
    names = sorted({run.summary.experiment or "runs" for run in runs})
    return f"{', '.join(names)}: {_plural(len(runs), 'run')}"


def _facts(runs: Sequence[Run]) -> str:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    versions = sorted({run.summary.dlmkit_version for run in runs})
    data = sorted({run.summary.data_fingerprint for run in runs if run.finished})
    scored = sorted({run.summary.val_tokens for run in runs if run.summary.val_tokens})
    facts = [
        f"{sum(run.finished for run in runs)} of {len(runs)} finished",
        f"data {', '.join(data)}",
        f"{' or '.join(thousands(number) for number in scored)} validation tokens" if scored else "",
        f"written {now} by dlmkit {__version__}",
        f"trained by dlmkit {', '.join(versions)}" if versions != [__version__] else "",
    ]
    return " \u00b7 ".join(filter(None, facts))


def _warnings(runs: Sequence[Run]) -> str:
    return "".join(
        f'<p class="warning{" loud" if "NOT comparable" in message else ""}" role="alert">{escape(message)}</p>'
        for message in warnings_for(runs)
    )


def _legend(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    items = "".join(
        f'<button type="button" class="{look[run.label]}" data-run="{escape(run.label)}" aria-pressed="false">'
        f"{_mark(run)}{escape(run.label)}<small>{_kind(run)}</small></button>"
        for run in runs
    )
    hint = '<span class="quiet controls">click hides, hover highlights</span>' if len(runs) > 1 else ""
    return f'<nav class="legend" aria-label="runs">{items}{hint}</nav>'


def _mark(run: Run) -> str:
    kind = "dot" if run.exact else "dot hollow"
    return (
        '<svg class="mark" viewBox="0 0 30 12" aria-hidden="true"><polyline points="1,6 29,6"/>'
        f'<circle class="{kind}" cx="15" cy="6" r="4"/></svg>'
    )


def _kind(run: Run) -> str:
    if not run.finished:
        return escape(run.summary.status)
    if not math.isfinite(run.val_nll):
        return "diverged"
    return f"{sign_of(run.exact)} {'exact' if run.exact else 'bound'}"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _likelihood(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    figure = likelihood_figure(runs, look)
    details = {run.label: _description(run) for run in runs}
    table = _table(run_table(runs), look, details, titled=False)
    return f'<figure class="intervals">{figure}</figure><div class="main">{table}</div>'


def _description(run: Run) -> str:
    s = run.summary
    return " \u00b7 ".join(filter(None, (s.objective, s.process, s.corruption, s.schedule, s.t_sampler, s.backbone)))


def _budgets(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    tables = budget_tables(runs)
    shown = "".join(f"<div>{_table(replace(table, note=''), look)}</div>" for table in tables)
    return f'<div class="beside">{shown}</div><p class="quiet">{escape(tables[-1].note)}</p>' if tables else ""


def _seeds(runs: Sequence[Run]) -> str:
    table = seed_table(runs)
    return "" if table is None else _table(table, {}, titled=False)


def _table(table: Table, look: Mapping[str, str], details: Mapping[str, str] | None = None, titled: bool = True) -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(
        _table_row(row, label, look, (details or {}).get(label or "", ""))
        for row, label in zip(table.rows, table.runs, strict=True)
    )
    title = f"<h3>{escape(table.title)}</h3>" if titled else ""
    note = f'<p class="quiet">{escape(table.note)}</p>' if table.note else ""
    return (
        f'{title}<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        f"</div>{note}"
    )


def _table_row(row: Sequence[Cell], label: str | None, look: Mapping[str, str], detail: str) -> str:
    swatch = "" if label is None else '<i class="swatch"></i>'
    small = f"<small>{escape(detail)}</small>" if detail else ""
    first = f'<th scope="row">{swatch}{escape(row[0].text)}{small}</th>'
    rest = "".join(f"<td{_sort_key(cell)}>{escape(cell.text)}</td>" for cell in row[1:])
    marks = "" if label is None else f' class="{look[label]}" data-run="{escape(label)}"'
    return f"<tr{marks}>{first}{rest}</tr>"


def _sort_key(cell: Cell) -> str:
    return "" if cell.value is None else f' data-value="{cell.value!r}"'


def _curves(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    large = curve_figures(runs, look)
    if not large:
        return ""
    training = 'class="variant training' in large
    controls = _choice("what", ("validation", "training")) if training else ""
    controls += _choice("axis", ("linear", "log"))
    note = (
        "Bars are one standard error. Validations during training may use fewer times t or sequences than the final"
        " one, so that a curve can step at its end. Training curves are means of neighbouring steps, at most 90 points."
    )
    small = small_figures(runs, look)
    return (
        f'<div class="curves" data-what="validation" data-axis="linear"><div class="controls">{controls}</div>'
        f'<div class="plots large">{large}</div></div><p class="quiet">{note}</p>'
        + (f'<div class="plots small">{small}</div>' if small else "")
    )


def _choice(name: str, values: Sequence[str]) -> str:
    labels = {"validation": "validation", "training": "training", "linear": "linear x", "log": "log x"}
    buttons = "".join(
        f'<button type="button" data-choice="{name}" data-value="{value}"'
        f' aria-pressed="{"true" if value == values[0] else "false"}">{labels[value]}</button>'
        for value in values
    )
    return f'<span class="choice" role="group">{buttons}</span>'


def _costs(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    figures = cost_figures(runs, look)
    return f'<div class="plots small">{figures}</div><p class="quiet">{COST_NOTE}</p>' if figures else ""


def _samples(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    shown = [run for run in runs if run.samples.get("samples")]
    if not shown:
        return ""
    head = "".join(
        f'<div class="head {look[run.label]}" data-run="{escape(run.label)}"><b><i class="swatch"></i>'
        f'{escape(run.label)}</b><p class="quiet">{escape(_how(run.samples))}</p></div>'
        for run in shown
    )
    texts = {run.label: _by_prompt(run.samples) for run in shown}
    keys = dict.fromkeys(key for run in shown for key in texts[run.label])
    body = "".join(_sample_row(key, shown, texts) for key in keys)
    return f'<div class="wide"><div class="samples" style="--runs:{len(shown)}">{head}{body}</div></div>'


def _how(record: Mapping[str, Any]) -> str:
    facts = [str(record.get("sampler", "")), f"{record['num_steps']} steps" if "num_steps" in record else ""]
    facts.append(f"temperature {record['temperature']:g}" if record.get("temperature") is not None else "")
    return ", ".join(filter(None, [*facts, f"after training step {int(record['step']):,}"]))


def _by_prompt(record: Mapping[str, Any]) -> dict[tuple[str, int], str]:
    """Return (prompt, number of earlier samples with it) -> text, so that equal prompts are shown side by side."""
    before: defaultdict[str, int] = defaultdict(int)
    found = {}
    for sample in record["samples"]:
        prompt = sample.get("prompt") or ""
        found[prompt, before[prompt]] = str(sample.get("text", ""))
        before[prompt] += 1
    return found


def _sample_row(key: tuple[str, int], runs: Sequence[Run], texts: Mapping[str, Mapping[tuple[str, int], str]]) -> str:
    prompt, _ = key
    lead = f'<div class="prompt">prompt: <q>{escape(prompt)}</q></div>' if prompt else ""
    return lead + "".join(
        f'<blockquote data-run="{escape(run.label)}" tabindex="0">{_sample_text(prompt, texts[run.label].get(key))}'
        "</blockquote>"
        for run in runs
    )


def _sample_text(prompt: str, text: str | None) -> str:
    if text is None:
        return DASH
    if prompt and text.startswith(prompt):
        return f"<mark>{escape(prompt)}</mark>{escape(text.removeprefix(prompt))}"
    return escape(text)


def _differences(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    rows = [(key, ["" if value is None else _value(value) for value in values]) for key, values in differences(runs)]
    return _by_run(rows, runs, look) if rows and len(runs) > 1 else ""


def _provenance(runs: Sequence[Run], look: Mapping[str, str]) -> str:
    rows = [("folder", [str(run.folder) for run in runs])]
    summaries = [run.summary.to_dict() for run in runs]
    rows += [(key, [_value(summary[key]) for summary in summaries]) for key in PROVENANCE]
    return f"<details><summary>folders, commits, data</summary>{_by_run(rows, runs, look)}</details>"


def _by_run(rows: Sequence[tuple[str, Sequence[str]]], runs: Sequence[Run], look: Mapping[str, str]) -> str:
    head = "".join(
        f'<th scope="col" class="{look[run.label]}"><i class="swatch"></i>{escape(run.label)}</th>' for run in runs
    )
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th>'
        + "".join(f"<td>{_breakable(value)}</td>" for value in values)
        + "</tr>"
        for key, values in rows
    )
    return (
        f'<div class="wide"><table class="settings"><thead><tr><th scope="col">key</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _breakable(value: str) -> str:
    """Let long dotted names and paths break at dots and slashes."""
    text = escape(value)
    return text.replace(".", ".<wbr>").replace("/", "/<wbr>") if len(value) > 16 else text


def _value(value: Any) -> str:
    return DASH if value is None else f"{value:,}" if type(value) is int else str(value)


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@cache
def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
