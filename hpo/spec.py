"""What a study file may say, as frozen typed data. `load_spec` reads one; every error names file, key and what is allowed.

The file's sections are the classes here, key by key; the text under a key says what it means.
"""

import itertools
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from hpo.errors import SpecError
from hpo.spec_errors import explain

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
"""A parameter that a study file leaves out is fixed at this; one that it searches has its baseline value nearest to this."""


class Section(BaseModel):
    """A table of the study file: frozen, and no key is accepted that is not declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


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
            raise ValueError(
                f"default = {self.default} is not between low = {self.low} and high = {self.high}"
            )
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


def _numbers(parameter: Value | Range | Choices) -> list[Value]:
    if isinstance(parameter, Range):
        return [parameter.low, parameter.high]
    return list(parameter.choices) if isinstance(parameter, Choices) else [parameter]


def _check_numbers(parameter: Value | Range | Choices, low: float, high: float, integer: bool) -> None:
    for value in _numbers(parameter):
        allowed = f"{'a whole number' if integer else 'a number'} from {low:g} to {high:g}"
        if isinstance(value, str) or (integer and not isinstance(value, int)) or not low <= value <= high:
            raise ValueError(f"{value!r} is not {allowed}")


class SearchSpec(Section):
    """The parameters of a trial: a value fixes one; a range or a list of choices searches it."""

    batch_size: Parameter = PLAIN_FINE_TUNING["batch_size"]
    """Images an update, 1 to 65536. Searched on a logarithmic scale."""
    learning_rate: Parameter = PLAIN_FINE_TUNING["learning_rate"]
    """Peak learning rate of SGD, above 0, at most 10."""
    frozen_layers: Parameter = PLAIN_FINE_TUNING["frozen_layers"]
    """How many units, from the input on, keep their initial weights: the stem, then each residual block."""
    augmentation_strength: Parameter = PLAIN_FINE_TUNING["augmentation_strength"]
    """0 (no perturbed training images) to 1 (half of them, with up to twice the severity that is scored)."""
    initial_weights: Parameter = PLAIN_FINE_TUNING["initial_weights"]
    """`pretrained` (those of [model]), or `baseline` (what the study's own baseline trial learned)."""

    @field_validator("batch_size")
    @classmethod
    def _check_batch_size(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        _check_numbers(value, 1, 65536, integer=True)
        return value

    @field_validator("learning_rate")
    @classmethod
    def _check_learning_rate(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        _check_numbers(value, 1e-9, 10, integer=False)
        return value

    @field_validator("frozen_layers")
    @classmethod
    def _check_frozen_layers(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        _check_numbers(value, 0, max(FREEZABLE_LAYERS.values()), integer=True)
        return value

    @field_validator("augmentation_strength")
    @classmethod
    def _check_augmentation_strength(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        _check_numbers(value, 0, 1, integer=False)
        if not isinstance(value, int | float | str) and 0 not in _numbers(value):
            raise ValueError("must admit 0, the baseline's strength; give low = 0 or a choice 0")
        return value

    @field_validator("initial_weights")
    @classmethod
    def _check_initial_weights(cls, value: Value | Range | Choices) -> Value | Range | Choices:
        allowed = ("pretrained", "baseline")
        if isinstance(value, Range) or any(word not in allowed for word in _numbers(value)):
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
        """The file's defaults: where it says none, plain fine-tuning's, as near as the range or the choices allow."""
        return {name: _default(name, parameter) for name, parameter in self.parameters()}

    def grid(self) -> list[Params]:
        """Every combination of the choices (fixed values have one). Raises ValueError if a parameter is a range."""
        names, columns = [], []
        for name, parameter in self.parameters():
            if isinstance(parameter, Range):
                raise ValueError(f"the grid sampler needs choices, but search.{name} is a range")
            names.append(name)
            columns.append(_numbers(parameter))
        return [dict(zip(names, row, strict=True)) for row in itertools.product(*columns)]

    @property
    def searched(self) -> list[str]:
        """Names of the parameters that have more than one possible value."""
        return [name for name, parameter in self.parameters() if len(set(_numbers(parameter))) > 1]

    @property
    def may_start_from_baseline(self) -> bool:
        """Whether a trial may need the weights that the baseline trial learned."""
        return "baseline" in _numbers(self.initial_weights)


def _default(name: str, parameter: Value | Range | Choices) -> Value:
    if not isinstance(parameter, Range | Choices):
        return parameter
    if parameter.default is not None:
        return parameter.default
    plain = PLAIN_FINE_TUNING[name]
    if isinstance(plain, str):
        return plain
    if isinstance(parameter, Range):
        return min(max(plain, parameter.low), parameter.high)
    return min(
        (c for c in parameter.choices if not isinstance(c, str)), key=lambda choice: abs(choice - plain)
    )


class DataSpec(Section):
    """The images."""

    name: Literal["tiny-imagenet", "image-folder", "digits"]
    """`tiny-imagenet`, `image-folder` (a folder or zip with a folder a class), `digits` (scikit-learn's handwritten digits)."""
    root: str = "~/.cache/hpo"
    """Where downloads and decoded images are kept on this machine; HPO_DATA_ROOT wins over it."""
    archive: str | None = None
    """A zip or a folder with the images, instead of a download."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share of the training images of each class that scores trials (the tuning images) and is not trained on."""
    images_per_class: Annotated[int, Field(ge=1)] | None = None
    """Train on so many of each class; the tuning images are taken before this limit."""

    @model_validator(mode="after")
    def _check(self) -> "DataSpec":
        if self.name == "image-folder" and self.archive is None:
            raise ValueError(
                "name = 'image-folder' needs archive: the folder or zip that holds a folder a class"
            )
        if self.name == "digits" and self.archive is not None:
            raise ValueError("name = 'digits' takes no archive; the digits come with scikit-learn")
        return self


class ModelSpec(Section):
    """The network."""

    name: Literal["resnet18", "resnet34", "resnet50"] = "resnet18"
    weights: str = "imagenet"
    """`imagenet` (torchvision's), a .safetensors or .pth file, or `none` (random)."""
    input_size: Annotated[int, Field(ge=8, le=1024)] = 64
    """Height and width that images are resized to, after they were perturbed."""


class TrainingSpec(Section):
    """What is the same in all trials."""

    epochs: Annotated[int, Field(ge=1)] = 10
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Of the convolutions' and the head's weights; BatchNorm and biases have none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    horizontal_flip: bool = True
    """Whether a mirrored image is still of its class; false for text and digits."""


class GaussianNoise(Section):
    """Independent normal noise on every value of every pixel."""

    name: Literal["gaussian-noise"]
    sigma: Annotated[float, Field(gt=0, le=1)]
    """Standard deviation on the [0, 1] pixel range."""
    weight: Annotated[float, Field(gt=0, le=1)]
    """Share of this accuracy in the score."""

    @property
    def severity(self) -> float:
        return self.sigma


class PixelRecolor(Section):
    """A random subset of the pixels gets random colours."""

    name: Literal["pixel-recolor"]
    fraction: Annotated[float, Field(gt=0, le=1)]
    """Share of the pixels."""
    weight: Annotated[float, Field(gt=0, le=1)]
    """Share of this accuracy in the score."""

    @property
    def severity(self) -> float:
        return self.fraction


Perturbation = Annotated[GaussianNoise | PixelRecolor, Field(discriminator="name")]


class ObjectiveSpec(Section):
    """The score: a weighted mean of clean and perturbed accuracies."""

    clean: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the clean accuracy; with those of the perturbations it sums to 1."""
    max_clean_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """A trial is feasible if its clean accuracy is at most so far below the baseline's."""
    perturbations: Annotated[list[Perturbation], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> "ObjectiveSpec":
        names = [perturbation.name for perturbation in self.perturbations]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"perturbation '{name}' is listed twice; keep one of them")
        weights = [self.clean, *(perturbation.weight for perturbation in self.perturbations)]
        if not math.isclose(sum(weights), 1, abs_tol=1e-6):
            parts = " + ".join(f"{weight:g}" for weight in weights)
            raise ValueError(
                f"the weights must sum to 1, but clean and perturbations give {parts} = {sum(weights):g}"
            )
        return self


class SamplerSpec(Section):
    """How parameters are chosen."""

    name: Literal["tpe", "gp", "random", "grid"] = "tpe"


class PrunerSpec(Section):
    """Which trials are stopped early."""

    name: Literal["asha", "hyperband", "median", "none"] = "asha"
    min_epochs: Annotated[int, Field(ge=1)] | None = None
    """No trial is pruned before so many epochs; a third of them if not given, since strong augmentation learns slower at first."""
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha and hyperband: one in so many trials goes on at each rung."""


class Spec(Section):
    """A whole study file."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s/\\-][^/\\\x00-\x1f]*$")]
    budget: Annotated[int, Field(ge=1, le=1_000_000)]
    """Trials that finish, complete or pruned, the baseline among them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The study stops when more trials than this share of the budget (and more than 2) have failed."""
    data: DataSpec
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    search: SearchSpec
    objective: ObjectiveSpec
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()

    @model_validator(mode="after")
    def _check(self) -> "Spec":
        most = FREEZABLE_LAYERS[self.model.name]
        for value in _numbers(self.search.frozen_layers):
            if isinstance(value, int) and value > most:
                raise ValueError(
                    f"search.frozen_layers: {value} is more than the {most} of {self.model.name}"
                )
        if not self.search.searched and self.budget > 2:
            raise ValueError(
                "search: nothing to search; give a range or choices to one of "
                f"{', '.join(SearchSpec.model_fields)}, or budget = 2 for one fixed configuration and the baseline"
            )
        if self.sampler.name == "grid" and self.budget > 1 + len(self.search.grid()):
            points = len(self.search.grid())
            raise ValueError(
                f"budget: the grid has {points} points; with the baseline at most {points + 1}, not {self.budget}"
            )
        return self


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Reads a study file, applies `key=value` overrides, makes relative paths absolute.

    Raises SpecError, whose one line names the file, the key, what is allowed and the nearest name.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such study file") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        _override(document, override)
    try:
        return _with_absolute_paths(Spec.model_validate(document))
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, Spec)}") from None


def _override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(part.strip() for part in key.split(".")):
        raise SpecError(f"--set {override}: must be key=value, such as training.epochs=3")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = (part.strip() for part in key.split("."))
    place: Any = document
    for parent in parents:
        place = _step(place, parent, override)
    if isinstance(place, list):
        place[_index(place, last, override)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise SpecError(f"--set {override}: {'.'.join(parents)} is a value, not a table")


def _step(place: Any, key: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, key, override)]
    if isinstance(place, dict):
        return place.setdefault(key, {})
    raise SpecError(f"--set {override}: there is no table at '{key}'")


def _index(entries: list[Any], key: str, override: str) -> int:
    """The position of the entry that `key` numbers (from 0) or names."""
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    raise SpecError(f"--set {override}: '{key}' is not among {', '.join(str(name) for name in names)}")


def _with_absolute_paths(spec: Spec) -> Spec:
    """So that a worker that starts in another folder finds the same files."""
    data, model = spec.data, spec.model
    if data.archive is not None:
        data = data.model_copy(update={"archive": _absolute(data.archive)})
    if model.weights not in ("imagenet", "none"):
        model = model.model_copy(update={"weights": _absolute(model.weights)})
    return spec.model_copy(update={"data": data, "model": model})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute().resolve())


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training.epochs": 3, ...} of a nested dictionary; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
