"""The page, the JSON and the terminal: what they show, and that the page loads nothing and trusts nothing."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from dlmkit.commands.report import main
from dlmkit.report.load import Point, collect
from dlmkit.report.page import page
from dlmkit.report.plots import Scale, thin
from dlmkit.report.plots.points import front
from dlmkit.report.terminal import print_tables
from dlmkit.report.write import write_html, write_tables

MakeRun = Callable[..., Path]
VOID = {"meta", "br", "wbr"}


class Reader(HTMLParser):
    """Collects the page's tags, texts and attributes, and checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing(sweep: Path) -> None:
    text = page(collect([sweep]))
    reader = Reader(text)
    assert reader.open == []
    assert not {name for name, _ in reader.attributes} & {"src", "href", "xlink:href", "srcset", "action"}
    assert not {"link", "iframe", "img", "object", "embed"} & set(reader.tags)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttpRequest", text)


def test_what_runs_say_is_escaped(tmp_path: Path, make_run: MakeRun) -> None:
    evil = '<script>alert("1")</script> & so'
    make_run(tmp_path, "a", curve=[5.0, 4.0], text=evil)
    make_run(tmp_path, 'b" onclick="x', curve=[5.5, 4.5], experiment=evil, objective=evil, data_fingerprint=evil)
    text = page(collect([tmp_path]))
    reader = Reader(text)
    assert reader.tags.count("script") == 1
    assert "onclick" not in {name for name, _ in reader.attributes}
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; so 2000" in text  # the last samples, not the first


def test_the_page_shows_results_curves_samples_and_differences(sweep: Path) -> None:
    text = page(collect([sweep]))
    assert "= 4.000 ± 0.010" in text
    assert "≤ 4.900 ± 0.010" in text
    assert "does not prove a worse model" in text
    assert text.count("<mark>In the</mark> beginning") == 4
    assert '<th scope="row">family</th>' in text
    assert "optimizer.lr" not in text
    assert 'class="link"' in text  # from the end of the AR run to the begin of the adapted one
    for kind in ("validation linear", "validation log", "training linear", "training log"):
        assert text.count(f'class="variant {kind}"') == 2


def test_curves_begin_at_the_starting_runs_total(sweep: Path) -> None:
    text = page(collect([sweep]))
    assert re.search(r'data-run="adapted">.*?data-x="2.50M\|3.00M" data-y="5.200 ± 0.020\|4.900 ± 0.010"', text)


def test_warnings_are_shown(sweep: Path, make_run: MakeRun) -> None:
    make_run(sweep, "other", curve=[5.0, 4.0], data_fingerprint="77aa")
    make_run(sweep, "killed", curve=[5.0, 4.0], status="failed", val_nll=None, val_nll_stderr=None)
    text = page(collect([sweep]))
    assert '<p class="warning loud" role="alert">These rows are NOT comparable' in text
    assert "killed is failed, not finished" in text


def test_one_run_makes_a_page(sweep: Path) -> None:
    Reader(page(collect([sweep / "family=ar"])))


def test_many_runs_make_a_page(tmp_path: Path, make_run: MakeRun) -> None:
    for number in range(30):
        make_run(tmp_path, f"lr={number}", curve=[6.0, 5.0 + number / 10], entropy_per_token=3.0)
    Reader(page(collect([tmp_path])))


def test_json_holds_the_tables(sweep: Path, make_run: MakeRun) -> None:
    make_run(sweep, "blown", curve=[5.0, 4.0], val_nll=math.nan)
    file = sweep / "deep" / "tables.json"
    write_tables(collect([sweep]), file)
    tables = json.loads(file.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [run["label"] for run in tables["runs"]] == ["ar", "adapted", "absorbing", "uniform", "blown"]
    assert tables["runs"][0]["val_nll"] == 4.0
    assert tables["runs"][-1]["val_nll"] is None
    assert tables["equal_tokens"][1]["budget"] == 3_000_000
    assert tables["equal_tokens"][1]["val_nll"] == {"ar": None, "adapted": 4.9, "absorbing": 5.3, "uniform": 5.4}
    assert tables["equal_flops"][0]["final"] == {"ar": True, "absorbing": False, "uniform": False}
    assert len(tables["warnings"]) == 1


def test_the_command_prints_tables_and_paths(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([sweep], html=None, json=sweep / "tables.json")
    printed = capsys.readouterr().out
    assert f"report       {sweep / 'report.html'}" in printed
    assert f"tables       {sweep / 'tables.json'}" in printed
    assert (sweep / "report.html").read_text().startswith("<!doctype html>")
    assert "= 4.000 ± 0.010" in printed
    assert "does not prove a worse model" in printed


def test_a_second_report_does_not_read_the_first(sweep: Path) -> None:
    write_html(collect([sweep]), sweep / "report.html")
    write_html(collect([sweep]), sweep / "report.html")
    assert sorted(file.name for file in sweep.iterdir() if file.is_file()) == ["report.html"]


def test_a_folder_is_no_file_to_write(sweep: Path) -> None:
    with pytest.raises(ValueError, match=r"is a folder: name a file in it"):
        main([sweep], html=sweep)


@pytest.mark.parametrize("width", [80, 120, 220])
def test_the_terminal_keeps_every_number_at_any_width(sweep: Path, make_run: MakeRun, width: int) -> None:
    make_run(sweep, "[bold]odd[/bold]", curve=[6.1, 6.0])
    stream = io.StringIO()
    print_tables(collect([sweep]), Console(file=stream, width=width, force_terminal=True, color_system=None))
    printed = stream.getvalue()
    assert max(map(len, printed.splitlines())) <= width
    for number in ("= 4.000 ± 0.010", "≤ 4.900 ± 0.010", "= 1.818 ± 0.005", "15,000", "1.80e7", "[bold]odd[/bold]"):
        assert number in printed


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(("low", "high"), [(1.0, 1.2), (0.3, 7.0), (3e6, 4e9), (1e12, 1e21), (1e-6, 2e-3)])
def test_ticks_are_few_and_inside(low: float, high: float, log: bool) -> None:
    scale = Scale(low, high, 0, 100, log)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 11
    assert all(-1e-6 <= scale(tick) <= 100 + 1e-6 for tick in ticks)


def test_thinning_keeps_the_mean() -> None:
    points = [Point(float(x), float(x % 7)) for x in range(1000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert sum(point.y for point in thinned) / 100 == pytest.approx(sum(point.y for point in points) / 1000)


def test_the_front_holds_what_nothing_beats() -> None:
    points = [Point(1, 5), Point(2, 6), Point(3, 4), Point(4, 4), Point(5, 1)]
    assert front(points) == [Point(1, 5), Point(3, 4), Point(5, 1)]
    assert front(points, lower_is_cheaper=False) == [Point(5, 1)]
