"""The HTML page: one file, no script from elsewhere, readable in the dark and on paper."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from html import escape
from typing import Any

from dlmkit import __version__
from dlmkit.report.compare import differences, equal_budget, seed_groups, warnings_for
from dlmkit.report.plots import Series, line_chart
from dlmkit.report.reading import Run
from dlmkit.report.words import COLUMNS, NOTE, count, row, sign_of

# Okabe and Ito's colours, which people with any kind of colour vision can tell apart.
LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#3a8fb7", "#7a5195", "#555555")
DARK = ("#56b4e9", "#ff9e4a", "#3ecf9f", "#f0a3cb", "#f0e442", "#9bd0ee", "#b794d6", "#bbbbbb")

SMALL_PLOTS = (
    ("train/nll", "training bound", "nats/token"),
    ("train/device/items_per_sec", "speed", "tokens/s"),
    ("train/device/mfu", "utilisation of the machine's peak", "share"),
    ("train/grad_norm", "gradient norm before clipping", "norm"),
    ("lr-AdamW/pg1", "learning rate", "rate"),
    ("attention_ratio", "visible share of the future (annealing)", "ratio"),
)


def page(runs: list[Run]) -> str:
    """Return the page of `runs` as one HTML document."""
    title = _title(runs)
    sections = [
        _warnings(runs),
        _section("Held-out likelihood", _table(COLUMNS, [row(run) for run in runs if run.finished], NOTE)),
        _section("On equal terms", _budgets(runs)),
        _section("Over seeds", _seeds(runs)),
        _section("Curves", _curves(runs)),
        _section("Samples", _samples(runs)),
        _section("What differs between the runs", _differences(runs)),
    ]
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_style()}</style></head><body><main><h1>{escape(title)}</h1>"
        f'<p class="quiet">{now}, dlmkit {__version__}, data {escape(_fingerprints(runs))}</p>{_legend(runs)}'
        + "".join(sections)
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def _title(runs: Sequence[Run]) -> str:
    names = sorted({str(run.summary.get("experiment") or "runs") for run in runs})
    return f"{', '.join(names)}: {len(runs)} runs"


def _fingerprints(runs: Sequence[Run]) -> str:
    return ", ".join(sorted({str(run.summary.get("data_fingerprint")) for run in runs}))


def _legend(runs: Sequence[Run]) -> str:
    items = "".join(
        f'<button type="button" data-run="{escape(run.name)}"><i class="b{number % len(LIGHT)}"></i>'
        f"{escape(run.name)}</button>"
        for number, run in enumerate(runs)
    )
    return f'<nav class="legend" aria-label="runs">{items}</nav>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>" if body else ""


def _warnings(runs: list[Run]) -> str:
    return "".join(f'<p class="warning" role="alert">{escape(message)}</p>' for message in warnings_for(runs))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    caption = f'<p class="quiet">{escape(note)}</p>' if note else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{caption}'


def _budgets(runs: list[Run]) -> str:
    finished = [run for run in runs if run.finished]
    parts = []
    for budget, label in (("total_tokens", "total tokens"), ("total_flops", "total training FLOPs")):
        rows = equal_budget(runs, budget)
        header = [label, *(f"{run.name} ({sign_of(run.summary['nll_is_exact'])})" for run in finished)]
        cells = [[count(entry["budget"]), *(_cell(entry["val_nll"][run.name]) for run in finished)] for entry in rows]
        if cells:
            parts.append(_table(header, cells))
    note = (
        "Validation NLL or bound, nats per token, at the same budget, the run that a run started from counted in."
        " A run's last value is its final validation; others are read off its curve (fewer times t per block, in"
        " the middle of its learning-rate schedule), never beyond it."
    )
    return "".join(parts) + (f'<p class="quiet">{note}</p>' if parts else "")


def _cell(value: float | None) -> str:
    return "\u2013" if value is None else f"{value:.3f}"


def _seeds(runs: list[Run]) -> str:
    groups = seed_groups(runs)
    rows = [
        [
            ", ".join(group["runs"]),
            str(len(group["seeds"])),
            f"{sign_of(group['nll_is_exact'])} {group['val_nll']:.3f} \u00b1 {group['stderr']:.3f}",
        ]
        for group in groups
    ]
    return _table(("runs", "seeds", "mean NLL \u00b1 standard error over seeds"), rows) if rows else ""


def _curves(runs: list[Run]) -> str:
    large = [
        line_chart(f"validation, against {label}", label, "nats/token", _series(runs, budget, "val/nll"))
        for budget, label in (("total_tokens", "total tokens"), ("total_flops", "total FLOPs"))
    ]
    small = [
        line_chart(title, "own tokens", unit, _series(runs, "tokens", column), small=True)
        for column, title, unit in SMALL_PLOTS
    ]
    note = (
        '<p class="quiet">A curve begins at the total of the run that its run started from. Click a run above to hide'
        " it.</p>"
    )
    return f'<div class="plots">{"".join(large)}</div><div class="plots small">{"".join(small)}</div>{note}'


def _series(runs: list[Run], budget: str, metric: str) -> list[Series]:
    return [
        Series(run.name, number % len(LIGHT), sorted(run.against(budget, metric)), dashed=not run.finished)
        for number, run in enumerate(runs)
    ]


def _samples(runs: list[Run]) -> str:
    columns = []
    for number, run in enumerate(runs):
        texts = run.samples.get("samples", [])
        if not texts:
            continue
        how = f"{run.samples['sampler']}, {run.samples['num_steps']} steps, after step {run.samples['step']:,}"
        blocks = "".join(_sample(sample) for sample in texts)
        columns.append(
            f'<article data-run="{escape(run.name)}"><h3><i class="b{number % len(LIGHT)}"></i>{escape(run.name)}</h3>'
            f'<p class="quiet">{escape(how)}</p>{blocks}</article>'
        )
    return f'<div class="samples">{"".join(columns)}</div>' if columns else ""


def _sample(sample: dict[str, Any]) -> str:
    prompt = sample.get("prompt")
    lead = f"<b>{escape(prompt)}</b> " if prompt else ""
    return f"<blockquote>{lead}{escape(sample['text'])}</blockquote>"


def _differences(runs: list[Run]) -> str:
    rows = [
        [key, *("\u2013" if value is None else str(value) for value in values)] for key, values in differences(runs)
    ]
    return _table(["key", *(run.name for run in runs)], rows) if rows else ""


def _style() -> str:
    def colours(palette: Sequence[str]) -> str:
        return "".join(f".s{n}{{stroke:{c}}}.c{n}{{fill:{c}}}.b{n}{{background:{c}}}" for n, c in enumerate(palette))

    return STYLE + colours(LIGHT) + "@media (prefers-color-scheme:dark){" + DARK_STYLE + colours(DARK) + "}"


STYLE = """
:root{--ink:#1c2024;--quiet:#5b6570;--paper:#fff;--panel:#f6f7f9;--line:#dfe3e8}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1360px;margin:0 auto;padding:28px 24px 60px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:18px;margin:36px 0 10px}h3{font-size:15px;margin:0}
.quiet{color:var(--quiet);font-size:13px;margin:6px 0}
.warning{border-left:4px solid #d55e00;background:var(--panel);padding:8px 12px;font-weight:600}
.wide{overflow-x:auto;margin:8px 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--quiet);font-size:13px;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;font-weight:600}
tbody tr:hover{background:var(--panel)}
i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:7px}
.legend{position:sticky;top:0;background:var(--paper);padding:8px 0;display:flex;gap:8px;flex-wrap:wrap;z-index:1}
.legend button{font:inherit;color:inherit;background:var(--panel);border:1px solid var(--line);border-radius:16px;
padding:3px 12px;cursor:pointer}
.legend button[aria-pressed=true]{opacity:.4;text-decoration:line-through}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:18px}
.plots.small{grid-template-columns:repeat(auto-fit,minmax(300px,1fr));margin-top:18px}
figure{margin:0;background:var(--panel);border-radius:8px;padding:10px 10px 4px}
figcaption{font-weight:600;font-size:14px;padding-left:6px}
svg{width:100%;height:auto;display:block}svg text{font-size:12px;fill:var(--quiet)}
.grid{stroke:var(--line)}.axis{stroke:var(--quiet)}
polyline{fill:none;stroke-width:2;stroke-linejoin:round}circle:hover{r:6}
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(260px,1fr));gap:18px}
.samples article{background:var(--panel);border-radius:8px;padding:12px 14px}
blockquote{margin:10px 0;font:14px/1.5 Georgia,serif;white-space:pre-wrap;overflow-wrap:anywhere;
border-top:1px solid var(--line);padding-top:8px}
.hidden{display:none}
@media print{.legend{position:static}section{break-inside:avoid}}
"""

DARK_STYLE = ":root{--ink:#e8eaed;--quiet:#a2abb5;--paper:#15181b;--panel:#1d2226;--line:#333a41}"

SCRIPT = """
for (const button of document.querySelectorAll('.legend button')) button.onclick = () => {
  const off = button.getAttribute('aria-pressed') !== 'true';
  button.setAttribute('aria-pressed', off);
  for (const part of document.querySelectorAll('.series, article'))
    if (part.dataset.run === button.dataset.run) part.classList.toggle('hidden', off);
};
"""
