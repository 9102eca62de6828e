"""Weights between the baseline's and a trial's own: what is mixed, measured anew, and kept."""

from functools import partial
from pathlib import Path

import pytest
import torch
from support.studies import make_spec
from test_objective import DATA, PARAMS, made
from test_step import FP32, results, start, training_images, tuning_images

from hpo.doors.objective import Trial
from hpo.errors import WeightsError
from hpo.vision.classifier import build_network, fingerprint
from hpo.vision.inference import Inference
from hpo.vision.scoring import evaluate
from hpo.vision.training.interpolation import SHARES, interpolate

pytestmark = pytest.mark.usefixtures("narrow_resnets")


@pytest.mark.parametrize("best", [0.4, 1.0])
def test_the_mixture_that_scores_best_is_kept_with_statistics_of_its_own(best: float) -> None:
    training = start(frozen=3, epochs=1)
    results(training)
    build = partial(build_network, "resnet18", 5, input_size=32, frozen_layers=0, seed=0)
    plain = build(weights={}).module.state_dict()
    plain = {name: tensor + 0.1 if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    own = {name: tensor.clone() for name, tensor in training.averaged.module.state_dict().items()}
    scores = iter(float(share == best) for share in (1, *SHARES))
    images, tuning = training_images(), tuning_images()
    scored = evaluate(Inference(training.averaged, FP32), tuning)
    share, found = interpolate(
        training, scored, plain, images, lambda weights: build(weights=weights), tuning, lambda _: next(scores)
    )
    assert share == best
    assert list(found) == ["clean", "noisy"]
    kept = training.averaged.module.state_dict()
    if best == 1:
        assert fingerprint(kept) == fingerprint(own)
        return
    learned = dict(training.averaged.module.named_parameters())
    assert {"conv1.weight", "fc.weight"} <= learned.keys(), "frozen units and the head are mixed too"
    for name, parameter in learned.items():
        torch.testing.assert_close(parameter.data, 0.6 * plain[name] + 0.4 * own[name])
    augmented = training.recipe.augmentation(images.pixels(torch.arange(21)), images.keys, 0, 1)
    convolved = training.averaged.module.conv1(training.averaged.normalise(augmented))
    torch.testing.assert_close(kept["bn1.running_mean"], convolved.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_a_trial_ends_between_the_baseline_and_itself(
    tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPO_DATA_ROOT", str(data_root))
    spec = make_spec(data=DATA, search={"augmentation_strength": {"low": 0.5, "high": 1.0}, "interpolated": "yes"})
    assert spec.waits_for_baseline
    objective = made(spec, tmp_path)
    params = PARAMS | {"interpolated": "yes"}
    with pytest.raises(WeightsError, match=r"baseline.safetensors .* cannot be found"):
        next(iter(objective.run(Trial(1, params, seed=0, steps=2))))
    list(objective.run(Trial(0, PARAMS | {"augmentation_strength": 0.0}, seed=0, steps=2, baseline=True)))
    alone = list(objective.run(Trial(1, PARAMS, seed=0, steps=2)))
    first, last = objective.run(Trial(2, params, seed=0, steps=2))
    assert first.parts == alone[0].parts
    assert "interpolated_share" not in first.attributes
    assert last.attributes["interpolated_share"] in (1, *SHARES)
    assert last.score >= alone[-1].score
    first, tested = objective.run(Trial(3, params, seed=0, steps=2, split="test"))
    assert first.parts == {}, "test images are looked at once"
    assert tested.attributes["interpolated_share"] in (1, *SHARES)
    assert {outcome.condition for outcome in tested.outcomes if outcome.main} == set(tested.parts)
