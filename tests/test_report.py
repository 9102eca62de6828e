"""`hpo report`: its numbers are the database's, it needs nothing else, and it is legible on whatever shows it."""

import csv
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from free_objective import FreeObjective
from support.commands import Hpo
from support.search import run
from support.studies import make_spec

from hpo.conclude.candidates import choose
from hpo.conclude.confirmed import read_confirmed
from hpo.search.sql.confirming import confirm
from hpo.search.sql.queries import all_trials
from hpo.search.sql.studies import Study, find_studies
from hpo.search.worker import work


class _Tables(HTMLParser):
    """The cells of a page's first table, and all of its links, sources and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self._tables, self._in_table = 0, False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self._tables += tag == "table"
        self._in_table = self._in_table or tag == "table"
        if tag == "tr" and self._tables == 1:
            self.rows.append([])
        if tag in ("td", "th") and self._tables == 1:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_table = self._in_table and tag != "table"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._tables == 1 and self._in_table and self.rows[-1:] and self.rows[-1]:
            self.rows[-1][-1] += data


def searched(engine: sa.Engine) -> Study:
    run(engine, make_spec(budget=8))
    return find_studies(engine, ["study"])[0]


def confirm_all(engine: sa.Engine, study: Study, seeds: int = 8) -> Study:
    confirmation = confirm(engine, study, *choose(engine, study, 1, anyway=False), seeds, ())
    work(engine, [confirmation.name], lambda given, store: FreeObjective(given), "worker", lambda text: None)
    return confirmation


def report(hpo_here: Hpo, folder: Path, *options: str) -> _Tables:
    ran = hpo_here("report", "study", *options)
    assert ran.returncode == 0, ran.stderr
    return _Tables((folder / "study-report.html").read_text(encoding="utf-8"))


def test_its_numbers_are_the_databases(sqlite_engine: sa.Engine, hpo_here: Hpo, tmp_path: Path) -> None:
    study = searched(sqlite_engine)
    confirmation = confirm_all(sqlite_engine, study)
    page = report(hpo_here, tmp_path, "--figures", "figures")
    with sqlite_engine.connect() as connection:
        query = "SELECT role, condition, severity, sum(correct) AS correct, sum(images) AS images FROM confirmations "
        counts = connection.execute(sa.text(query + "WHERE main GROUP BY role, condition, severity")).mappings().all()
    heading, *rows = [[cell.strip() for cell in row] for row in page.rows]
    columns = {"baseline": heading.index("baseline"), "control": heading.index("control")}
    columns["candidate"] = next(i for i, name in enumerate(heading) if name.startswith("trial "))
    shown = {row[0]: row for row in rows}
    assert len(counts) == 3 * len(shown) == 6
    for each in counts:
        mean = 100 * each["correct"] / each["images"]
        assert shown[each["condition"]][columns[each["role"]]].startswith(f"{mean:.1f} ("), each
    trial = choose(sqlite_engine, study, 1, anyway=False)[1][0]
    found = read_confirmed(sqlite_engine, study, confirmation, [trial.number])
    assert found is not None
    for result in found.of("candidate"):
        if result.condition.claimed and result.to_baseline:
            interval = result.to_baseline.interval
            expected = f"{100 * interval.mean:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"
            assert shown[result.condition.name][heading.index("− baseline")] == expected  # noqa: RUF001
            assert shown[result.condition.name][-1] == ("yes" if result.to_baseline.holds else "no")
    with (tmp_path / "figures" / "history.csv").open() as file:
        history = {int(row["trial"]): float(row["score"]) for row in csv.DictReader(file)}
    complete = {each.number: each.score for each in all_trials(sqlite_engine, "study", "state = 'complete'")}
    assert history == complete
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    for name in names:
        assert {path.suffix for path in (tmp_path / "figures").glob(f"{name}.*")} == {".svg", ".png", ".csv"}
    assert {"front", "history", "brittleness-gaussian-noise"} <= names


def test_it_needs_nothing_else_and_says_what_is_not_confirmed(
    sqlite_engine: sa.Engine, hpo_here: Hpo, tmp_path: Path
) -> None:
    searched(sqlite_engine)
    page = report(hpo_here, tmp_path)
    assert "Not confirmed." in page.text
    assert "hpo confirm study" in page.text
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "script" not in page.tags
    content = (tmp_path / "study-report.html").read_text(encoding="utf-8")
    outside = set(re.findall(r"https?://[^\"' <)]+", content))
    assert outside <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert len(content) < 5e6
    assert content.count("<text") > 20, "text stays text"
    ids = re.findall(r' id="([^"]+)"', content)
    assert len(ids) == len(set(ids)), "what one figure defines must not change another"


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs a browser")
def test_a_browser_shows_it_wide_narrow_dark_printed_and_without_scripts(
    sqlite_engine: sa.Engine, hpo_here: Hpo, tmp_path: Path
) -> None:
    from playwright.sync_api import sync_playwright

    confirm_all(sqlite_engine, searched(sqlite_engine), seeds=2)
    report(hpo_here, tmp_path)
    address = (tmp_path / "study-report.html").as_uri()
    asked: list[str] = []
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        colours = set()
        looks: list[dict[str, Any]] = [
            {"viewport": {"width": 390, "height": 844}},
            {"viewport": {"width": 1440, "height": 900}},
            {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
        ]
        for look in looks:
            page = browser.new_context(**look).new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.on("console", lambda message: said.append(message.text))
            page.goto(address)
            width = look["viewport"]["width"]
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
            first = page.locator("figure svg").first.bounding_box()
            assert first is not None
            assert 250 < first["width"] <= width
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            text = page.locator("figure svg text").first
            assert page.evaluate("t => parseFloat(getComputedStyle(t).fontSize)", text.element_handle()) >= 7
            assert page.locator("figure svg title").count() > 8, "values under the mouse"
        assert len(colours) == 2
        page = browser.new_context(java_script_enabled=False).new_page()
        page.goto(address)
        assert page.get_by_role("heading", name="How brittle it is").is_visible()
        assert len(browser.new_page().pdf()) > 0
        browser.close()
    assert said == []
    assert all(url.startswith(("file:", "data:")) for url in asked)


def test_bad_requests_are_refused_in_a_line_and_write_nothing(
    sqlite_engine: sa.Engine, hpo_here: Hpo, tmp_path: Path
) -> None:
    searched(sqlite_engine)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    for arguments, said in {
        ("report", "studi"): "Did you mean 'study'?",
        ("report", "study", "--figures", "full"): "--figures: full is not empty",
        ("report", "study", "--output", "full"): "--output: full is a folder; name a file",
        ("report", "study", "--output", "nowhere/page.html"): "there is no folder nowhere",
        ("export", "study", "full"): "DIR: full is not empty",
        ("export", "study", "full/file"): "is a file; name a new folder",
        ("export", "study", "new"): "kept no weights",
    }.items():
        ran = hpo_here(*arguments)
        assert ran.returncode in (1, 2), arguments
        assert said in ran.stderr
        assert len([line for line in ran.stderr.splitlines() if line.startswith("hpo: ")]) == 1
        assert "Traceback" not in ran.stderr
        assert {path.name for path in tmp_path.iterdir()} == before, arguments
    with sqlite_engine.begin() as connection:
        connection.execute(sa.text("UPDATE study_user_attributes SET value_json = '9' WHERE key = 'budget'"))
    assert "8 of 9 trials are" in hpo_here("report", "study").stderr
    assert hpo_here("report", "study", "--anyway").returncode == 0
