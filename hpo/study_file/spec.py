"""What a study file may say, as frozen typed data. `load_spec` reads one.

The file's sections are the classes here and in `hpo.doors.parameters`, key by key; the text under a key says what it
means. Every error names the file, the key and what is allowed.
"""

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    PlainValidator,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticKnownError

from hpo.doors.network import family_of, freezable_layers
from hpo.doors.parameters import PARAMETERS, SearchSpec, Section, is_kept
from hpo.doors.perturbation import PERTURBATIONS, NotInstalled, Perturbation
from hpo.errors import InputError, SpecError
from hpo.study_file.messages import explain, with_allowed_keys
from hpo.study_file.overrides import apply_override


def _checked_path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"must be a path, not {text!r}")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text!r} names the home of a user who does not exist") from None
    return text


def _checked_name(name: str) -> str:
    if not name.isprintable() or name[0] in " -" or "/" in name or "\\" in name:
        raise ValueError(f"must not begin with space or '-', nor contain slashes or control characters, not {name!r}")
    return name


def _checked_network(name: str, info: ValidationInfo) -> str:
    try:
        family_of(name)
    except InputError as error:
        if not is_kept(info):
            raise ValueError(str(error)) from None
    return name


PathText = Annotated[str, AfterValidator(_checked_path)]
"""A path as text; `~` is the home folder."""
WEIGHTS_WITHOUT_FILE = ("imagenet", "none")
"""Values of `model.weights` that name no file."""


CLEAN = "clean"
"""What the accuracy on unperturbed images is called."""
NEWER_DATA_KEYS = ("bad_images", "max_bad_share")


class DataSpec(Section):
    """The images."""

    name: Literal["tiny-imagenet", "image-folder", "digits"]
    """`tiny-imagenet`, `image-folder` (a folder or zip with a folder a class), `digits` (scikit-learn's handwritten
    digits).
    """
    root: PathText = "~/.cache/hpo"
    """Where downloads and decoded images are kept on this machine; HPO_DATA_ROOT wins over it."""
    archive: PathText | None = None
    """A zip or a folder with the images, instead of a download."""
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share of the training images of each class that scores trials (the tuning images) and is not trained on."""
    images_per_class: Annotated[int, Field(ge=1)] | None = None
    """Train on so many of each class; the tuning images are taken before this limit."""
    bad_images: Literal["refuse", "skip"] = "refuse"
    """What to do if images cannot be decoded: `refuse` them all, by name, or `skip` them."""
    max_bad_share: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """The most to skip, as a share of all images."""

    @model_validator(mode="after")
    def _check(self) -> "DataSpec":
        if self.name == "image-folder" and self.archive is None:
            raise ValueError("name = 'image-folder' needs archive: the folder or zip that holds a folder a class")
        if self.name == "digits" and self.archive is not None:
            raise ValueError("name = 'digits' takes no archive; the digits come with scikit-learn")
        return self

    @model_serializer(mode="wrap")
    def _without_unused_newer_keys(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """So that a study that uses none of them is what it was before there were such keys: for workers of then, and
        for its checkpoints.
        """
        document: dict[str, Any] = handler(self)
        unused = [key for key in NEWER_DATA_KEYS if document.get(key) == DataSpec.model_fields[key].default]
        return {key: value for key, value in document.items() if key not in unused}


class ModelSpec(Section):
    """The network."""

    name: Annotated[str, AfterValidator(_checked_network)] = "resnet18"
    """`resnet18`, `resnet34`, `resnet50`, or of an installed package."""
    weights: PathText = "imagenet"
    """`imagenet` (torchvision's), a .safetensors or .pth file, or `none` (random)."""
    input_size: Annotated[int, Field(ge=8, le=1024)] = 64
    """Height and width that images are resized to, after they were perturbed."""


class TrainingSpec(Section):
    """What is the same in all trials."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Of the convolutions' and the head's weights; BatchNorm and biases have none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    horizontal_flip: bool = True
    """Whether a mirrored image is still of its class; false for text and digits."""
    compile: bool = False
    """Whether `torch.compile` first makes the training step faster: that takes half a minute a trial on a GPU, minutes
    on a few cores.
    """


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
        raise with_allowed_keys(error, kind) from None


class ObjectiveSpec(Section):
    """The score: a weighted mean of clean and perturbed accuracies."""

    clean: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the clean accuracy; with those of the perturbations it sums to 1."""
    max_clean_drop: Annotated[float, Field(ge=0, le=1)] | None = None
    """A trial is feasible if its clean accuracy is at most so far below the baseline's."""
    perturbations: Annotated[
        list[Annotated[SerializeAsAny[Perturbation], PlainValidator(_perturbation)]], Field(min_length=1)
    ]

    @model_validator(mode="after")
    def _check(self) -> "ObjectiveSpec":
        names = [perturbation.name for perturbation in self.perturbations]
        for name in names:
            if name == CLEAN:
                raise ValueError(
                    f"no perturbation may be called '{CLEAN}', which is what unperturbed images are called"
                )
            if names.count(name) > 1:
                raise ValueError(f"perturbation '{name}' is listed twice; keep one of them")
        weights = [self.clean, *(perturbation.weight for perturbation in self.perturbations)]
        if not math.isclose(sum(weights), 1, abs_tol=1e-6):
            parts = " + ".join(f"{weight:g}" for weight in weights)
            raise ValueError(f"the weights must sum to 1, but clean and perturbations give {parts} = {sum(weights):g}")
        return self


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
    reduction_factor: Annotated[int, Field(ge=2)] = 3
    """asha and hyperband: one in so many trials goes on at each rung."""


class Spec(Section):
    """A whole study file."""

    name: Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_checked_name)]
    budget: Annotated[int, Field(ge=1, le=1_000_000)]
    """Trials that finish, complete or pruned, the baseline among them."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The study stops when more trials than this share of the budget (and more than 2) have failed."""
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    """The name of an earlier study in the same database: its best configurations are tried first."""
    data: DataSpec
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    search: SearchSpec
    objective: ObjectiveSpec
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()

    @property
    def folder_name(self) -> str:
        """The study's name as a folder's: a name holds no slashes, but may be nothing but dots."""
        return self.name if self.name.strip(".") else f"_{self.name}_"

    @property
    def first_rung(self) -> int:
        """No trial is pruned or paused before so many epochs."""
        return self.pruner.min_epochs or math.ceil(self.training.epochs / 3)

    @model_validator(mode="after")
    def _check(self) -> "Spec":
        most = freezable_layers(self.model.name)
        for value in self.search.values("frozen_layers"):
            if most is not None and isinstance(value, int) and value > most:
                raise ValueError(f"search.frozen_layers: {value} is more than the {most} of {self.model.name}")
        if not self.search.searched and self.budget > 2:
            raise ValueError(
                "search: nothing to search; give a range or choices to one of "
                f"{', '.join(PARAMETERS)}, or budget = 2 for one fixed configuration and the baseline"
            )
        if "perturbed_share" in self.search.searched and self.search.values("augmentation_strength") == [0]:
            raise ValueError(
                "search.perturbed_share: no image is perturbed while augmentation_strength is fixed at 0; give both"
            )
        if self.warm_start == self.name:
            raise ValueError("warm_start: a study cannot start from itself; name an earlier one, or leave it out")
        if self.sampler.name == "grid" and self.warm_start is not None:
            raise ValueError("warm_start: the grid tries all its points anyway; leave warm_start out")
        if self.sampler.name == "grid" and self.budget > 1 + (points := len(self.search.grid())):
            raise ValueError(
                f"budget: the grid has {points} points; with the baseline at most {points + 1}, not {self.budget}"
            )
        return self


def load_spec(path: Path, overrides: Sequence[str] = ()) -> Spec:
    """Reads a study file, applies `key=value` overrides, makes relative paths absolute.

    Raises SpecError, whose one line names the file, the key, what is allowed and the nearest name.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such study file") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file in UTF-8") from None
    except (ValueError, RecursionError) as error:  # tomllib's own error, numbers of thousands of digits, deep nesting
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        apply_override(document, override)
    try:
        return _with_absolute_paths(Spec.model_validate(document))
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, Spec)}") from None


def _with_absolute_paths(spec: Spec) -> Spec:
    """So that a worker that starts in another folder finds the same files."""
    data, model = spec.data, spec.model
    if data.archive is not None:
        data = data.model_copy(update={"archive": _absolute(data.archive)})
    if model.weights not in WEIGHTS_WITHOUT_FILE:
        model = model.model_copy(update={"weights": _absolute(model.weights)})
    return spec.model_copy(update={"data": data, "model": model})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute().resolve())


def trial_as_toml(spec: Spec, number: int, params: Mapping[str, Any]) -> str:
    """A study file with the parameters of one trial fixed, which `hpo run` takes."""
    import tomli_w

    changes = {
        "name": f"{spec.name}-trial-{number}",
        "budget": 2,
        "search": dict(params),
        "sampler": {"name": "random"},
    }
    document = tomli_w.dumps(spec.model_dump(exclude_none=True) | changes)
    return f"# Trial {number} of study {spec.name}, and the baseline to compare it with.\n{document}"


def flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"training.epochs": 3, ...} of a nested dictionary; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in document.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat
