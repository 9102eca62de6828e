"""The parameters of a trial, and what a study file's [search] may say of each: a value, a range, choices."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

Value = int | float | str
Params = dict[str, Value]

FREEZABLE_LAYERS = {"resnet18": 9, "resnet34": 17, "resnet50": 17}
"""The most `frozen_layers` of each network: the stem and its residual blocks."""

PLAIN_FINE_TUNING: Params = {
    "batch_size": 128,
    "learning_rate": 0.02,
    "frozen_layers": 0,
    "augmentation_strength": 0.0,
    "initial_weights": "pretrained",
}
"""A parameter that a study file leaves out is fixed at this."""

KNOWN_TO_BE_GOOD: Params = PLAIN_FINE_TUNING | {"batch_size": 64, "augmentation_strength": 1.0}
"""Where the study file names no default, trial 1 tries what is nearest to this, and the baseline with strength 0."""


class Section(BaseModel):
    """A table of the study file: frozen, and no key is accepted that is not declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def is_kept(info: ValidationInfo) -> bool:
    """Whether it is read with a study, which may have been submitted before something was refused, or elsewhere."""
    return isinstance(info.context, dict) and bool(info.context.get("kept", False))


class Range(Section):
    """`{ low = 0.1, high = 1.0 }`: all values between, ends included."""

    low: int | float
    high: int | float
    log: bool = False
    """Search the logarithm."""
    default: int | float | None = None
    """The baseline has this value; and trial 1 tries all the defaults together, augmentation included."""

    @model_validator(mode="after")
    def _check(self) -> "Range":
        if self.low > self.high:
            raise ValueError(f"low = {self.low} is above high = {self.high}; exchange them")
        if self.log and self.low <= 0:
            raise ValueError(f"log = true needs low above 0, not {self.low}")
        if self.default is not None and not self.low <= self.default <= self.high:
            raise ValueError(f"default = {self.default} is not between low = {self.low} and high = {self.high}")
        return self


class Choices(Section):
    """`{ choices = [32, 64, 128] }`: these values only. Numbers are ordered, words are not."""

    choices: Annotated[list[Value], Field(min_length=1)]
    default: Value | None = None
    """As in a range."""

    @model_validator(mode="after")
    def _check(self) -> "Choices":
        if len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices = {self.choices} names a value twice")
        if self.default is not None and self.default not in self.choices:
            raise ValueError(f"default = {self.default!r} is not among choices = {self.choices}")
        return self


def _kind(value: object) -> str:
    if isinstance(value, Choices) or (isinstance(value, dict) and "choices" in value):
        return "choices"
    return "range" if isinstance(value, Range | dict) else "value"


Parameter = Annotated[
    Annotated[Value, Tag("value")] | Annotated[Range, Tag("range")] | Annotated[Choices, Tag("choices")],
    Discriminator(_kind),
]


def values_in(parameter: Value | Range | Choices) -> list[Value]:
    """The values that are named: both ends of a range, the choices, or the fixed value."""
    if isinstance(parameter, Range):
        return [parameter.low, parameter.high]
    return list(parameter.choices) if isinstance(parameter, Choices) else [parameter]


def _checkvalues_in(parameter: Value | Range | Choices, low: float, high: float, integer: bool) -> None:
    for value in values_in(parameter):
        allowed = f"{'a whole number' if integer else 'a number'} from {low:g} to {high:g}"
        if isinstance(value, str) or (integer and not isinstance(value, int)) or not low <= value <= high:
            raise ValueError(f"{str(value)[:60]} is not {allowed}")


class SearchSpec(Section):
    """The parameters of a trial: a value fixes one; a range or a list of choices searches it."""

    batch_size: Parameter = PLAIN_FINE_TUNING["batch_size"]
    """Images an update, 2 to 65536: BatchNorm learns nothing from one. Searched on a logarithmic scale."""
    learning_rate: Parameter = PLAIN_FINE_TUNING["learning_rate"]
    """Peak learning rate of SGD, above 0, at most 10."""
    frozen_layers: Parameter = PLAIN_FINE_TUNING["frozen_layers"]
    """How many units, from the input on, keep their initial weights: the stem, then each residual block."""
    augmentation_strength: Parameter = PLAIN_FINE_TUNING["augmentation_strength"]
    """0 (no perturbed training images) to 1 (half of them, with up to twice the severity that is scored)."""
    initial_weights: Parameter = PLAIN_FINE_TUNING["initial_weights"]
    """`pretrained` (those of [model]), or `baseline` (what the study's own baseline trial learned)."""

    @field_validator("*")
    @classmethod
    def _fix_a_single_choice(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        return value.choices[0] if isinstance(value, Choices) and len(value.choices) == 1 else value

    @field_validator("batch_size")
    @classmethod
    def _check_batch_size(cls, value: Value | Range | Choices, info: ValidationInfo) -> Value | Range | Choices:
        _checkvalues_in(value, 1 if is_kept(info) else 2, 65536, integer=True)
        return value

    @field_validator("learning_rate")
    @classmethod
    def _check_learning_rate(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        _checkvalues_in(value, 1e-9, 10, integer=False)
        return value

    @field_validator("frozen_layers")
    @classmethod
    def _check_frozen_layers(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        _checkvalues_in(value, 0, max(FREEZABLE_LAYERS.values()), integer=True)
        return value

    @field_validator("augmentation_strength")
    @classmethod
    def _check_augmentation_strength(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        _checkvalues_in(value, 0, 1, integer=False)
        return value

    @field_validator("initial_weights")
    @classmethod
    def _check_initial_weights(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        allowed = ("pretrained", "baseline")
        if isinstance(value, Range) or any(word not in allowed for word in values_in(value)):
            raise ValueError("must be 'pretrained', 'baseline', or { choices = ['pretrained', 'baseline'] }")
        return value

    def parameters(self) -> Iterator[tuple[str, Value | Range | Choices]]:
        """(name, what the file says of it) of every parameter, in the order above."""
        for name in type(self).model_fields:
            yield name, getattr(self, name)

    def baseline(self) -> Params:
        """The parameters of the baseline trial: the file's defaults, augmentation strength 0, the given weights."""
        return self.defaults() | {"augmentation_strength": 0.0, "initial_weights": "pretrained"}

    def defaults(self) -> Params:
        """The file's defaults; where it says none, what is known to be good, or what is allowed nearest to it."""
        return {name: _default(name, parameter) for name, parameter in self.parameters()}

    def nearest(self, params: Mapping[str, Value]) -> Params:
        """What this search allows that is nearest to `params`; its default where they say nothing."""
        defaults = self.defaults()
        return {name: _nearest(parameter, params.get(name, defaults[name])) for name, parameter in self.parameters()}

    def grid(self) -> list[Params]:
        """Every combination of the choices (fixed values have one). Raises ValueError if a parameter is a range."""
        names, columns = [], []
        for name, parameter in self.parameters():
            if isinstance(parameter, Range):
                raise ValueError(f"sampler: the grid needs choices, but search.{name} is a range")
            names.append(name)
            columns.append(values_in(parameter))
        return [dict(zip(names, row, strict=True)) for row in itertools.product(*columns)]

    @property
    def searched(self) -> list[str]:
        """Names of the parameters that have more than one possible value."""
        return [name for name, parameter in self.parameters() if len(set(values_in(parameter))) > 1]

    @property
    def may_start_from_baseline(self) -> bool:
        """Whether a trial may need the weights that the baseline trial learned."""
        return "baseline" in values_in(self.initial_weights)


def _default(name: str, parameter: Value | Range | Choices) -> Value:
    given = parameter.default if isinstance(parameter, Range | Choices) else None
    return _nearest(parameter, KNOWN_TO_BE_GOOD[name] if given is None else given)


def _nearest(parameter: Value | Range | Choices, value: Value) -> Value:
    """The allowed value nearest to `value`; of words, the first if it is not among them."""
    if not isinstance(parameter, Range | Choices):
        return parameter
    if isinstance(value, str):
        allowed = values_in(parameter)
        return value if value in allowed else allowed[0]
    if isinstance(parameter, Range):
        return min(max(value, parameter.low), parameter.high)
    return min((c for c in parameter.choices if not isinstance(c, str)), key=lambda choice: abs(choice - value))
