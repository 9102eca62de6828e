"""What an objective of one's own yields: numbers of any library are taken, mistakes are told in one line."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hpo
from hpo.search.measurements import checked


def check(measured: Any, previous: int = 0) -> hpo.Measurement:
    return checked(measured, "mine", hpo.Trial(7, {"rate": 0.1}, seed=0, steps=5), previous)


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), np.int64(2), torch.tensor(0.5), np.array([0.5]), math.nan])
def test_a_number_of_any_library_is_a_number(number: Any) -> None:
    constraints = {"limit": 0.5 if isinstance(number, float) and math.isnan(number) else number}
    measured = check(hpo.Measurement(step=1, score=number, parts={"part": number}, constraints=constraints))
    assert type(measured.constraints["limit"]) is float
    for found in (measured.score, measured.parts["part"]):
        assert type(found) is float
        assert found == number or math.isnan(number)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        ({"step": 1}, "trial 7: yielded {'step': 1}; yield hpo.Measurement"),
        (hpo.Measurement(step=0, score=1), "step is 0 after 1; steps are numbered 1, 2, … up to 5, in order"),
        (hpo.Measurement(step=1, score=1), "step is 1 after 1; steps"),
        (hpo.Measurement(step=6, score=1), "step is 6 after 1; steps"),
        (hpo.Measurement(step="2", score=1), "step is '2' after 1; steps"),
        (hpo.Measurement(step=2, score=1, parts=[0.5]), "parts is [0.5]; give values by name"),
        (hpo.Measurement(step=2, score=None), "step 2: score is None; give a number"),
        (hpo.Measurement(step=2, score="high"), "score is 'high'"),
        (hpo.Measurement(step=2, score=np.array([1, 2])), "score has several values"),
        (hpo.Measurement(step=2, score=1, parts={"a": [1]}), "part 'a' is [1]"),
        (hpo.Measurement(step=2, score=1, parts={"two words": 1}), "named 'two words'; allowed: letters"),
        (hpo.Measurement(step=2, score=1, parts={3: 1}), "named 3; allowed: letters"),
        (hpo.Measurement(step=2, score=1, parts={"rate": 1}), "part 'rate' has the name of a parameter"),
        (hpo.Measurement(step=2, score=1, parts={"score": 1}), "part 'score' has the name of a field"),
        (hpo.Measurement(step=2, score=1, parts={"images": 1}), "part 'images' has the name of a field"),
        (hpo.Measurement(step=2, score=1, parts={"and": 1}), "part 'and' has the name of a field or of a word"),
        (hpo.Measurement(step=2, score=10**5000), "score is so large a number"),
        (hpo.Measurement(step=2, score=1, checkpoint="text"), "checkpoint is 'text'; give bytes"),
        (hpo.Measurement(step=2, score=1, constraints={"c": None}), "constraint 'c' is None"),
        (
            hpo.Measurement(step=2, score=1, parts={"clean": 1}, constraints={"c": hpo.BelowBaseline("claen", 0.1)}),
            "compares part 'claen', which was not measured. Did you mean 'clean'?",
        ),
        (hpo.Measurement(step=2, score=1, attributes={"parts": [1]}), "attribute 'parts' has a name that hpo uses"),
        (hpo.Measurement(step=2, score=1, attributes={"made_by": 1}), "attribute 'made_by' has a name that hpo uses"),
        (hpo.Measurement(step=2, score=1, constraints={"worker": 1}), "constraint 'worker' has a name that hpo uses"),
        (
            hpo.Measurement(step=2, score=1, constraints={"loss": 1}, attributes={"loss": 1}),
            "constraint 'loss' has a name that hpo uses",
        ),
        (hpo.Measurement(step=2, score=1, attributes={"model": object}), "attribute 'model' is <class 'object'>"),
    ],
)
def test_a_mistake_names_objective_trial_and_value(measured: Any, said: str) -> None:
    with pytest.raises(hpo.InputError) as raised:
        check(measured, previous=1)
    assert str(raised.value).startswith("objective 'mine', trial 7")
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("given", "stored"), [(math.nan, 1.0), (math.inf, 1.0), (-math.inf, -1.0), (2.5, 2.5)])
def test_a_constraint_that_is_no_number_is_not_satisfied(given: float, stored: float) -> None:
    assert check(hpo.Measurement(step=1, score=0.5, constraints={"limit": given})).constraints == {"limit": stored}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_none(score: float) -> None:
    assert math.isnan(check(hpo.Measurement(step=1, score=score)).score)


anything = st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.text(max_size=9) | st.lists(st.floats())


@given(
    step=anything,
    score=anything,
    parts=st.dictionaries(st.sampled_from(["a", "noisy-b", "rate", "number", "a b", ""]), anything, max_size=3),
    attributes=st.dictionaries(st.text(max_size=5), anything, max_size=2),
)
def test_whatever_is_yielded_is_stored_or_refused_in_one_line(
    step: Any, score: Any, parts: Any, attributes: Any
) -> None:
    try:
        measured = check(hpo.Measurement(step=step, score=score, parts=parts, attributes=attributes))
    except hpo.InputError as error:
        refusal = str(error)
        assert "\n" not in refusal
    else:
        assert 1 <= measured.step <= 5
        json.dumps([measured.score, dict(measured.parts), dict(measured.attributes)])
