"""What an installed package adds by entry points works as what is hpo's own, and nothing else is imported."""

import json
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import pytest
from support.commands import Hpo
from support.packages import install
from support.studies import write_study
from support.waiting import write_waiting_study

from hpo.doors.objective import Objective
from hpo.doors.perturbation import PERTURBATIONS, Perturbation
from hpo.doors.registry import Door
from hpo.errors import InputError

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


    class SmallConv(hpo.Network):
        names = ("small-conv", "small-conv-wide")

        @staticmethod
        def build(name, classes, input_size):
            from torch import nn

            width = 32 if name.endswith("wide") else 16

            class Block(nn.Module):
                """Its BatchNorm stands before the convolution in the code, and after another in the forward pass."""

                def __init__(self):
                    super().__init__()
                    self.conv = nn.Conv2d(width, width, 3, padding=1)
                    self.before = nn.BatchNorm2d(width)

                def forward(self, x):
                    return x + self.conv(self.before(x).relu())

            body = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
            return nn.ModuleDict({"stem": body, "one": Block(), "two": Block(), "last": nn.Linear(width * 4, classes)})

        @staticmethod
        def units(module):
            return [module["stem"], module["one"], module["two"]]

        @staticmethod
        def head(module):
            from torch import nn

            return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(1), module["last"])


    class Headless(SmallConv):
        names = ("headless",)

        @staticmethod
        def head(module):
            from torch import nn

            return nn.Sequential(module["last"], nn.ReLU())
    '''
)
ENTRY_POINTS = dedent(
    """
    [hpo.perturbations]
    stuck-pixels = theirs:StuckPixels
    unfinished = theirs:Unfinished
    score = theirs:StuckPixels
    broken = theirs_that_is_missing:Nothing
    [hpo.networks]
    small-conv = theirs:SmallConv
    other-name = theirs:Headless
    """
)


@pytest.fixture
def package(tmp_path: Path) -> dict[str, str]:
    return install(tmp_path / "site", "theirs", PACKAGE, ENTRY_POINTS)


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
    hpo_here: Hpo, tmp_path: Path, package: dict[str, str]
) -> None:
    study = a_study(tmp_path, {"name": "stuck-pixels", "amount": 0.1})
    ran = hpo_here("run", study, "--workers", "1", **package)
    assert ran.returncode == 0, ran.stderr
    top = json.loads(
        hpo_here("top", "study", "--json", "--where", "stuck_pixels >= 0", "--sort", "stuck_pixels:asc").stdout
    )
    assert len(top) == 2, "reading needs no package"
    accuracies = [trial["perturbed_accuracy"]["stuck-pixels"] for trial in top]
    assert accuracies == sorted(accuracies)
    nothing = hpo_here("top", "study", "--where", "stuck_pixels > 1")
    assert "no complete trial where stuck_pixels > 1" in nothing.stderr
    assert "stuck_pixels" in hpo_here("top", "study", "--csv").stdout.splitlines()[0]
    assert "stuck" in hpo_here("top", "study").stdout
    (tmp_path / "again.toml").write_text(hpo_here("best", "study", "--toml").stdout)
    again = hpo_here("submit", "again.toml", **package)
    assert again.returncode == 0, again.stderr

    assert hpo_here("extend", "study", "--budget", "3").returncode == 0
    code = tmp_path / "site" / "theirs.py"
    code.write_text(code.read_text().replace("1.0)", "0.9)"))
    other = hpo_here("worker", "study", **package)
    assert "study 'study' has other code of stuck-pixels than this machine" in other.stdout + other.stderr
    assert json.loads(hpo_here("status", "study", "--json").stdout)["waiting"] == 1


@pytest.mark.parametrize(
    ("perturbation", "expected"),
    [
        (
            {"name": "stuck-pixels", "amont": 0.1},
            "unknown key; allowed here: weight, name, amount. Did you mean 'amount'?",
        ),
        (
            {"name": "stuck-pixels", "amount": 2},
            "objective.perturbations.stuck-pixels.amount: must be less than or equal to 1",
        ),
        ({"name": "stuck-pixels"}, "objective.perturbations.stuck-pixels.amount: required, but not given"),
        (
            {"name": "stuck-pixel", "amount": 0.1},
            "no perturbation 'stuck-pixel'; installed here are: adversarial-noise",
        ),
        ({"name": "unfinished"}, "perturbation 'unfinished' (theirs:Unfinished) is no subclass of hpo.Perturbation"),
        ({"name": "broken"}, "perturbation 'broken' (theirs_that_is_missing:Nothing) cannot be loaded: ModuleNotFound"),
        ({"name": "os"}, "no perturbation 'os'; installed here are: adversarial-noise"),
        ({"name": "score", "amount": 0.1}, "perturbation 'score': --where could not ask for an accuracy of this name"),
        ({"name": "clean", "sigma": 0.1}, "no perturbation 'clean'"),
        ({"sigma": 0.1}, "name is required: adversarial-noise or adversarial-pixels or"),
    ],
)
def test_bad_settings_are_one_line(
    hpo_here: Hpo, tmp_path: Path, package: dict[str, str], perturbation: dict[str, object], expected: str
) -> None:
    ran = hpo_here("submit", a_study(tmp_path, perturbation), **package)
    assert ran.returncode == 2
    (line,) = ran.stderr.splitlines()
    assert expected in line
    assert not (tmp_path / "hpo.db").exists()


def with_network(folder: Path, network: str, **changes: object) -> str:
    quick = {"epochs": 1, "horizontal_flip": False}
    search = {"batch_size": 16, "learning_rate": 0.05, "frozen_layers": {"low": 0, "high": 2}}
    model = {"name": network, "weights": "none", "input_size": 16}
    document = {"budget": 2, "training": quick, "search": search, "model": model} | changes
    path = Path(write_study(folder, **document | {"model": model | {"name": "resnet18"}}))
    path.write_text(path.read_text().replace('name = "resnet18"', f'name = "{network}"'))
    return str(path)


def test_a_network_of_an_installed_package_is_fine_tuned_and_resumed(
    hpo_here: Hpo, tmp_path: Path, package: dict[str, str]
) -> None:
    ran = hpo_here("run", with_network(tmp_path, "small-conv-wide"), "--workers", "1", **package)
    assert ran.returncode == 0, ran.stderr
    best = json.loads(hpo_here("best", "study", "--json").stdout)
    assert best["clean_accuracy"] > 0.15
    assert hpo_here("run", with_network(tmp_path, "small-conv-wide"), **package).returncode == 0
    elsewhere = hpo_here("worker", "study", "--storage", "sqlite:///hpo.db")
    assert elsewhere.returncode == 0, "it is done, and can be read"


@pytest.mark.parametrize(
    ("network", "changes", "expected"),
    [
        (
            "small-con",
            {},
            "timm/NAME, vit_b_16 … vit_h_14, small-conv, small-conv-wide, headless.",
        ),
        (
            "small-conv",
            {"frozen_layers": {"low": 0, "high": 9}},
            "search.frozen_layers: 9 is more than the 3 of small-conv",
        ),
        ("headless", {}, "a network's head must end in nn.Linear, not ReLU"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(
    hpo_here: Hpo, tmp_path: Path, package: dict[str, str], network: str, changes: dict[str, object], expected: str
) -> None:
    search = {"batch_size": {"choices": [16, 32]}, "learning_rate": 0.05, "frozen_layers": 0} | changes
    ran = hpo_here("run", with_network(tmp_path, network, search=search), "--workers", "1", **package)
    assert ran.returncode == 2
    assert expected in ran.stderr
    assert "Traceback" not in ran.stderr


def test_weights_of_an_installed_network(
    hpo_here: Hpo, tmp_path: Path, package: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken from a file, its own head among them; not from ImageNet, where there are none."""
    import torch

    monkeypatch.syspath_prepend(package["PYTHONPATH"])
    small = import_module("theirs").SmallConv.build("small-conv", 10, 32)
    monkeypatch.delitem(sys.modules, "theirs")
    torch.save(small.state_dict(), tmp_path / "w.pth")
    study = with_network(tmp_path, "small-conv")
    given = hpo_here("run", study, "--workers", "1", "--set", "model.weights=w.pth", **package)
    assert given.returncode == 0, given.stderr
    other = ("run", study, "--set", "name=other")
    refused = hpo_here(*other, "--set", "model.weights=imagenet", **package)
    assert refused.returncode == 2
    assert "model.weights: there are none from ImageNet for small-conv; give a file, or 'none'" in refused.stderr
    wider = ("--set", "model.name=small-conv-wide", "--set", "model.weights=w.pth")
    assert "do not fit model.name = 'small-conv-wide'" in hpo_here(*other, *wider, **package).stderr


def test_where_the_package_is_missing_workers_say_so_and_others_go_on(
    hpo_here: Hpo, tmp_path: Path, package: dict[str, str]
) -> None:
    assert hpo_here("submit", a_study(tmp_path, {"name": "stuck-pixels", "amount": 0.1}), **package).returncode == 0
    other = write_study(tmp_path, name="other", budget=1, training={"epochs": 1, "horizontal_flip": False})
    assert hpo_here("submit", other).returncode == 0
    worked = hpo_here("worker")
    assert "no perturbation 'stuck-pixels'; installed here are:" in worked.stdout + worked.stderr
    status = {each["study"]: each["finished"] for each in json.loads(hpo_here("status", "--json").stdout)}
    assert status == {"study": 0, "other": 1}


def test_an_objective_whose_code_was_changed_is_not_gone_on_with(
    hpo_here: Hpo, tmp_path: Path, waiting: dict[str, str]
) -> None:
    assert hpo_here("submit", write_waiting_study(tmp_path, budget=1, steps=1), **waiting).returncode == 0
    assert hpo_here("worker", "study", **waiting).returncode == 0
    assert "1 trial added" in hpo_here("extend", "study", "--budget", "2").stderr
    code = tmp_path / "waiting" / "waiting.py"
    code.write_text(code.read_text() + "# changed\n")
    refused = hpo_here("worker", "study", **waiting)
    assert refused.returncode == 2
    assert "study 'study' has other code of waiting than this machine" in refused.stderr


@pytest.mark.parametrize(
    ("members", "words"),
    [({}, "must define run"), ({"run": lambda *_: None, "Settings": object}, "must be a subclass of hpo.Section")],
)
def test_an_objective_that_is_none_is_refused_where_it_is_defined(members: dict[str, object], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        type("Mine", (Objective,), members)


def test_a_perturbation_that_is_none_is_refused_where_it_is_defined() -> None:
    with pytest.raises(TypeError, match="severity must name a field of its own"):
        type("Nameless", (Perturbation,), {"__module__": __name__, "apply": staticmethod(lambda *_: None)})
    noise = PERTURBATIONS.find("gaussian-noise")
    assert PERTURBATIONS.find("gaussian-noise") is noise
    with pytest.raises(InputError, match="no perturbation 'gaussian_noise'"):
        PERTURBATIONS.find("gaussian_noise")
    with pytest.raises(InputError, match="no perturbation 'x'"):
        Door("perturbation", "hpo.vision.perturbations", "hpo.perturbations", Perturbation).find("x")
