"""What an installed package adds by entry points works as what is hpo's own, and nothing else is imported."""

import json
from pathlib import Path
from textwrap import dedent

import pytest
from conftest import Hpo, write_study

from hpo.errors import InputError
from hpo.perturbation import PERTURBATIONS, Perturbation
from hpo.registry import Door

PACKAGE = dedent(
    '''
    from typing import Annotated

    import hpo
    from pydantic import Field


    class StuckPixels(hpo.Perturbation):
        """Sets a random subset of the pixels to white."""

        amount: Annotated[float, Field(gt=0, le=1)]
        severity = "amount"

        @staticmethod
        def apply(pixels, keys, severity):
            draws = hpo.uniform(keys, pixels[0, 0].numel()).view(len(pixels), 1, *pixels.shape[2:])
            return pixels.masked_fill(draws < severity.view(-1, 1, 1, 1), 1.0)


    class Unfinished:
        pass
    '''
)
ENTRY_POINTS = dedent(
    """
    [hpo.perturbations]
    stuck-pixels = theirs:StuckPixels
    unfinished = theirs:Unfinished
    broken = theirs_that_is_missing:Nothing
    """
)


@pytest.fixture
def package(tmp_path: Path) -> dict[str, str]:
    """A package as pip leaves it, on the path of what gets this environment."""
    site = tmp_path / "site"
    (site / "theirs-1.0.dist-info").mkdir(parents=True)
    (site / "theirs.py").write_text(PACKAGE)
    (site / "theirs-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (site / "theirs-1.0.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    return {"PYTHONPATH": str(site)}


def a_study(folder: Path, perturbation: dict[str, object], weight: float = 0.25) -> str:
    noise = {"name": "gaussian-noise", "sigma": 0.3, "weight": 0.5 - weight}
    objective = {"clean": 0.5, "perturbations": [noise, perturbation | {"weight": weight}]}
    path = Path(write_study(folder, budget=2, training={"epochs": 1, "horizontal_flip": False}))
    text = path.read_text().split("[objective]")
    import tomli_w

    rest = "[sampler]" + text[1].split("[sampler]")[1]
    path.write_text(text[0] + tomli_w.dumps({"objective": objective}) + "\n" + rest)
    return str(path)


def test_a_perturbation_of_an_installed_package_is_trained_with_scored_and_asked_for(
    hpo: Hpo, tmp_path: Path, package: dict[str, str]
) -> None:
    study = a_study(tmp_path, {"name": "stuck-pixels", "amount": 0.1})
    ran = hpo("run", study, "--workers", "1", **package)
    assert ran.returncode == 0, ran.stderr
    top = json.loads(hpo("top", "study", "--json", "--where", "stuck_pixels >= 0", "--sort", "stuck_pixels:asc").stdout)
    assert len(top) == 2, "reading needs no package"
    accuracies = [trial["perturbed_accuracy"]["stuck-pixels"] for trial in top]
    assert accuracies == sorted(accuracies)
    nothing = hpo("top", "study", "--where", "stuck_pixels > 1")
    assert "no complete trial where stuck_pixels > 1" in nothing.stderr
    assert "stuck_pixels" in hpo("top", "study", "--csv").stdout.splitlines()[0]
    assert "stuck" in hpo("top", "study").stdout
    (tmp_path / "again.toml").write_text(hpo("best", "study", "--toml").stdout)
    again = hpo("run", "again.toml", "--workers", "1", **package)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("perturbation", "expected"),
    [
        (
            {"name": "stuck-pixels", "amont": 0.1},
            "unknown key; allowed here: weight, name, amount. Did you mean 'amount'?",
        ),
        ({"name": "stuck-pixels", "amount": 2}, "objective.perturbations.1.amount: must be less than or equal to 1"),
        ({"name": "stuck-pixels"}, "objective.perturbations.1.amount: required, but not given"),
        ({"name": "stuck-pixel", "amount": 0.1}, "no perturbation 'stuck-pixel'; there are: gaussian-noise"),
        ({"name": "unfinished"}, "perturbation 'unfinished' (theirs:Unfinished) is no subclass of hpo.Perturbation"),
        ({"name": "broken"}, "perturbation 'broken' (theirs_that_is_missing:Nothing) cannot be loaded: ModuleNotFound"),
        ({"name": "os"}, "no perturbation 'os'; there are: gaussian-noise"),
        ({"name": "clean", "sigma": 0.1}, "no perturbation 'clean'"),
        ({"sigma": 0.1}, "name is required: gaussian-noise or pixel-recolor or"),
    ],
)
def test_bad_settings_are_one_line(
    hpo: Hpo, tmp_path: Path, package: dict[str, str], perturbation: dict[str, object], expected: str
) -> None:
    ran = hpo("submit", a_study(tmp_path, perturbation), **package)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert expected in line
    assert not (tmp_path / "hpo.db").exists()


def test_where_the_package_is_missing_workers_say_so_and_others_go_on(
    hpo: Hpo, tmp_path: Path, package: dict[str, str]
) -> None:
    assert hpo("submit", a_study(tmp_path, {"name": "stuck-pixels", "amount": 0.1}), **package).returncode == 0
    other = write_study(tmp_path, name="other", budget=1, training={"epochs": 1, "horizontal_flip": False})
    assert hpo("submit", other).returncode == 0
    worked = hpo("worker")
    assert "no perturbation 'stuck-pixels'; there are:" in worked.stdout + worked.stderr
    status = {each["study"]: each["finished"] for each in json.loads(hpo("status", "--json").stdout)}
    assert status == {"study": 0, "other": 1}


def test_a_perturbation_that_is_none_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match="severity must name a field of its own"):
        type("Nameless", (Perturbation,), {"__module__": __name__, "apply": staticmethod(lambda *_: None)})
    noise = PERTURBATIONS.find("gaussian-noise")
    assert PERTURBATIONS.find("gaussian-noise") is noise
    with pytest.raises(InputError, match="no perturbation 'gaussian_noise'"):
        PERTURBATIONS.find("gaussian_noise")
    with pytest.raises(InputError, match="no perturbation 'x'"):
        Door("perturbation", "hpo.vision.perturbations", "hpo.perturbations", Perturbation).find("x")
