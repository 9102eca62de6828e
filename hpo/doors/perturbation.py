"""What every perturbation is: settings, as a study file gives them, and a function of whole batches of images."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationError, model_validator

from hpo.doors.registry import Door
from hpo.doors.section import Section
from hpo.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    Gradient = Callable[[Tensor], Tensor]
    State = dict[str, Tensor]

LEVELS = 5
FACTORS = (0.25, 0.5, 1.5, 2.0)


class Perturbation(Section):
    """A table of `[[objective.perturbations]]`. A subclass adds its settings as fields, names in `severity` the one
    that says how strong it is, and defines `apply`. Settings are read where PyTorch is not loaded: import it there.
    """

    weight: Annotated[float, Field(ge=0, le=1)]
    """Share of this accuracy in the score; 0 only measures it, when a training ends."""
    name: str
    severity: ClassVar[str]
    """The name of the setting that is its severity: a number above 0."""

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """Perturbed images, float32 (n, 3, height, width) in [0, 1], at their own size, before normalisation.

        pixels: float32 (n, 3, height, width) in [0, 1], not to be changed; keys: int64 (n,), from which all random
        numbers come (`hpo.uniform`, `hpo.normal`), so that an image is perturbed alike in whatever batch; severity:
        float32 (n,), at least 0, which leaves an image as it is.
        """
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _check_level(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and "level" in given and "level" not in cls.model_fields:
            raise ValueError(f"{given.get('name')} has no levels; give {cls.severity}")
        return given

    @property
    def scored_severity(self) -> float:
        """The severity that trials are scored at. Raises InputError if the perturbation is not installed."""
        return float(getattr(self, self.severity))

    @property
    def setting(self) -> float:
        """What a study file says of its severity: `sigma`, `photons`."""
        return float(getattr(self, self.severity))

    def variants(self) -> "list[Perturbation]":
        """The same at the severities that a confirmation measures, itself among them, the weakest first: a quarter of
        the setting to twice as much, where a study file may say so.
        """
        return self._at([factor * self.setting for factor in FACTORS])

    def _at(self, settings: Iterable[float]) -> "list[Perturbation]":
        """With these settings, rounded where they are whole numbers, but for those that it may not have; and itself."""
        whole = type(self).model_fields[self.severity].annotation is int
        found: dict[float, Perturbation] = {self.setting: self}
        for value in settings:
            given = round(value) if whole else float(f"{value:.12g}")  # 0.3, not 0.30000000000000004
            with contextlib.suppress(ValidationError):
                found.setdefault(given, type(self).model_validate({**self.model_dump(), self.severity: given}))
        return sorted(found.values(), key=lambda each: each.scored_severity)

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if cls.__module__ == __name__:
            return
        field = cls.model_fields.get(cls.severity) if isinstance(getattr(cls, "severity", None), str) else None
        if field is None or field.annotation not in (int, float) or cls.severity == "weight":
            raise TypeError(f"{cls.__name__}.severity must name a field of its own, a float or int")
        if cls.apply is Perturbation.apply:
            raise TypeError(f"{cls.__name__} must define apply(pixels, keys, severity)")
        for method in ("start", "step"):
            if getattr(cls, method, None) is getattr(AdaptivePerturbation, method):
                raise TypeError(f"{cls.__name__} must define {method}, as hpo.AdaptivePerturbation describes it")


class LeveledPerturbation(Perturbation):
    """A family of Tiny-ImageNet-C (Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
    Corruptions and Perturbations", ICLR 2019, arXiv:1903.12261): a study file may give a level in place of the setting
    that is its severity.
    """

    level: Annotated[int | None, Field(ge=1, le=LEVELS, exclude=True)] = None
    """Tiny-ImageNet-C's level, in place of the severity, where the next table names levels."""
    levels: ClassVar[tuple[float, float, float, float, float]]
    """The severity's setting at levels 1 to 5."""

    def variants(self) -> list[Perturbation]:
        """Itself, and the five levels, the weakest first."""
        return self._at(self.levels)

    @model_validator(mode="before")
    @classmethod
    def _take_level(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        level = given.get("level")
        if level is None:
            if cls.severity in given or given.keys() - cls.model_fields.keys():  # a misspelt key is told as such
                return given
            raise ValueError(f"give {cls.severity}, or level = 1 to {LEVELS}")
        if cls.severity in given:
            raise ValueError(f"level and {cls.severity} say the same; give one of them")
        if type(level) is int and 1 <= level <= LEVELS:
            others = {key: value for key, value in given.items() if key != "level"}
            return {**others, cls.severity: cls.levels[level - 1]}
        return {**given, cls.severity: cls.levels[0]}  # that the level is wrong is said of the level


class AdaptivePerturbation(Perturbation):
    """Chosen by gradient, for a network whose mistakes it looks for. A subclass defines `start` and `step`."""

    against: Literal["baseline", "self"] = "baseline"
    """`baseline`: images that are made once, against the study's own baseline; `self`: against the network that is
    scored, when its trial ends, or that is trained, anew in each epoch.
    """
    images: Annotated[int, Field(ge=1)] = 256
    """How many of the tuning images are scored against `self`; against the baseline all are."""
    restarts: Annotated[int, Field(ge=1, le=100)] = 1
    """How often images start anew that the network still gets right; the hardest of all results counts."""

    steps: Annotated[int, Field(ge=0, le=1000)] = 20
    """Steps up the loss; each costs one gradient."""

    def start(
        self, pixels: "Tensor", keys: "Tensor", severity: "Tensor", restart: int, gradient_at: "Gradient"
    ) -> "State":
        """Where to climb from: `images`, float32 (n, 3, height, width), and what else the steps need, each tensor with
        a row for each image.

        pixels, keys and severity as for `apply`, and n is not 0; restart: from 0, with other keys each time;
        gradient_at: the gradient of the cross-entropy of each of these images at others.
        """
        raise NotImplementedError

    def step(self, state: "State", gradient: "Tensor", number: int) -> "State":
        """One step up, of the images that are not misclassified yet. gradient: float32 (n, 3, height, width), of the
        cross-entropy at what 8 bits make of `images`; number: of the step, from 0.
        """
        raise NotImplementedError

    @staticmethod
    def apply(pixels: "Tensor", keys: "Tensor", severity: "Tensor") -> "Tensor":
        """What is chosen by gradient needs a network."""
        raise NotImplementedError


PERTURBATIONS = Door("perturbation", "hpo.vision.perturbations", "hpo.perturbations", Perturbation)


class NotInstalled(Perturbation):
    """Of a study that was submitted where its package is installed: its trials can be read here, and no more."""

    model_config = ConfigDict(extra="allow")

    @property
    def scored_severity(self) -> float:
        """Raises InputError."""
        PERTURBATIONS.find(self.name)
        raise InputError(f"perturbation '{self.name}' was not installed here when this process started")
