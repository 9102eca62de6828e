"""The parameters of a trial, and what a study file's [search] may say of each: a value, a range, choices."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, ValidationInfo, model_validator

from hpo.doors.section import Section
from hpo.errors import nearest

Value = int | float | str
Params = dict[str, Value]


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
    """Of what a file says, misspelt or not."""
    names_choices = isinstance(value, dict) and any(nearest(str(key), ["choices"]) for key in value)
    if isinstance(value, Choices) or names_choices:
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
    """A parameter of an objective.

    kind: of its values; low, high: the bounds of numbers; words: the allowed words, the default first; log: whether
    choices are searched on a logarithmic scale; plain: the value where a study file leaves the parameter out, None if
    trials then do without it; good: what trial 1 tries where the file names no default; baseline: what the baseline
    has, None for the same as trial 1; help: what it does.
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
    baseline: Value | None = None

    def check(self, parameter: Value | Range | Choices) -> None:
        """Raises ValueError if a study file may not say this of the parameter."""
        if self.kind == "word":
            wrong = [value for value in values_in(parameter) if value not in self.words]
            if isinstance(parameter, Range) or wrong:
                words = [f"'{word}'" for word in self.words]
                meant = nearest(str(wrong[0]), self.words) if wrong else ""
                raise ValueError(f"must be {', '.join(words)}, or {{ choices = [{', '.join(words)}] }}.{meant}")
            return
        whole = self.kind == "whole"
        for value in values_in(parameter):
            allowed = f"{'a whole number' if whole else 'a number'} from {self.low:g} to {self.high:g}"
            if isinstance(value, str) or (whole and not isinstance(value, int)) or not self.low <= value <= self.high:
                raise ValueError(f"{str(value)[:60]} is not {allowed}")


def free_row(name: str, parameter: Value | Range | Choices) -> Row:
    """The row of a parameter that no table describes: all that is known of it is what the study file says. Its values
    are whole numbers if all that the file names are; without a default the middle of a range, or the first choice, is
    where the search begins. Raises ValueError for numbers mixed with words.
    """
    values = values_in(parameter)
    words = tuple(value for value in values if isinstance(value, str))
    if words and len(words) < len(values):
        raise ValueError(f"choices = {values} mixes numbers and words")
    if words:
        return Row(name, "word", plain=None, good=words[0], help="", words=words)
    kind: Literal["whole", "number"] = "whole" if all(isinstance(value, int) for value in values) else "number"
    good = _middle(parameter, kind) if isinstance(parameter, Range) else values[0]
    return Row(name, kind, plain=None, good=good, help="")


def _middle(within: Range, kind: Literal["whole", "number"]) -> int | float:
    middle = math.sqrt(within.low * within.high) if within.log else (within.low + within.high) / 2
    return round(middle) if kind == "whole" else middle


class SearchSection(Section):
    """What is searched: a value fixes a parameter; a range or a list of choices searches it."""

    @property
    def rows(self) -> Mapping[str, Row]:
        """What is known of each parameter that the study file may name, in the order in which they are shown."""
        raise NotImplementedError

    def parameters(self) -> Iterator[tuple[str, Value | Range | Choices]]:
        """(name, what the file says of it) of every parameter that trials have, in the order of the rows."""
        for name in self.rows:
            if (parameter := getattr(self, name)) is not None:
                yield name, parameter

    def values(self, name: str) -> list[Value]:
        """Those that the file names of a parameter: both ends of a range, the choices, or the fixed value."""
        return values_in(getattr(self, name))

    def baseline(self) -> Params:
        """The parameters of the baseline trial: the defaults, but for parameters whose row says otherwise."""
        params = self.defaults()
        return params | {name: row.baseline for name in params if (row := self.rows[name]).baseline is not None}

    def defaults(self) -> Params:
        """The file's defaults; where it says none, what is known to be good, or what is allowed nearest to it."""
        return {name: _default(self.rows[name], parameter) for name, parameter in self.parameters()}

    def nearest(self, params: Mapping[str, Value]) -> Params:
        """What this search allows that is nearest to `params`; its default where they say nothing."""
        defaults = self.defaults()
        return {name: _nearest(parameter, params.get(name, defaults[name])) for name, parameter in self.parameters()}

    def check_values(self, params: Mapping[str, Value]) -> None:
        """Raises ValueError if a trial cannot have these values. They may lie outside of what is searched."""
        allowed = dict(self.parameters())
        for name, value in params.items():
            if name not in allowed:
                names = list(allowed)
                raise ValueError(f"no parameter '{name}'; there are: {', '.join(names)}.{nearest(name, names)}")
            if not isinstance(value, int | float | str) or isinstance(value, bool):
                raise ValueError(f"{name}: {str(value)[:60]} is no number and no word")
            row = self.rows[name]
            try:
                row.check(value)
            except ValueError as error:
                raise ValueError(f"{name}: {str(error).partition(', or {')[0]}") from None

    def contains(self, params: Mapping[str, Value]) -> bool:
        """Whether all these values lie within what is searched."""
        return all(name not in params or _contains(each, params[name]) for name, each in self.parameters())

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


def _contains(parameter: Value | Range | Choices, value: Value) -> bool:
    if isinstance(parameter, Range):
        return not isinstance(value, str) and parameter.low <= value <= parameter.high
    return value in values_in(parameter)


def _default(row: Row, parameter: Value | Range | Choices) -> Value:
    given = parameter.default if isinstance(parameter, Range | Choices) else None
    return _nearest(parameter, row.good if given is None else given)


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
