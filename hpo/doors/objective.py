"""What every objective is: settings, as a study file gives them, and measurements of a trial, step by step.

An objective knows neither the database nor how trials are chosen. The worker that runs it records what it yields, keeps
its checkpoints and files, and decides when a trial ends.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from hpo.doors.parameters import Params
from hpo.doors.registry import Door
from hpo.doors.section import Section

if TYPE_CHECKING:
    from numpy.typing import NDArray

Split = Literal["tuning", "test"]
Take = Callable[[], Callable[[], bytes]]
"""Copies what a checkpoint needs, quickly, and returns what makes the bytes, which runs beside the next step."""


@dataclass(frozen=True)
class Trial:
    """What an objective measures.

    number: within the study; params: by name; seed: of everything random in this trial; steps: how many times it
    reports, from 1; split: which data score it. "tuning": those that the search may look at. "test": the locked ones,
    after the last step only, of a model that learned from all other data, the tuning data included; `hpo confirm` asks
    for that. baseline: whether it is the baseline of a search; checkpoint: what an earlier run of this configuration
    yielded last, to go on from, or None; test_sets: paths of further locked data.
    """

    number: int
    params: Params
    seed: int
    steps: int
    split: Split = "tuning"
    baseline: bool = False
    checkpoint: bytes | None = None
    test_sets: Sequence[str] = ()


@dataclass(frozen=True)
class BelowBaseline:
    """A constraint: `part` may be at most `at_most` below the baseline's."""

    part: str
    at_most: float


Constraint = float | BelowBaseline


@dataclass(frozen=True)
class Outcome:
    """What a trial that is scored on locked data got under one condition.

    condition: its name; value: the mean, such as an accuracy; right: bool (n,), which of the n examples were right, in
    the same order for all trials; None if no more than the mean is known; severity: of the condition, where it has one;
    main: whether something is claimed of it, as of the conditions of the score; others give the picture; digest: of the
    examples, where they are not the study's own.
    """

    condition: str
    value: float
    right: "NDArray[Any] | None" = None
    severity: float | None = None
    main: bool = True
    digest: str | None = None


@dataclass(frozen=True)
class Measurement:
    """What an objective yields after each step.

    step: 1 to Trial.steps; score: is maximised; parts: what the score is made of, by name; checkpoint: what a later run
    of the trial can go on from, as bytes or as a function that takes it; constraints: by name, a number (above 0 is
    infeasible), or a comparison with the baseline; attributes: what else is kept with the trial, in JSON's types, if
    this is its last step; keep: gives files by name (.png, .safetensors, …) for trials that are worth keeping: the
    baseline, and each trial that is the best feasible one when it ends; outcomes: of the last step of a trial with
    split "test", under every condition; without any, its parts are taken for that.

    The score of an earlier step of such a trial may be NaN: nothing is scored then.
    """

    step: int
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)
    checkpoint: bytes | Take | None = None
    constraints: Mapping[str, Constraint] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    keep: Callable[[], Mapping[str, bytes]] = dict
    outcomes: Sequence[Outcome] = ()


class Store(Protocol):
    """A folder in the artifact store that all workers of a study share."""

    @property
    def location(self) -> str:
        """For messages."""
        ...

    def read(self, name: str) -> bytes | None:
        """None if there is no such file. Raises OSError."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Whole or not at all. Raises OSError."""
        ...


@dataclass(frozen=True)
class Context:
    """Where an objective runs. seed: the study's; threads: how many CPU threads it may use, None for its own choice;
    study: the whole study file; store: files that the study's workers share; say: prints a line for the worker's log.
    """

    seed: int
    threads: int | None
    study: Any
    store: Store
    say: Callable[[str], None]


class Objective:
    """What a study searches; set up once in each worker. A subclass adds settings and defines `run`."""

    class Settings(Section):
        """What `[objective]` holds beside name and steps."""

    reserved: ClassVar[tuple[str, ...]] = ("name", "steps")
    """Keys of [objective] that hpo itself reads."""
    takes_test_sets: ClassVar[bool] = False
    """Whether it scores Trial.test_sets, which `hpo confirm --test-set` names."""

    def __init__(self, settings: Any, context: Context) -> None:
        """settings: an instance of Settings. Raises hpo.InputError for what is wrong with this machine or its files."""

    def fingerprints(self) -> Mapping[str, str]:
        """What must be equal on all workers of the study, by name: digests of data and weights."""
        return {}

    def about(self) -> Mapping[str, Any]:
        """What the study's first worker keeps with the study, in JSON's types."""
        return {}

    def check(self) -> None:
        """Raises hpo.InputError if this study cannot be run as it is given; asked by the study's first worker only."""

    def checkpoint_identity(self) -> Mapping[str, Any]:
        """What must be equal, beside study file, fingerprints and parameters, for a checkpoint of another worker to be
        gone on from: a precision, a version of the format.
        """
        return {}

    def run(self, trial: Trial) -> Iterator[Measurement]:
        """Measures one configuration. The caller closes the iterator when the trial is paused or pruned. Raises
        MemoryError if the configuration needs more memory than there is, which gives the trial the worst score.
        """
        raise NotImplementedError

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not (isinstance(cls.Settings, type) and issubclass(cls.Settings, Section)):
            raise TypeError(f"{cls.__name__}.Settings must be a subclass of hpo.Section")
        if cls.run is Objective.run:
            raise TypeError(f"{cls.__name__} must define run(trial)")
        if taken := [key for key in cls.reserved if key in cls.Settings.model_fields]:
            raise TypeError(f"{cls.__name__}.Settings may not have {' and '.join(taken)}: hpo itself reads them")


OBJECTIVES = Door("objective", "hpo.objectives", "hpo.objectives", Objective)
