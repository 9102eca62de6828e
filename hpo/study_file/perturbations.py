"""The perturbations of a study file: those that are scored, [[objective.perturbations]], and those that training images
get, [[augmentation.perturbations]].
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, SerializeAsAny, ValidationError, ValidationInfo, model_validator
from pydantic_core import PydanticKnownError

from hpo.doors.parameters import is_kept
from hpo.doors.perturbation import PERTURBATIONS, AdaptivePerturbation, NotInstalled, Perturbation
from hpo.doors.section import Section
from hpo.errors import InputError
from hpo.study_file.custom import is_taken
from hpo.study_file.messages import with_allowed_keys
from hpo.study_file.parameters import PARAMETERS
from hpo.trial_result import CLEAN, as_column


def _perturbation(given: Any, info: ValidationInfo) -> Perturbation:
    """A table as the member of its name reads it."""
    if isinstance(given, Perturbation):
        return given
    if not isinstance(given, Mapping):
        raise PydanticKnownError("model_type", {"class_name": Perturbation.__name__})
    name = given.get("name")
    if not isinstance(name, str):
        raise ValueError(f"name is required: {' or '.join(PERTURBATIONS.names())}")
    try:
        kind = PERTURBATIONS.find(name)
    except InputError as error:
        if is_kept(info):
            return NotInstalled.model_validate(given)
        raise ValueError(str(error)) from None
    try:
        return kind.model_validate(given, context=info.context)
    except ValidationError as error:
        raise with_allowed_keys(error, kind, (name,)) from None


def _training_perturbation(given: Any, info: ValidationInfo) -> Perturbation:
    return _perturbation({"weight": 1.0, **given} if isinstance(given, Mapping) else given, info)


def _refuse_twice(perturbations: Sequence[Perturbation]) -> None:
    names = [perturbation.name for perturbation in perturbations]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"perturbation '{name}' is listed twice; keep one of them")


def against(network: Literal["baseline", "self"], perturbations: Sequence[Perturbation]) -> list[AdaptivePerturbation]:
    """Those of the perturbations that are chosen by gradient against this network."""
    return [p for p in perturbations if isinstance(p, AdaptivePerturbation) and p.against == network]


class AugmentationSpec(Section):
    """What training images are perturbed with, where that is not what is scored."""

    perturbations: (
        Annotated[
            list[Annotated[SerializeAsAny[Perturbation], PlainValidator(_training_perturbation)]], Field(min_length=1)
        ]
        | None
    ) = None
    """One table for each, with the keys of `[[objective.perturbations]]`; `weight`, 1 unless given and at most that, is
    its share of the perturbed images, in relation to the others'. Without any, training images get what counts in the
    score, in equal shares, but for what is chosen against the scored network itself.
    """

    @model_validator(mode="after")
    def _check(self) -> "AugmentationSpec":
        _refuse_twice(self.perturbations or ())
        for perturbation in self.perturbations or ():
            if not perturbation.weight:
                raise ValueError(f"perturbation '{perturbation.name}': its weight must be above 0, or leave it out")
        return self


class ObjectiveSpec(Section):
    """The score: a weighted mean of clean and perturbed accuracies."""

    name: Annotated[Literal["robust-accuracy"], Field(exclude=True)] = "robust-accuracy"
    """The objective; one of an installed package has sections of its own."""
    clean: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the clean accuracy; with those of the perturbations it sums to 1."""
    max_clean_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """A trial is feasible if its clean accuracy is at most so far below the baseline's."""
    perturbations: Annotated[
        list[Annotated[SerializeAsAny[Perturbation], PlainValidator(_perturbation)]], Field(min_length=1)
    ]

    @model_validator(mode="after")
    def _check(self) -> "ObjectiveSpec":
        for perturbation in self.perturbations:
            _check_name(perturbation.name)
        _refuse_twice(self.perturbations)
        weights = [self.clean, *(perturbation.weight for perturbation in self.perturbations)]
        if not math.isclose(sum(weights), 1, abs_tol=1e-6):
            parts = " + ".join(f"{weight:g}" for weight in weights)
            raise ValueError(f"the weights must sum to 1, but clean and perturbations give {parts} = {sum(weights):g}")
        if not any(weights[1:]):
            raise ValueError("at least one perturbation must have a weight above 0")
        return self

    def score(self, parts: Mapping[str, float]) -> float:
        """The weighted mean of the accuracies that are known, by name, the clean one among them."""
        known = self._known(parts)
        weighted = self.clean * parts[CLEAN] + sum(p.weight * parts[p.name] for p in known)
        if not any(p.weight for p in self.perturbations if p not in known):
            return weighted
        weight = self.clean + sum(p.weight for p in known)
        return weighted / weight if weight else parts[CLEAN]

    def mean_perturbed(self, parts: Mapping[str, float]) -> float | None:
        """The same without the clean one; None if no other is known that counts."""
        known = self._known(parts)
        weight = sum(p.weight for p in known)
        return sum(p.weight * parts[p.name] for p in known) / weight if weight else None

    def _known(self, parts: Mapping[str, float]) -> list[Perturbation]:
        return [perturbation for perturbation in self.perturbations if perturbation.name in parts]


def _check_name(name: str) -> None:
    if name == CLEAN:
        raise ValueError(f"no perturbation may be called '{CLEAN}', which is what unperturbed images are called")
    column = as_column(name)
    is_free = column.isidentifier() and column not in PARAMETERS and not is_taken(column)
    if not is_free and name not in PERTURBATIONS.own():
        raise ValueError(f"perturbation '{name}': --where could not ask for an accuracy of this name")
