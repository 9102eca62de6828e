"""The real objective: what it keeps so that a trial can go on elsewhere."""

from itertools import islice
from pathlib import Path

import pytest
from conftest import make_spec

from hpo.artifacts import Artifacts
from hpo.objective import RobustAccuracy
from hpo.search.measurement import Trial


def test_a_trial_that_is_paused_goes_on_as_if_it_had_not_been(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    data = {"name": "digits", "images_per_class": 15, "validation_fraction": 0.1}
    objective = RobustAccuracy(make_spec(data=data), threads=1, artifacts=Artifacts(str(tmp_path)))
    params = {"batch_size": 16, "learning_rate": 0.05, "frozen_layers": 1, "augmentation_strength": 0.5}
    params["initial_weights"] = "pretrained"
    unbroken = [measured.parts for measured in objective.run(Trial(1, params, baseline=False))]
    assert list(tmp_path.rglob("*.safetensors")), "the last checkpoint, until the trial is discarded"
    objective.discard([1])
    assert not list(tmp_path.rglob("*.safetensors"))

    before = objective.run(Trial(2, params, baseline=False))
    assert [measured.parts for measured in islice(before, 1)] == unbroken[:1]
    before.close()
    after = list(objective.run(Trial(2, params, baseline=False, continues=(2,))))
    assert [measured.parts for measured in after] == unbroken
    assert [measured.resumed for measured in after] == [True, False, False]
