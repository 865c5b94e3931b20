"""The same facts in the terminal, as Markdown, as JSON, and as one page that stands alone."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from ella_cli.errors import SettingsError
from ella_cli.report import (
    figure,
    html,
    make_report,
    markdown,
    matrix_table,
    read_run,
    terminal,
    write_html,
)
from ella_cli.report.document import Document, HeatMap, Lines, Section, Series, Table, Words
from ella_cli.report.svg import line_chart
from ella_cli.report.tables import accuracy_heat_map
from tests.report.conftest import MATRIX, ORDER, curves, printed, write_manifest

WriteRun = Callable[..., Path]
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Tags that open and close in pairs, and everything that could reach outside."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


def test_the_page_stands_alone_and_is_well_formed(write_run: WriteRun, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_html([write_run()], out)
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.seen}
    assert not re.search(r"https?://|url\(|@import", text)
    targets = {attrs["href"] for tag, attrs in page.seen if tag == "a"}
    ids = {f"#{attrs['id']}" for tag, attrs in page.seen if attrs.get("id")}
    assert targets <= ids
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.seen
    )
    assert "prefers-color-scheme: dark" in text


def test_every_score_and_the_command_are_on_the_page(write_run: WriteRun, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    make_report([write_run()]).write(out, command="ella report 'my run'")
    text = out.read_text(encoding="utf-8")
    for row in MATRIX:
        for score in row:
            assert f">{score:.3f}</td>" in text
    for needed in ("figures of merit", "cross-entropy", "‖ΔW‖", "data-of-yaho", "2.13.0",
                   "ella run --order 1", "ella report &#39;my run&#39;"):  # fmt: skip
        assert needed in text


def test_a_name_that_is_markup_stays_a_name_everywhere(write_run: WriteRun) -> None:
    evil = "<script>alert(1)</script>|*x*[red]"
    order = [evil, *ORDER[1:]]
    report = make_report([write_run(order=order, row_scores={})])
    page = html.render(report.document)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in markdown.render(report.document)
    assert "[red]" in printed(terminal.render(report.document), width=400)


def test_curves_are_named_axes_in_well_formed_svg() -> None:
    lines = Lines(
        "t", "step <x>", "loss & more", (Series("a<b", (1.0, 2.0, 3.0), (1.0, None, 3.0)),)
    )
    root = ElementTree.fromstring(line_chart(lines))
    texts = {element.text for element in root.iter("text")}
    assert {"step <x>", "loss & more", "a<b"} <= texts


def test_a_logarithmic_curve_leaves_out_what_has_no_logarithm() -> None:
    zero = Lines("t", "x", "y", (Series("a", (1.0, 2.0), (0.0, None)),), logarithmic=True)
    assert line_chart(zero) == ""
    single = Lines("t", "x", "y", (Series("a", (1.0, 2.0), (0.0, 1.0)),), logarithmic=True)
    assert "<circle" in line_chart(single)


@pytest.mark.parametrize("values", [(0.0, 0.0), (5.0, 5.0), (-3.0, -1.0), (1e-9, 1e9)])
def test_any_range_has_axes(values: tuple[float, float]) -> None:
    ElementTree.fromstring(line_chart(Lines("t", "x", "y", (Series("a", (0.0, 0.0), values),))))


def test_a_tick_keeps_its_digits() -> None:
    drawn = line_chart(Lines("t", "x", "y", (Series("s", (0.0, 1.0), (1e6, 1.25e6)),)))
    for text in ("2.5·10⁵", ">10⁶", "1.25·10⁶"):
        assert text in drawn


@pytest.mark.parametrize(
    ("lam", "label"), [([0.0, 1e3], "ella λ=0,1000"), ([0.0, "auto"], "ella λ=0,auto")]
)
def test_a_lambda_a_task_is_in_the_label(write_run: WriteRun, lam: object, label: str) -> None:
    assert read_run(write_run(**{"lambda": lam})).label == label


def test_a_page_says_what_was_scored_and_after_what(write_run: WriteRun) -> None:
    empty = [[None] * len(ORDER)] * (len(ORDER) - 1)
    run = write_run("a", matrix=[*empty, MATRIX[-1]], validation=20, header=True)
    text = markdown.render(make_report([run]).document)
    assert "20 held-out train rows a task, prompts with the header" in text
    assert accuracy_heat_map(read_run(run)).rows == ("untouched base", "all tasks", "trained alone")


def test_runs_of_other_orders_are_warned_about(write_run: WriteRun) -> None:
    other = list(reversed(ORDER))
    runs = [write_run("a"), write_run("b", order=other, row_scores={})]
    assert "not comparable" in markdown.render(make_report(runs).document)


def test_two_runs_of_one_folder_name_are_told_apart(write_run: WriteRun) -> None:
    names = [
        run["name"] for run in make_report([write_run("x/o1"), write_run("y/o1")]).json["runs"]
    ]
    assert names == ["x/o1", "y/o1"]


def test_the_json_holds_every_number_and_is_strict(write_run: WriteRun, tmp_path: Path) -> None:
    report = make_report([write_run()])
    out = tmp_path / "report.json"
    report.write(out)
    (run,) = json.loads(out.read_text())["runs"]
    assert run["matrix"] == [list(row) for row in MATRIX]
    assert run["figures"]["oa"]["value"] == pytest.approx(0.5)
    assert run["figures"]["oa"]["interval_95"]["low"] < 0.5
    stage = run["stages"][1]
    curves = stage["curves"]
    pairs = zip(curves["weighted_penalty"], curves["ce"], strict=True)
    assert curves["penalty_to_ce"] == pytest.approx([p / c for p, c in pairs])
    assert {warning["kind"] for warning in run["warnings"]} == {"ruling"}


def test_a_curve_that_is_not_finite_is_null_in_the_json(
    write_run: WriteRun, tmp_path: Path
) -> None:
    run = write_run()
    broken = {**curves(3, 1.0), "ce": [math.nan] * 40}
    write_manifest(run / "stages/03-yahoo", "yahoo", 3, "ella", 1.0, curves=broken)
    make_report([run]).write(tmp_path / "n.json")
    written = json.loads((tmp_path / "n.json").read_text())
    assert written["runs"][0]["stages"][2]["curves"]["ce"] == [None] * 40


@pytest.mark.parametrize("ending", [".html", ".md", ".json", ".svg"])
def test_a_name_that_is_no_text_is_written_all_the_same(
    write_run: WriteRun, tmp_path: Path, ending: str
) -> None:
    runs = [write_run(os.fsdecode(b"caf\xe9")), write_run("b")]
    out = tmp_path / f"page{ending}"
    make_report(runs).write(out, command=f"ella report {runs[0]}")
    assert (ending == ".svg") or "caf\\udce9" in out.read_text(encoding="utf-8")


def test_markdown_tables_have_one_cell_a_column(write_run: WriteRun) -> None:
    text = markdown.render(make_report([write_run()]).document)
    blocks = [b.splitlines() for b in text.split("\n\n") if b.startswith("|")]
    assert blocks
    for block in blocks:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block}
        assert len(counts) == 1


def test_a_narrow_terminal_loses_no_figure(write_run: WriteRun) -> None:
    run = read_run(write_run())
    wide, narrow = printed(matrix_table(run), width=140), printed(matrix_table(run), width=44)
    for row in MATRIX:
        for score in row:
            assert f"{score:.3f}" in narrow
    assert "…" not in narrow
    assert max(len(line) for line in narrow.splitlines()) <= 44
    assert wide.count("after training") == 1


def test_output_that_cannot_show_colours_still_shows_numbers(write_run: WriteRun) -> None:
    out = StringIO()
    Console(file=out, width=100, no_color=True).print(matrix_table(read_run(write_run())))
    assert "0.850" in out.getvalue()


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_pictures_are_drawn_without_a_window_system(tmp_path: Path, ending: str) -> None:
    parts = (
        HeatMap("h", "layer", "module", ("0", "1"), ("q", "v"), ((1.0, None), (2.0, 3.0))),
        Lines("l", "index", "σ", (Series("m", (1.0, 2.0), (3.0, 0.0)),), logarithmic=True),
        Words("words have no picture"),
    )
    document = Document("d", (Section("s", parts),))
    out = tmp_path / f"picture.{ending}"
    figure.write(document, out)
    head = out.read_bytes()[:300]
    assert head.startswith(b"\x89PNG") if ending == "png" else b"<svg" in head or b"<?xml" in head


def test_a_picture_of_nothing_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    tables = Document("d", (Section("s", (Table("t", ("a",), ((1,),)),)),))
    with pytest.raises(SettingsError, match="nothing to draw"):
        figure.write(tables, tmp_path / "x.png")
    with pytest.raises(SettingsError, match=r"no \.png"):
        figure.write(tables, tmp_path / "x.gif")
    assert list(tmp_path.iterdir()) == []


def test_no_run_twice_and_none_at_all_are_refused(write_run: WriteRun) -> None:
    folder = write_run()
    with pytest.raises(SettingsError, match="twice"):
        make_report([folder, folder])
    with pytest.raises(SettingsError, match="no run"):
        make_report([])


def test_a_run_by_two_names_is_twice_and_two_runs_of_one_name_are_not(
    write_run: WriteRun, tmp_path: Path
) -> None:
    run = write_run("r4")
    with pytest.raises(SettingsError, match="twice"):
        make_report([run, run / "results.json"])
    kept = tmp_path / "r4.json"
    shutil.copy(run / "results.json", kept)
    report = make_report([run, kept])
    assert [one["name"] for one in report.json["runs"]] == ["r4", "r4.json"]


def test_importing_the_report_loads_no_torch() -> None:
    code = "import sys, ella_cli.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_results_kept_alone_are_a_picture_with_equal_bytes_each_time(
    write_run: WriteRun, tmp_path: Path
) -> None:
    kept = tmp_path / "kept" / "o1-ella.json"
    kept.parent.mkdir()
    kept.write_bytes((write_run() / "results.json").read_bytes())
    report = make_report([kept])
    assert "o1-ella" in printed(terminal.render(report.document))
    pictures = [tmp_path / name for name in ("one.svg", "two.svg")]
    for picture in pictures:
        report.write(picture)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    assert b"dc:date" not in pictures[0].read_bytes()


def test_a_dollar_in_a_name_is_no_formula(write_run: WriteRun, tmp_path: Path) -> None:
    run = write_run(order=["a$\\x$b", *ORDER[1:]])
    make_report([run]).write(tmp_path / "report.svg")
    assert "x$b" in (tmp_path / "report.svg").read_text()


def test_runs_of_one_name_are_told_apart_by_as_many_folders_as_it_takes(
    write_run: WriteRun,
) -> None:
    runs = [write_run(f"{name}/runs/s0") for name in ("a", "b")]
    document = make_report(runs, past=False).json
    assert [run["name"] for run in document["runs"]] == ["a/runs/s0", "b/runs/s0"]


def test_sections_whose_titles_differ_in_signs_only_have_places_of_their_own() -> None:
    titles = ["o1_a", "o1-a", "o1 a 2", "o1.a"]
    page = html.render(Document("", tuple(Section(title, ()) for title in titles)))
    places = re.findall(r'<section id="([^"]*)"', page)
    assert len(set(places)) == len(titles)
    assert re.findall(r'<a href="#([^"]*)"', page) == places
