"""The documentation: generated pages are fresh and complete, links lead somewhere, the README stays short."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hpo.cli.groups import GROUPS
from hpo.cli.main import cli
from hpo.doors.objective import Trial
from hpo.doors.perturbation import PERTURBATIONS, Perturbation
from hpo.doors.section import Section
from hpo.study_file.images import ImageSpec
from hpo.study_file.parameters import PARAMETERS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
README_LINES = 180
GENERATE = runpy.run_path(str(DOCS / "generate.py"))
GENERATED: dict[str, str] = GENERATE["pages"]()
LINK = re.compile(r"\]\(([^)\s]+)\)")
INTERNAL_VARIABLES = {"HPO_LAUNCH_ID", "HPO_GPU"}
"""With which a launcher speaks to its workers."""
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", sorted(GENERATED))
def test_a_generated_page_is_as_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == GENERATED[name], "stale: run python docs/generate.py"


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_is_documented(name: str) -> None:
    section = _sections("commands.md", "### ")[f"hpo {name}"]
    assert f"$ hpo {name}" in section
    assert name in sum(GROUPS.values(), ())


def _keys() -> list[tuple[str, str]]:
    """(heading, key) of every key that a study file may have."""
    found = []
    for key, field in ImageSpec.model_fields.items():
        section: type[Section] | None = GENERATE["section_of"](field.annotation)
        found += [(f"[{key}]", each) for each in section.model_fields] if section else [("The top of the file", key)]
    settings = {key for kind in PERTURBATIONS.loadable().values() for key in kind.model_fields}
    found += [("[[objective.perturbations]]", key) for key in settings]
    return [*found, *(("[search]", name) for name in PARAMETERS)]


@pytest.mark.parametrize(("heading", "key"), sorted(set(_keys())))
def test_every_key_of_a_study_file_is_documented(heading: str, key: str) -> None:
    rows = [line for line in _sections("study-file.md", "## ")[heading].splitlines() if f"| `{key}` |" in line]
    assert rows, f"{key} is not in docs/study-file.md"
    assert all(row.split("|")[-2].strip() for row in rows), f"{key} has no meaning in docs/study-file.md"


def _sections(page: str, heading: str) -> dict[str, str]:
    """The text under each heading of one level."""
    parts = (DOCS / page).read_text(encoding="utf-8").split(f"\n{heading}")[1:]
    return dict(part.split("\n", 1) for part in parts)


def test_every_environment_variable_is_documented() -> None:
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "hpo").rglob("*.py")]
    used = {name for text in sources for name in re.findall(r"\bHPO_[A-Z_]+\b", text)}
    documented = set(
        re.findall(r"^\| `(HPO_[A-Z_]+)` \|", (DOCS / "operations.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert documented == used - INTERNAL_VARIABLES


def test_the_examples_of_extending_are_what_they_say(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "mypackage.py").write_text("\n\n".join(blocks), encoding="utf-8")
    found = runpy.run_path(str(tmp_path / "mypackage.py"))
    assert issubclass(found["StuckPixels"], Perturbation)
    steps = found["SignSteps"](name="sign-steps", weight=1.0, steps=10)
    state = steps.start(torch.full((1, 3, 4, 4), 0.5), torch.zeros(1), torch.tensor([0.1]), 0, torch.ones_like)
    assert steps.step(state, torch.ones(1, 3, 4, 4), 0)["images"].max() == pytest.approx(0.51)
    module = found["SmallConv"].build("small-conv", 10, 32).eval()
    images = torch.zeros(2, 3, 32, 32)
    by_units = images
    for part in (*found["SmallConv"].units(module), found["SmallConv"].head(module)):
        by_units = part(by_units)
    assert torch.equal(module(images), by_units)
    descent = found["Descent"](found["Descent"].Settings(), None)
    trial = Trial(number=0, params={"rate": 0.001, "momentum": 0.9}, seed=0, steps=50)
    whole = list(descent.run(trial))
    assert whole[-1].score > whole[0].score
    assert list(descent.run(replace(trial, checkpoint=whole[29].checkpoint))) == whole[30:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in _anchors(linked), f"{page.name}: {target}"


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them from headings."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_a_front_door() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES
    missing = [page.name for page in DOCS.glob("*.md") if f"(docs/{page.name})" not in text]
    assert not missing, "not in the README's list of pages"
