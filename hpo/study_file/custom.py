"""The study file of an objective of an installed package: its own settings, and a free [search]."""

import json
import keyword
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from hpo.doors.objective import OBJECTIVES, Objective
from hpo.doors.parameters import Choices, Parameter, Range, Row, SearchSection, Value, free_row, is_kept
from hpo.doors.section import Section
from hpo.errors import InputError
from hpo.study_file.messages import with_allowed_keys
from hpo.study_file.spec import PrunerSpec, SamplerSpec, Spec

TAKEN = (
    *("study", "number", "state", "score", "worker", "started_at", "finished_at", "baseline", "feasible", "params"),
    *("clean_accuracy", "perturbed_accuracy", "gaussian_noise", "pixel_recolor", "violation", "images"),
)
"""Names that mean something else in `hpo top --where` or `--csv`."""


class CustomSearch(SearchSection):
    """Parameters of any names: `{ low, high }` (whole numbers if both are), `{ low, high, log }`, `{ choices }`, or a
    value, which fixes one.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Parameter] = Field(init=False)

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> "CustomSearch":
        for name, parameter in self._named().items():
            if (why := _why_not(name)) and not is_kept(info):
                raise ValueError(f"{name!r} {why}; choose another name for this parameter")
            free_row(name, parameter)
        return self

    def _named(self) -> dict[str, Value | Range | Choices]:
        return self.__pydantic_extra__ or {}

    @cached_property
    def rows(self) -> Mapping[str, Row]:
        return {name: free_row(name, parameter) for name, parameter in self._named().items()}


def is_taken(name: str) -> bool:
    """Whether `hpo top` takes the name for something else."""
    return name in TAKEN or name.lower() in ("null", "none", "true", "false") or keyword.iskeyword(name.lower())


def _why_not(name: str) -> str | None:
    """Why no parameter may have this name, if so: `--where` could not tell it from something else."""
    if is_taken(name):
        return "is taken"
    return None if name.isidentifier() else "may only have letters, digits and underscores"


class CustomObjective(Section):
    """Which objective, how often a trial reports, and the objective's own settings."""

    model_config = ConfigDict(extra="allow")
    name: str
    """Of an entry point in the group `hpo.objectives` of an installed package."""
    steps: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """How many times a trial reports; it may be paused or pruned between two."""

    @property
    def settings(self) -> dict[str, Any]:
        """The objective's own, by key."""
        return self.__pydantic_extra__ or {}


class CustomSpec(Spec):
    """A whole study file of an objective that is not hpo's own."""

    search: CustomSearch
    objective: CustomObjective
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()

    @property
    def objective_name(self) -> str:
        return self.objective.name

    @property
    def steps(self) -> int:
        return self.objective.steps

    def identity(self) -> dict[str, Any]:
        return self.model_dump(mode="json", include={"seed", "objective"})

    def summary(self) -> list[str]:
        settings = ", ".join(f"{key} = {value}" for key, value in self.objective.settings.items())
        return [
            f"Objective **{self.objective.name}**{f' ({settings})' if settings else ''}.",
            "Trial 0 is the *baseline*: the study file's defaults; it is never pruned.",
        ]

    @model_validator(mode="before")
    @classmethod
    def _fill_in_settings(cls, document: Any, info: ValidationInfo) -> Any:
        """Checks the objective's settings, and keeps its defaults with the study, whoever changes them later."""
        objective = document.get("objective") if isinstance(document, Mapping) else None
        if is_kept(info) or not isinstance(objective, Mapping):
            return document
        kind = find_objective(str(objective.get("name")))
        own = {key: value for key, value in objective.items() if key not in Objective.reserved}
        try:
            settings = kind.Settings.model_validate(own)
        except ValidationError as error:
            raise with_allowed_keys(error, kind.Settings, ("objective",), Objective.reserved) from None
        hpos = {key: value for key, value in objective.items() if key in Objective.reserved}
        return {**document, "objective": hpos | settings.model_dump(mode="json")}


def find_objective(name: str) -> type[Objective]:
    """Raises ValueError if no objective of this name is installed."""
    try:
        return OBJECTIVES.find(name)
    except InputError as error:
        raise ValueError(f"objective.name: {error}") from None


def settings_of(spec: CustomSpec, kind: type[Objective]) -> Section:
    """The settings of a study that was submitted, as this machine's version of the objective reads them. Raises
    InputError.
    """
    try:
        return kind.Settings.model_validate_json(json.dumps(spec.objective.settings))
    except ValidationError as error:
        reason = error.errors()[0]
        key = ".".join(map(str, reason["loc"]))
        raise InputError(
            f"study '{spec.name}': objective.{key}: {reason['msg']}: this machine has another version of "
            f"objective '{spec.objective_name}'"
        ) from None
