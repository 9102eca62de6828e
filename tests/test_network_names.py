"""Names of networks: which there are, and that what cannot be used is one line."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
from support.commands import Hpo
from support.studies import write_study


@pytest.mark.parametrize(
    ("network", "size", "expected"),
    [
        ("convnext_tiny", 16, "model.input_size: convnext_tiny takes 32 or more, not 16"),
        ("densenet201", 28, "model.input_size: densenet201 takes 29 or more, not 28"),
        ("vit_b_16", 40, "model.input_size: vit_b_16 takes multiples of 16, not 40"),
        ("vit_h_14", 64, "model.input_size: vit_h_14 takes multiples of 14, not 64"),
        (
            "efficientnet_b9",
            32,
            "no network 'efficientnet_b9'; installed here are: convnext_tiny … convnext_large, densenet121 …",
        ),
        ("resnet19", 32, "timm/NAME, vit_b_16 … vit_h_14. Did you mean 'resnet18'?"),
        ("timm/resnet19", 32, "timm has no network 'resnet19'. Did you mean 'resnet18'?"),
        ("timm/resnet18.nowhere", 32, "model.name: timm/resnet18.nowhere: Invalid pretrained tag (nowhere)"),
        (
            "timm/test_vit",
            24,
            "model.input_size: timm/test_vit takes no 24 px: Input height (24) should be divisible by",
        ),
        ("timm/repvit_m0_9", 32, "model.name: timm/repvit_m0_9 cannot be used: it has no layer groups"),
        ("timm/test_resnet", 32, "search.frozen_layers: 30 is more than the 5 of timm/test_resnet"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_is_written(
    hpo_here: Hpo, tmp_path: Path, network: str, size: int, expected: str
) -> None:
    model = {"name": "resnet18", "weights": "none", "input_size": 32}
    study = Path(write_study(tmp_path, model=model, search={"learning_rate": {"low": 0.01, "high": 0.1}}))
    frozen = "30" if "frozen" in expected else "0"
    overrides = {"model.name": network, "model.input_size": str(size), "search.frozen_layers": frozen}
    ran = hpo_here(
        "run", str(study), *(part for key, value in overrides.items() for part in ("--set", f"{key}={value}"))
    )
    assert ran.returncode == 2
    assert expected in ran.stderr.splitlines()[-1]
    assert "Traceback" not in ran.stderr
    assert not (tmp_path / "hpo.db").exists()


def test_timms_names_need_timm(hpo_here: Hpo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import_module("hpo.vision.networks.timm")._architectures.cache_clear()
    monkeypatch.setitem(sys.modules, "timm", None)
    ran = hpo_here("submit", write_study(tmp_path), "--set", "model.name=timm/resnet18")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1)
    assert "timm/NAME needs timm; install it with: pip install timm" in ran.stderr
    assert not (tmp_path / "hpo.db").exists()


def test_timms_names_are_those_that_its_code_registers() -> None:
    import timm

    assert import_module("hpo.vision.networks.timm")._architectures() == {*timm.list_models()}
