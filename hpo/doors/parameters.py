"""The parameters of a trial, and what a study file's [search] may say of each: a value, a range, choices."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
    model_validator,
)

Value = int | float | str
Params = dict[str, Value]


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


@dataclass(frozen=True)
class Row:
    """A parameter.

    kind: of its values; low, high: the bounds of numbers; words: all that there are, the plain one first; log: whether
    choices are searched on a logarithmic scale; plain: what it is fixed at where a study file leaves it out, None if
    trials then do without it, as [training] says; good: what trial 1 tries where the file names no default; help: what
    it does.
    """

    name: str
    kind: Literal["whole", "number", "word"]
    plain: Value | None
    good: Value
    help: str
    low: float = -math.inf
    high: float = math.inf
    log: bool = False
    words: tuple[str, ...] = ()


PARAMETERS = {
    row.name: row
    for row in (
        Row(
            "batch_size",
            "whole",
            plain=128,
            good=64,
            low=2,
            high=65536,
            log=True,
            help="Images an update, 2 to 65536: BatchNorm learns nothing from one. Searched on a logarithmic scale.",
        ),
        Row(
            "learning_rate",
            "number",
            plain=0.02,
            good=0.02,
            low=1e-9,
            high=10,
            log=True,
            help="The optimizer's peak learning rate, above 0, at most 10.",
        ),
        Row(
            "frozen_layers",
            "whole",
            plain=0,
            good=0,
            low=0,
            high=1000,
            help="How many units, from the input on, keep their initial weights: a ResNet's stem, then each block.",
        ),
        Row(
            "augmentation_strength",
            "number",
            plain=0.0,
            good=1.0,
            low=0,
            high=1,
            help="0 (no perturbed training images) to 1 (with up to twice the severity that is scored).",
        ),
        Row(
            "initial_weights",
            "word",
            plain="pretrained",
            good="pretrained",
            words=("pretrained", "baseline"),
            help="`pretrained` (those of [model]), or `baseline` (what the study's own baseline trial learned).",
        ),
        Row(
            "weight_decay",
            "number",
            plain=None,
            good=5e-4,
            low=0,
            high=1,
            log=True,
            help="As training.weight_decay, which it takes the place of.",
        ),
        Row(
            "label_smoothing",
            "number",
            plain=None,
            good=0.1,
            low=0,
            high=0.99,
            help="As training.label_smoothing, which it takes the place of.",
        ),
        Row(
            "perturbed_share",
            "number",
            plain=None,
            good=0.5,
            low=0,
            high=1,
            help="The share of the training images that are perturbed, 0.5 where it is left out.",
        ),
        Row(
            "optimizer",
            "word",
            plain=None,
            good="sgd",
            words=("sgd", "adamw"),
            help="`sgd` (with Nesterov momentum; where it is left out) or `adamw`, which takes lower learning rates.",
        ),
        Row(
            "frozen_side",
            "word",
            plain=None,
            good="input",
            words=("input", "output"),
            help="Where frozen_layers counts from: `input` (where it is left out) or `output`; the head always learns.",
        ),
    )
}
"""All that a trial may try: what [search] accepts, the samplers' distributions and the order of columns."""


def _check(row: Row, parameter: Value | Range | Choices, kept: bool) -> None:
    if row.kind == "word":
        if isinstance(parameter, Range) or any(word not in row.words for word in values_in(parameter)):
            words = [f"'{word}'" for word in row.words]
            raise ValueError(f"must be {', '.join(words)}, or {{ choices = [{', '.join(words)}] }}")
        return
    low = 1 if row.name == "batch_size" and kept else row.low  # before 1 was refused
    whole = row.kind == "whole"
    for value in values_in(parameter):
        allowed = f"{'a whole number' if whole else 'a number'} from {low:g} to {row.high:g}"
        if isinstance(value, str) or (whole and not isinstance(value, int)) or not low <= value <= row.high:
            raise ValueError(f"{str(value)[:60]} is not {allowed}")


class SearchSection(Section):
    """The parameters of a trial, a key for each of PARAMETERS: a value fixes one; a range or a list of choices searches
    it.
    """

    @field_validator("*")
    @classmethod
    def _check(cls, value: Value | Range | Choices | None, info: ValidationInfo) -> Value | Range | Choices | None:
        if value is None:
            return None
        if isinstance(value, Choices) and len(value.choices) == 1:
            value = value.choices[0]
        _check(PARAMETERS[str(info.field_name)], value, is_kept(info))
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that names none of the newer parameters is what it was before there were such."""
        return {key: value for key, value in handler(self).items() if value is not None}

    def parameters(self) -> Iterator[tuple[str, Value | Range | Choices]]:
        """(name, what the file says of it) of every parameter that trials have, in the table's order."""
        for name in PARAMETERS:
            if (parameter := getattr(self, name)) is not None:
                yield name, parameter

    def values(self, name: str) -> list[Value]:
        """Those that the file names of a parameter: both ends of a range, the choices, or the fixed value."""
        return values_in(getattr(self, name))

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
        return "baseline" in self.values("initial_weights")


if TYPE_CHECKING:
    SearchSpec = SearchSection
else:
    SearchSpec = create_model(
        "SearchSpec",
        __base__=SearchSection,
        __module__=__name__,
        **{
            row.name: (
                Parameter if row.plain is not None else Parameter | None,
                Field(default=row.plain, description=row.help),
            )
            for row in PARAMETERS.values()
        },
    )


def _default(name: str, parameter: Value | Range | Choices) -> Value:
    given = parameter.default if isinstance(parameter, Range | Choices) else None
    return _nearest(parameter, PARAMETERS[name].good if given is None else given)


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
