"""The generated sections of the pages follow from the results files and from nothing else."""

from dataclasses import replace

import pytest

from benchmarks.quantizer.problem import SHAPES
from benchmarks.results import DIRECTORY, write
from benchmarks.table import PAGES, SECTIONS, headlines, render, update
from tests.benchmarks.rows import ROWS


def _line(text, start):
    return next(line for line in text.splitlines() if line.startswith(start))


def test_the_same_results_give_the_same_text():
    assert render(ROWS) == render(list(ROWS))


def test_the_numbers_of_the_results_appear():
    text = render(ROWS)
    assert "| 50 | 500 | 300 | 10.0x / 6.0x | 80 % | 5 / 500 / 100 |" in _line(text, "| C10 L0")
    assert "| 20 | 320 | does not fit | 16.0x / - |" in _line(text, "| DAC")
    assert "FeatureQuantizer +2.0 %" in text


def test_what_was_not_measured_is_said():
    text = render(ROWS)
    assert "Every GPU number: not measured." in text
    assert _line(text, "| VQGAN").count("not measured") >= 3
    assert "not measured" in render([])


def test_disturbed_measurements_are_confessed():
    assert "with care" not in render(ROWS)
    assert "up to 1.5 cores busy" in render([replace(row, other_cores=1.5) for row in ROWS])


BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


def test_update_and_check(tmp_path):
    page, results = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"before\n{BEGIN}\nstale\n{END}\nafter\n")
    write(results / "m.csv", ROWS)
    assert update(page, results, check=True)
    assert "stale" in page.read_text()
    assert update(page, results)
    assert not update(page, results, check=True)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n### CPU")
    assert text.endswith(f"{END}\nafter\n")
    assert all(shape.label in text for shape in SHAPES)


@pytest.mark.parametrize(
    "text",
    ["nothing here\n", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n" * 2,
     f"{BEGIN}\n<!-- gans:begin -->\n{END}\n<!-- gans:end -->\n"],
)  # fmt: skip
def test_marks_that_do_not_pair_are_refused(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="NAME:begin"):
        update(page, tmp_path)
    assert page.read_text() == text


def test_a_page_that_lost_a_section_is_refused(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- gans:begin -->\n<!-- gans:end -->\n")
    monkeypatch.setitem(PAGES, page, ("gans", "search"))
    with pytest.raises(ValueError, match="gans, search"):
        update(page, tmp_path)


def test_every_section_stands_on_one_page():
    assert sorted(name for names in PAGES.values() for name in names) == sorted(SECTIONS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_table_can_be_edited_by_hand(page, tmp_path):
    """One digit changed in any table is found, wherever it stands on the page."""
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True)
    copy = tmp_path / page.name
    copy.write_text("".join(lines), encoding="utf-8")
    assert not update(copy, check=True)
    fresh = {name: SECTIONS[name](DIRECTORY) for name in PAGES[page]}
    figures = [line for line in lines if line.startswith("|") and any(c.isdigit() for c in line)]
    assert figures
    assert set(figures) <= {f"{line}\n" for text in fresh.values() for line in text.splitlines()}
    name = PAGES[page][-1]
    inside = lines.index(f"<!-- {name}:end -->\n") - 3
    lines[inside] = lines[inside][:-2] + "0" + lines[inside][-2:]
    copy.write_text("".join(lines), encoding="utf-8")
    assert update(copy, check=True)


def test_the_readme_quotes_the_worst_machine():
    slower = [replace(row, machine="1-core-test", threads=1) for row in ROWS]
    slower[0] = replace(slower[0], median_ms=100.0)  # FeatureQuantizer, half as fast on C10 L0
    text = headlines([*ROWS, *slower])
    assert "8.9 times as fast" in _line(
        text, "| training step of `FeatureQuantizer` | the layer"
    )  # sqrt(5 * 16)
    assert "1-core-test, 1 thread |" in text
    assert "2-core-test" not in _line(text, "| training step of `FeatureQuantizer` | the layer")
    assert "not measured" in _line(text, "| pretraining step")
    assert headlines([]).count("not measured") == 5
    assert len(headlines(ROWS).splitlines()) == 2 + 4 + 2


def test_without_a_study_the_page_says_so(tmp_path):
    for name in PAGES[next(page for page in PAGES if page.name == "results.md")]:
        assert "ot measured" in SECTIONS[name](tmp_path), name
