"""`toolkit report`: what it gathers, its verdicts, how each format says it, and its page in a real browser."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit
from tests.engine_bundles import engine_bundle
from tests.refusals import assert_refused, in_process
from tests.reporting import (
    BLIND,
    EVIL,
    SENSITIVITY,
    Page,
    bare,
    contrast,
    emulated,
    lab,
    linear,
    measured,
    replaced,
    written,
)  # fmt: skip
from tests.test_light_imports import hidden_in_children
from toolkit import reports
from toolkit.bench import compare
from toolkit.bench.record import Energy, Record, Value, Window
from toolkit.bench.steps import Wanted
from toolkit.errors import InputError
from toolkit.reports import drawing, gather, markdown, page, sections, text, values
from toolkit.reports.blocks import Cards, Figure, Folded, Table
from toolkit.reports.data import Budgets, Report
from toolkit.reports.sections import pareto, verdict

MOST_BYTES = 2_000_000
WIDTHS = (360, 768, 1440)
CHROMIUM = shutil.which("chromium")
# As the browser device: nothing that reaches out by itself.
QUIET = [
    "--headless", "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--disable-quic",
]  # fmt: skip


@pytest.fixture(scope="module")
def other(encoder: Path, reviews: Path) -> Path:
    return engine_bundle("onnxruntime", encoder, reviews)


@pytest.fixture(scope="module")
def record(bundle: Path) -> Record:
    """Of the conversion's bundle."""
    return measured(bundle)


@pytest.fixture(scope="module")
def profiled(other: Path) -> Record:
    """Of another bundle, with its operators."""
    return measured(other, operators=True, sweep={"threads": [1, 2]})


@pytest.fixture(scope="module")
def sustained(other: Path) -> Record:
    return measured(other, sustain_seconds=1.0)


@pytest.fixture(scope="module")
def full(bundle: Path, other: Path, record: Record, profiled: Record, sustained: Record) -> Report:
    """Everything that can be had on this machine."""
    made = reports.make([bundle], max_latency_ms=1000.0, max_size_mb=1000.0)
    made.records = [record, profiled, sustained]
    bundles = [str(other), str(other)]
    made.comparisons = [compare.compare(bundles, wanted=Wanted(seconds=0.2))]
    made.sensitivities = [gather._sensitivity(SENSITIVITY, "artifact", Path("sensitivity.json"))]
    return made


# --- what is gathered


def test_bundles_records_and_reports_are_read(
    tmp_path: Path, bundle: Path, record: Record, profiled: Record, full: Report
) -> None:
    one, two = written(tmp_path, "one.json", record), written(tmp_path, "two.json", record, profiled)
    (tmp_path / "sensitivity.json").write_text(json.dumps(SENSITIVITY))
    made = reports.make([bundle, one, two, tmp_path / "sensitivity.json"])
    assert made.records == [record, profiled]  # each once
    assert [each.content_hash for each in made.conversions] == [record.bundle.content_hash]
    assert made.conversion_of(record) is made.conversions[0]
    assert made.conversion_of(profiled) is None
    assert [layer.layer for layer in made.sensitivities[0].layers] == ["a", "b"]
    made.comparisons = full.comparisons
    reports.write(made, [tmp_path / "report.json"])
    assert reports.make([tmp_path / "report.json"]) == made
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(two, folder)
    assert reports.make([folder]).records == [record, profiled]


def test_the_chain_is_what_the_manifest_says(bundle: Path) -> None:
    found = reports.make([bundle]).conversions[0]
    manifest = json.loads((bundle / "manifest.json").read_text())
    metrics = manifest["metrics"]
    first, last = found.chain[0], found.chain[-1]
    assert (first.score, first.size_bytes) == (metrics["score"]["before"], metrics["size"]["before_bytes"])
    assert (last.score, last.size_bytes) == (metrics["score"]["after"], metrics["size"]["after_bytes"])
    assert last.latency_ms == metrics["latency"]["after"]["ms"]
    assert found.chosen == metrics["chosen"]
    assert found.budgets.min_score == "97%"
    assert {each.title for each in found.stages} >= {"prepare data", "finetune"}
    counted = next(each["score_examples"] for each in metrics["candidates"] if each["name"] == found.chosen)
    for point in found.chain:  # a score of other examples does not stand beside the others
        assert point.score is None or point.score_examples == counted


def test_labels_tell_records_apart(record: Record) -> None:
    def labels(*made: Record) -> list[str]:
        return Report(toolkit="0", records=list(made)).labels()

    name, device = record.bundle.name, record.device.title
    assert labels(record) == [name]
    threads = record.model_copy(update={"protocol": record.protocol.model_copy(update={"threads": 2})})
    assert labels(record, threads) == [f"{name}, 1 thread", f"{name}, 2 threads"]
    board = record.model_copy(update={"device": record.device.model_copy(update={"title": "Board"})})
    assert labels(record, board) == [device, "Board"]
    assert labels(record, record.model_copy()) == [f"{name}, run 1", f"{name}, run 2"]


def test_comparisons_are_told_as_pairs(full: Report, record: Record, tmp_path: Path) -> None:
    comparison = full.comparisons[0]
    path = tmp_path / "comparison.json"
    path.write_text(comparison.model_dump_json())
    made = reports.make([path])
    assert made.comparisons == [comparison]
    (pair,) = made.all_pairs()
    assert (pair.ratio, pair.low, pair.high) == tuple(
        getattr(comparison.ratios[0], n) for n in ("ratio", "low", "high")
    )
    shown = reports.render(made, ".md")
    assert f"{comparison.bundles[0].name} against itself: within" in shown
    # What `toolkit compare --baseline` writes.
    stored = comparison.ratios[0].model_copy(update={"how": "stored"})
    document = {"record": json.loads(record.model_dump_json()), "ratios": [stored.model_dump()]}
    path.write_text(json.dumps(document))
    made = reports.make([path])
    assert made.records == [record]
    assert (made.pairs[0].b, made.pairs[0].verdict) == ("the stored record", stored.verdict)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["cannot be read as JSON"]),
        ("[1]", ["does not hold a JSON object"]),
        ('{"a": 1}', ["no record of `toolkit bench -o`"]),
        ('{"bundle": {}, "protocol": {}, "schema_version": 99}', ["schema version 99", "Update the toolkit"]),
        ('{"bundle": {}, "protocol": {}, "schema_version": 1}', ["older toolkit", "measure again"]),
        ('{"bundle": {}, "protocol": {}, "schema_version": 2}', ["kind", "Field required"]),
        ('{"bundle": {}, "protocol": {}, "schema_version": 2, "x": NaN}', ["NaN"]),
    ],
)
def test_what_is_no_record_is_refused(
    content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "record.json"
    path.write_text(content)
    done = in_process(["report", str(path), "-o", str(tmp_path / "report.html")], capsys)
    assert_refused(done, str(path), *words)
    assert not (tmp_path / "report.html").exists()


def test_outputs_that_would_do_damage_are_refused(
    tmp_path: Path, bundle: Path, record: Record, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, "record.json", record)
    before = path.read_bytes(), (bundle / "report.html").read_bytes()
    for output, words in (
        (path, "is one of the inputs"),
        (bundle / "report.html", "lies in a bundle"),
        (bundle / "golden" / "report.md", "lies in a bundle"),
        (tmp_path / "report.pdf", "ends with .html"),
        (tmp_path / "missing" / "report.md", "does not exist"),
    ):
        done = in_process(["report", str(path), "-o", str(tmp_path / "first.md"), "-o", str(output)], capsys)
        assert_refused(done, str(output.parent if "exist" in words else output), words)
    assert (path.read_bytes(), (bundle / "report.html").read_bytes()) == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["record.json"]


def test_without_matplotlib_the_page_is_refused_and_the_rest_is_written(tmp_path: Path, record: Record) -> None:
    path = written(tmp_path, "record.json", record)
    environ = hidden_in_children({"matplotlib"}, tmp_path / "hidden")
    done = run_toolkit("report", path, "-o", tmp_path / "a.md", "-o", tmp_path / "a.html", environ=environ)
    assert_refused(done, "'edge-deployment-toolkit[report]'", code=3)
    assert not (tmp_path / "a.md").exists()
    done = run_toolkit("report", path, "-o", tmp_path / "a.md", "-o", tmp_path / "a.csv", environ=environ)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.md").exists()


# --- verdicts


@pytest.mark.parametrize(
    ("budgets", "met"),
    [
        ({"max_latency_ms": 3.2}, True),
        ({"max_latency_ms": 2.7}, False),
        ({"max_latency_ms": 3.05}, None),  # inside the interval
        ({"max_size_mb": 25.0}, True),
        ({"max_size_mb": 23.0}, False),
        ({"min_score": "0.83"}, True),
        ({"min_score": "0.84"}, False),
        ({"min_score": "99%"}, None),  # of a float checkpoint that nothing tells
    ],
)
def test_a_budget_is_kept_missed_or_not_known(budgets: dict[str, Any], met: bool | None, record: Record) -> None:
    made = record.model_copy(deep=True)
    assert made.latency is not None
    made.latency.mean_ms = Value(value=3.0, low=2.9, high=3.1)
    made.bundle.artifact_bytes, made.bundle.score = 24_000_000, 0.835
    (check,) = verdict.of_record(made, None, Budgets(**budgets))
    assert check.met is met
    words = {True: "✓ keeps the budget", False: "✗ misses", None: "? not known"}[met]
    assert words in verdict.whole([check], failed=False, accepted=True).text


def test_no_time_of_an_emulated_device_keeps_a_budget(record: Record) -> None:
    made = record.model_copy(update={"kind": "emulated", "clock": "virtual time"})
    (check,) = verdict.of_record(made, None, Budgets(max_latency_ms=1e9))
    assert check.met is None
    assert "emulated, virtual time" in check.found


def test_a_failed_run_and_a_refused_conversion_are_never_good_enough(record: Record, bundle: Path) -> None:
    assert verdict.whole([], failed=True, accepted=True).tone == "bad"
    assert verdict.whole([], failed=False, accepted=False).tone == "bad"
    refused = reports.make([bundle])
    refused.conversions[0].accepted = False
    refused.conversions[0].refusals = ["score: 0.5 is below 0.8"]
    refused.records = [record]
    (card,) = verdict.cards(refused)
    assert card.verdict.text.startswith("✗ refused")
    assert "score: 0.5 is below 0.8" in reports.render(refused, ".md")


def test_budgets_given_here_stand_above_those_of_the_bundle(bundle: Path) -> None:
    made = reports.make([bundle], max_size_mb=5.0)
    budgets = made.budgets_of(made.conversions[0])
    assert (budgets.max_size_mb, budgets.min_score) == (5.0, "97%")
    assert budgets.given_by == {"max_size_mb": "--max-size", "min_score": "the conversion's --min-score"}
    with pytest.raises(InputError, match="neither a number"):
        reports.make([bundle], min_score="good")


def test_the_front_is_what_nothing_beats() -> None:
    draw = random.Random(0)
    for _ in range(50):
        points = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(draw.randint(1, 12))]
        front = set(pareto.front_of(points))
        for place, (x, y) in enumerate(points):
            beaten = any(a <= x and b >= y and (a < x or b > y) for a, b in points)
            assert (place not in front) == beaten


# --- sections


def tables(blocks: Any) -> list[Table]:
    """Every table, also those of figures and folds."""
    found = []
    for block in blocks:
        if isinstance(block, Table):
            found.append(block)
        elif isinstance(block, Figure):
            found.append(block.table)
        elif isinstance(block, Folded):
            found += tables(block.blocks)
    return found


def test_every_section_is_there_or_told_how_to_get(full: Report, record: Record) -> None:
    for made in (full, Report(toolkit="0", records=[bare(record)]), Report(toolkit="0", records=[emulated(record)])):
        found = sections.of(made)
        shown = {section.title for section in found}
        missing = {row[0] for section in found if section.name == "missing" for row in tables(section.blocks)[0].rows}
        assert shown - {"Not in this report"} | missing == {module.TITLE for module in sections.ALL}
        assert not shown & missing
    assert {section.name for section in sections.of(full)} >= {
        "verdict", "stages", "pareto", "latency", "comparisons", "sweep", "start", "memory", "sustained", "operators",
        "sensitivity", "environment",
    }  # fmt: skip


def test_tables_have_a_cell_for_every_column(full: Report) -> None:
    for section in sections.of(full):
        for table in tables(section.blocks):
            for row in table.rows:
                assert len(row) == len(table.head), (section.name, table.head, row)


def test_little_data_makes_a_short_report(record: Record) -> None:
    empty = Report(toolkit="0", records=[bare(record)])
    made = reports.render(empty, ".md")
    assert text.NONE in made
    assert "None" not in made
    (card,) = verdict.cards(empty)
    assert card.verdict.tone == "unknown"
    assert values.write(empty).count("\n") == 2 + 2  # head, size, no score, no throughput


def test_what_is_emulated_says_so_wherever_it_stands(record: Record) -> None:
    pretended = record.model_copy(update={"kind": "emulated", "clock": "virtual time"})
    made = Report(toolkit="0", records=[record, pretended])
    label = made.labels()[1]
    rows = 0
    for section in sections.of(made):
        for block in section.blocks:
            if isinstance(block, Cards):
                assert block.cards[1].tags[0].text == "emulated"
        for table in tables(section.blocks):
            for row in table.rows:
                if str(row[0]) == label and {"kind"} & set(table.head):
                    assert str(row[list(table.head).index("kind")]) == "emulated"
                    rows += 1
    assert rows >= 4  # latency, start, memory, honesty
    assert "emulated" in reports.render(made, ".csv")
    assert f"{label} (emulated)" in reports.render(made, ".html")  # the curve among measured ones


def test_what_a_program_of_the_devices_says_is_told_as_that(record: Record) -> None:
    told = {"mean_ms": 12.5, "overall_mb": 31.25, "count": 50}
    report = Report(toolkit="1", records=[record.model_copy(update={"told": told, "latency": None})])
    (card,) = verdict.cards(report)
    (fact,) = [each for each in card.facts if each.name == "latency, mean"]
    assert fact.value == "12.5 ms"
    assert "of inputs of its own" in fact.detail
    rows = {(row[0], row[1]): row[2:] for row in values._of_record(report.records[0])}
    assert rows["told", "mean"] == (12.5, None, None, "ms")
    assert rows["told", "overall"] == (31.25, None, None, "MB")
    assert rows["told", "count"] == (50, None, None, "")


def test_a_page_is_the_same_whenever_it_is_written(full: Report) -> None:
    assert reports.render(full, ".html") == reports.render(full, ".html")


# --- Markdown and CSV


def test_markdown_takes_no_names_for_markup(record: Record) -> None:
    document = replaced(json.loads(record.model_dump_json(include={"bundle", "device", "warnings"})), lambda _: EVIL)
    made = record.model_copy(
        update={"bundle": record.bundle.model_copy(update={"name": EVIL}), "warnings": [EVIL],
                "device": record.device.model_copy(update=document["device"])}
    )  # fmt: skip
    found = reports.render(Report(toolkit="0", records=[made]), ".md")
    assert "alert" in found
    assert "<script" not in found
    assert "<img" not in found
    assert not re.search(r"(?<!\\)\]\(http", found)
    rows = [line for line in found.splitlines() if line.startswith("|")]
    columns = None
    for line in rows:
        count = line.replace("\\|", "").count("|")
        columns = count if columns is None or "---" in line else columns
    assert markdown.escaped("a | b\nc") == "a \\| b c"


def test_csv_holds_every_number_and_no_formula(full: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(values.write(full))))
    record = full.records[0]
    assert record.latency is not None
    p50 = [row for row in rows if row["section"] == "latency" and row["name"] == "p50"]
    assert float(p50[0]["value"]) == record.latency.p50_ms.value
    assert float(p50[0]["low"]) == record.latency.p50_ms.low
    assert {row["kind"] for row in rows} >= {"measured"}
    assert {row["section"] for row in rows} >= {
        "bundle", "latency", "parts", "start", "memory", "operators", "sweep", "sustained", "sensitivity", "chain",
    }  # fmt: skip
    energy = Energy(meter="=cmd|' /C calc'!A0", covers="x", joules_per_inference=1.0, watts=1.0, idle_watts=0.0)
    made = bare(record).model_copy(update={"energy": [energy], "clock": "@SUM(1)"})
    for row in csv.reader(io.StringIO(values.write(Report(toolkit="0", records=[made])))):
        assert not any(cell[:1] in ("=", "@", "+") for cell in row)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0.00"), (0.12345, "0.123"), (2.8549, "2.85"), (123456.0, "123,456"), (1e-7, "1.00e-07"), (None, text.NONE)],
)
def test_numbers_have_three_digits(value: float | None, said: str) -> None:
    assert text.number(value) == said


# --- the verb


def test_the_verb_writes_every_format(tmp_path: Path, bundle: Path, record: Record) -> None:
    path = written(tmp_path, "record.json", record)
    outputs = [tmp_path / f"report{suffix}" for suffix in reports.FORMATS]
    options = [part for output in outputs for part in ("-o", output)]
    done: subprocess.CompletedProcess[str] = run_toolkit("report", bundle, path, *options, "--max-size", "100MB")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "✓ keeps every budget" in done.stdout
    for output in outputs:
        assert output.stat().st_size > 1000
        assert str(output) in done.stdout
    printed = run_toolkit("report", bundle, path, "--max-size", "100MB", "--json", cwd=tmp_path)
    assert json.loads(printed.stdout) == json.loads((tmp_path / "report.json").read_text())
    assert not (tmp_path / "report.html.json").exists()


# --- the page


@pytest.fixture(scope="module")
def everything(full: Report) -> Report:
    """With what this machine has no sensors for, made up."""
    made = full.model_copy(deep=True)
    made.records.append(emulated(made.records[0]))
    board = made.records[2].model_copy(deep=True)
    assert board.sustained is not None
    board.sustained.throttled_after_s = 200.0
    board.sustained.windows = [
        Window(
            at_s=5.0 * place, count=9, p50_ms=3 + place / 100, p99_ms=4 + place / 90, watts={"INA3221 VDD_IN": 6.0},
            conditions={"temperature_c": {"cpu": 40 + place / 9}, "clock_mhz": [1800, None], "throttled": None},
        )
        for place in range(360)
    ]  # fmt: skip
    made.records.append(board)
    return made


@pytest.fixture(scope="module")
def content(everything: Report) -> str:
    return reports.render(everything, ".html")


def test_the_page_is_valid_and_alone(content: str) -> None:
    found = Page(content)
    names = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(names) == len(set(names))
    for tag, attributes in found.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "img", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("href", "xlink:href"):
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in names
            assert name != "src"
    for reference in re.findall(r"url\(([^)]*)\)", content):
        assert reference.startswith("#")
        assert reference[1:] in names
    assert not re.search(r"https?:|@import|//[a-z]+\.", content)
    assert [a for a in found.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "None" not in "".join(found.text)


def test_the_page_is_small(content: str) -> None:
    assert len(content.encode()) <= MOST_BYTES


def test_every_picture_is_told_and_has_its_numbers(content: str) -> None:
    found = Page(content)
    pictures = found.named("svg")
    assert pictures
    for picture in pictures:
        assert picture["role"] == "img"
        assert picture["aria-label"]
    figures = re.findall(r"<figure>.*?</figure>", content, flags=re.DOTALL)
    assert len(figures) * 2 == len(pictures)  # for a phone, and for anything wider
    for figure in figures:
        assert "<table>" in figure
        assert "<figcaption>" in figure


def test_no_name_is_taken_for_markup(everything: Report, content: str) -> None:
    """Every text of every record, bundle and table is hostile; what must be one of a few words keeps its own."""
    document = json.loads(everything.model_dump_json())
    kept: set[str] = {"sustain", "quick", "count", "measured", "emulated", "estimated", "estimate", "checkpoint"}
    kept |= {"in turn", "stored", "faster", "slower", "undecided", document["conversions"][0]["budgets"]["min_score"]}
    hashes = {each["content_hash"] for each in document["conversions"]}
    hostile = replaced(document, lambda text: text if text in kept | hashes else f"{EVIL}{text}")
    made = Report.model_validate(hostile)
    made.records[0].device.facts[EVIL] = {EVIL: EVIL}
    made.records[3].instructions = {EVIL: 1.0}
    found = Page(reports.render(made, ".html"))
    plain = Page(content)
    tags = {tag for tag, _ in found.elements}
    assert tags <= {tag for tag, _ in plain.elements} | {"ul", "li"}
    assert not [name for _, attributes in found.elements for name in attributes if name.startswith("on")]
    assert "alert('x')" in "".join(found.text)


def test_colors_can_be_read_and_told_apart() -> None:
    """WCAG: text 4.5 : 1, marks 3 : 1; and series stay apart for the three kinds of colour blindness."""
    for mode in (0, 1):
        colors = {name: linear(values[mode]) for name, values in page.ROLES.items()}
        for surface in ("surface", "page"):
            for name in ("ink", "muted", "good", "worse", "doubt"):
                assert contrast(colors[name], colors[surface]) >= 4.5, (mode, name, surface)
        for name in ("good", "worse", "doubt"):
            soft = {"good": "good-soft", "worse": "bad-soft", "doubt": "doubt-soft"}[name]
            assert contrast(colors[name], colors[soft]) >= 4.5, (mode, name)
        for name in (*drawing.SERIES, "better", "line"):
            assert contrast(colors[name], colors["surface"]) >= 3, (mode, name)
        for seen in BLIND.values():
            for one, two in itertools.combinations(drawing.SERIES[:5], 2):
                distance = np.linalg.norm(lab(seen @ colors[one]) - lab(seen @ colors[two]))
                assert distance > 15, (mode, one, two)


@pytest.fixture(scope="module")
def browser() -> Any:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield launched
        launched.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_browser_shows_it_without_a_complaint(
    width: int, scheme: str, browser: Any, content: str, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.write_text(content, encoding="utf-8")
    view = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    opened = view.new_page()
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(path.as_uri())
    for each in opened.query_selector_all("details"):
        each.evaluate("element => element.open = true")
    assert said == []
    assert asked == [path.as_uri()]
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    # What reaches beyond the edge can be scrolled to in its own box.
    beyond = opened.evaluate(
        """() => [...document.querySelectorAll('main *')].filter(e => !e.closest('.table, svg')
        && e.getBoundingClientRect().width && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"""
    )
    assert beyond == []
    shown = opened.evaluate(
        "() => ['.wide', '.narrow'].map(name => getComputedStyle(document.querySelector(name)).display)"
    )
    assert shown == (["none", "block"] if width == 360 else ["block", "none"])
    small = opened.evaluate(
        """() => [...document.querySelectorAll('svg text')].filter(e => e.getBoundingClientRect().height)
        .map(e => parseFloat(getComputedStyle(e).fontSize) * e.getScreenCTM().a).filter(size => size < 9)"""
    )
    assert small == []
    background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", background)[:3])) > 380
    assert light == (scheme == "light")
    view.close()


def test_a_browser_prints_it_light_with_all_numbers(browser: Any, content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(content, encoding="utf-8")
    view = browser.new_context(viewport={"width": 700, "height": 800}, color_scheme="dark")
    opened = view.new_page()
    opened.goto(path.as_uri())
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(244, 245, 247)"
    assert opened.evaluate("document.querySelector('figure details table').getBoundingClientRect().height") > 0
    view.close()


def test_empty_reports_have_pages(record: Record) -> None:
    for made in (Report(toolkit="0", records=[bare(record)]), Report(toolkit="0")):
        assert Page(reports.render(made, ".html")).named("section")
