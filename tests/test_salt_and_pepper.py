"""Salt and pepper: how many pixels, of which colours. What holds for all perturbations is in test_perturbations.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hpo


@given(st.floats(0.01, 1))
@settings(max_examples=20, deadline=None)
def test_a_share_of_the_pixels_is_black_or_white_and_all_channels_with_it(amount: float) -> None:
    perturbed = hpo.perturb("salt-and-pepper", torch.full((64, 3, 32, 32), 0.5), amount)
    assert set(perturbed.unique().tolist()) <= {0.0, 0.5, 1.0}
    assert torch.equal(perturbed[:, 0], perturbed[:, 1])
    for value in (0, 1):
        share = (perturbed[:, 0] == value).float().mean().item()
        assert share == pytest.approx(amount / 2, abs=0.01)  # 5 standard deviations of 65,536 pixels
