"""What every study file says, whatever its objective, as frozen typed data."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from hpo.doors.section import Section

if TYPE_CHECKING:
    from hpo.doors.parameters import SearchSection


def _checked_name(name: str) -> str:
    if not name.isprintable() or name[0] in " -" or "/" in name or "\\" in name:
        raise ValueError(f"must not begin with space or '-', nor contain slashes or control characters, not {name!r}")
    return name


class SamplerSpec(Section):
    """How parameters are chosen."""

    name: Literal["auto", "tpe", "gp", "random", "grid"] = "auto"
    """`auto`: a Gaussian process while the trials are few, then TPE."""


class PrunerSpec(Section):
    """Which trials are stopped early."""

    name: Literal["asha", "hyperband", "median", "none"] = "asha"
    min_epochs: Annotated[int, Field(ge=1)] | None = None
    """No trial is pruned before so many epochs; a third of them if not given, since a high learning rate and strong
    augmentation learn slower at first.
    """
    min_steps: Annotated[int, Field(ge=1)] | None = None
    """The same as min_epochs, for objectives whose steps are not epochs."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha and hyperband: one in so many trials goes on at each rung."""

    @model_validator(mode="after")
    def _check(self) -> "PrunerSpec":
        if self.min_epochs is not None and self.min_steps is not None:
            raise ValueError("min_epochs and min_steps are the same; give one of them")
        return self

    @model_serializer(mode="wrap")
    def _without_newer_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that does not use them is what it was before there were such."""
        return {key: value for key, value in handler(self).items() if key != "min_steps" or value is not None}


class StopSpec(Section):
    """When a study stops before its budget is used up: whichever comes first. `hpo resume` continues it without the
    rule that stopped it.
    """

    patience: Annotated[int, Field(ge=1)] | None = None
    """So many finished trials in a row without a better feasible score."""
    target: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """A feasible score that is good enough."""
    max_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Hours that the trials of the study have run, those of all workers together."""


NEWER_KEYS = ("augmentation", "stop", "priority", "max_parallel")


class Spec(Section):
    """A whole study file. What it searches is said by the subclasses: images.py, custom.py."""

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_checked_name)]
    budget: Annotated[int, Field(ge=1, le=1_000_000)]
    """Trials that finish, complete or pruned, the baseline among them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The study stops when more trials than this share of the budget (and more than 2) have failed."""
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    """The name of an earlier study in the same database: its best configurations are tried first."""
    priority: Annotated[int, Field(ge=1, le=1000)] = 1
    """Of studies that are open at once, one with priority 3 gets three times the workers of one with 1."""
    max_parallel: Annotated[int, Field(ge=1)] | None = None
    """How many of its trials may run at once, on all machines together."""
    stop: StopSpec = StopSpec()

    if TYPE_CHECKING:  # declared by the subclasses, in the order in which files name them
        search: SearchSection
        objective: Any
        sampler: SamplerSpec
        pruner: PrunerSpec

    @model_serializer(mode="wrap")
    def _without_unused_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study without a newer key is what it was before there was such."""
        unused = [name for name in NEWER_KEYS if getattr(self, name, None) == self._default_of(name)]
        return {key: value for key, value in handler(self).items() if key not in unused}

    @classmethod
    def _default_of(cls, name: str) -> Any:
        return cls.model_fields[name].get_default() if name in cls.model_fields else None

    @property
    def objective_name(self) -> str:
        """The objective's name, as OBJECTIVES finds it."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """How many times a trial reports."""
        raise NotImplementedError

    @property
    def step_word(self) -> str:
        """What one step is called."""
        return "step"

    @property
    def waits_for_baseline(self) -> bool:
        """Whether other trials need what the baseline has learned, and so cannot start before it is complete."""
        return False

    @property
    def shows_percent(self) -> bool:
        """Whether the parts of a score are shares of 1, shown in percent."""
        return False

    @property
    def trade_off(self) -> tuple[str, str] | None:
        """Names of the two fields that `hpo pareto` weighs against each other; None for all parts of the score."""
        return None

    @property
    def hold_outs(self) -> list[str]:
        """Parts of the score that no trial is trained for."""
        return []

    def control_of(self, params: Mapping[str, Any]) -> dict[str, Any] | None:
        """The parameters of a candidate's control: what tells how much of its gain is due to what the search is for,
        rather than to other parameters; None if there is no such thing.
        """
        return None

    @property
    def shared_files(self) -> list[str]:
        """Names of the files that the objective may keep for all workers, beside checkpoints."""
        return []

    @property
    def is_constrained(self) -> bool:
        """Whether the study file sets a limit that makes trials infeasible."""
        return False

    def identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint of a study of this name to be this study's, wherever its files lie."""
        raise NotImplementedError

    def summary(self) -> list[str]:
        """What is searched and how it is scored: lines of Markdown."""
        raise NotImplementedError

    @property
    def folder_name(self) -> str:
        """The study's name as a folder's: a name holds no slashes, but may be nothing but dots."""
        return self.name if self.name.strip(".") else f"_{self.name}_"

    @property
    def first_rung(self) -> int:
        """No trial is pruned or paused before so many steps."""
        return self.pruner.min_epochs or self.pruner.min_steps or math.ceil(self.steps / 3)

    @model_validator(mode="after")
    def _check_search(self) -> "Spec":
        named = [name for name, _ in self.search.parameters()]
        if not self.search.searched and self.budget > 2:
            names = ", ".join(self.search.rows) or "your own parameters"
            raise ValueError(
                f"search: nothing to search; give a range or choices to one of {names}, or budget = 2 for one fixed "
                "configuration and the baseline"
            )
        if self.warm_start == self.name:
            raise ValueError("warm_start: a study cannot start from itself; name an earlier one, or leave it out")
        if self.sampler.name == "grid" and self.warm_start is not None:
            raise ValueError("warm_start: the grid tries all its points anyway; leave warm_start out")
        if self.sampler.name == "grid" and named and self.budget > 1 + (points := len(self.search.grid())):
            raise ValueError(
                f"budget: the grid has {points} points; with the baseline at most {points + 1}, not {self.budget}"
            )
        return self


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training.epochs": 3, ...} of a nested dictionary; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
