"""The study file of the objective `robust-accuracy`: images, a network, training, and the accuracies of the score."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from hpo.doors.network import check_size, family_of, freezable_layers
from hpo.doors.parameters import is_kept
from hpo.doors.perturbation import Perturbation
from hpo.doors.section import Section
from hpo.errors import InputError
from hpo.study_file.parameters import OF_PERTURBED_IMAGES, ImageSearch
from hpo.study_file.perturbations import AugmentationSpec, ObjectiveSpec, against
from hpo.study_file.spec import PrunerSpec, SamplerSpec, Spec

ROBUST_ACCURACY = "robust-accuracy"


def _checked_path(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError(f"must be a path, not {text!r}")
    try:
        Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text!r} names the home of a user who does not exist") from None
    return text


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
NEWER_KEYS = ("bad_images", "max_bad_share", "split_seed", "trivial_augment")


def _without_unused_newer_keys(section: Section, document: dict[str, Any]) -> dict[str, Any]:
    """So that a study that uses none of them is what it was before there were such keys: for workers of then, and for
    its checkpoints.
    """
    fields = type(section).model_fields
    return {key: value for key, value in document.items() if key not in NEWER_KEYS or value != fields[key].default}


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
    """The largest share of all images that may be skipped."""
    split_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Which training images become tuning images: 0 unless given, whatever the study's seed."""

    @model_validator(mode="after")
    def _check(self) -> "DataSpec":
        if self.name == "image-folder" and self.archive is None:
            raise ValueError("name = 'image-folder' needs archive: the folder or zip that holds a folder a class")
        if self.name == "digits" and self.archive is not None:
            raise ValueError("name = 'digits' takes no archive; the digits come with scikit-learn")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_unused_newer_keys(self, handler(self))


class ModelSpec(Section):
    """The network."""

    name: Annotated[str, AfterValidator(_checked_network)] = "resnet18"
    """One of [these networks](#networks), or of an installed package."""
    weights: PathText = "imagenet"
    """`imagenet` (torchvision's, or timm's), a .safetensors or .pth file, or `none` (random)."""
    input_size: Annotated[int, Field(ge=8, le=1024)] = 64
    """Height and width that images are resized to, after they were perturbed; some networks do not take every size."""


class TrainingSpec(Section):
    """What is the same in all trials."""

    epochs: Annotated[int, Field(ge=1, le=100_000)] = 10
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Of the layers' weights; norms, biases, class tokens, position embeddings and the like have none."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    horizontal_flip: bool = True
    """Whether a mirrored image is still of its class; false for text and digits."""
    trivial_augment: bool = False
    """Whether each training image, of the baseline too, first gets a random operation at a random level: it is rotated,
    shifted, made brighter and so on (TrivialAugment).
    """
    compile: bool = False
    """Whether `torch.compile` first makes the training step faster: that takes half a minute a trial on a GPU, minutes
    on a few cores.
    """

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_unused_newer_keys(self, handler(self))


BASELINE_WEIGHTS = "baseline.safetensors"
FITTED_HEAD = "fitted-head.safetensors"
Which = Literal["train", "tuning", "test", "learned"]
"""Which of a study's images; `learned`: all that a confirmation trains on, which are those of train and tuning."""


def adversarial_set(perturbation: str, which: Which) -> str:
    """The name of the file with these images, perturbed against the study's baseline."""
    return f"{perturbation}-{which}.safetensors"


IDENTITY = ("seed", "data", "model", "training", "augmentation", "objective")


class ImageSpec(Spec):
    """A whole study file of the objective `robust-accuracy`."""

    data: DataSpec
    model: ModelSpec = ModelSpec()
    training: TrainingSpec = TrainingSpec()
    search: ImageSearch
    augmentation: AugmentationSpec = AugmentationSpec()
    objective: ObjectiveSpec
    sampler: SamplerSpec = SamplerSpec()
    pruner: PrunerSpec = PrunerSpec()

    @property
    def objective_name(self) -> str:
        return ROBUST_ACCURACY

    @property
    def steps(self) -> int:
        return self.training.epochs

    @property
    def step_word(self) -> str:
        return "epoch"

    @property
    def waits_for_baseline(self) -> bool:
        return self.search.may_need_baseline or bool(against("baseline", self.all_perturbations))

    @property
    def training_perturbations(self) -> list[Perturbation]:
        """What training images are perturbed with; the weights say how they share the perturbed images."""
        if self.search.values("augmentation_strength") == [0]:
            return []
        if self.augmentation.perturbations is not None:
            return self.augmentation.perturbations
        scored = self.objective.perturbations
        itself = against("self", scored)
        return [p.model_copy(update={"weight": 1.0}) for p in scored if p.weight and p not in itself]

    @property
    def all_perturbations(self) -> list[Perturbation]:
        """Those that are scored, and those that training images are perturbed with."""
        return [*self.objective.perturbations, *self.training_perturbations]

    @property
    def hold_outs(self) -> list[str]:
        trained = {perturbation.name for perturbation in self.training_perturbations}
        return [p.name for p in self.objective.perturbations if p.name not in trained]

    def control_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The same without perturbed training images."""
        return {**params, "augmentation_strength": 0.0}

    @property
    def shows_percent(self) -> bool:
        return True

    @property
    def trade_off(self) -> tuple[str, str]:
        return "clean_accuracy", "perturbed_accuracy"

    @property
    def shared_files(self) -> list[str]:
        made = against("baseline", self.all_perturbations)
        sets = [adversarial_set(perturbation.name, which) for perturbation in made for which in get_args(Which)]
        return [BASELINE_WEIGHTS, FITTED_HEAD, *dict.fromkeys(sets)]

    @property
    def is_constrained(self) -> bool:
        return self.objective.max_clean_drop is not None

    @property
    def split_seed(self) -> int:
        """Which training images become tuning images; the study's own seed where an older hpo submitted it."""
        return self.seed if self.data.split_seed is None else self.data.split_seed

    def identity(self) -> dict[str, Any]:
        document = self.model_dump(mode="json", include={*IDENTITY})
        document["model"].pop("weights")
        for where in ("name", "root", "archive"):
            document["data"].pop(where)
        return document

    def summary(self) -> list[str]:
        perturbations = self.objective.perturbations
        parts = [(p.weight, f"accuracy under {p.name} {p.scored_severity:g}") for p in perturbations]
        weighted = [(self.objective.clean, "clean accuracy"), *parts]
        score = " + ".join(f"{weight:g} × {what}" for weight, what in weighted)  # noqa: RUF001
        lines = [
            f"**{self.model.name}** (weights: {self.model.weights}), **{self.data.name}**, {self.model.input_size} px.",
            f"Score: {score}, on tuning images that no trial trains on.",
            "Trial 0 is the *baseline*: the file's defaults without perturbed training images; it is never pruned.",
            "Pictures: at the baseline and at each trial that was the best when it ended.",
        ]
        if self.hold_outs:
            lines.append(f"Held out (scored, but no image is trained on with it): {', '.join(self.hold_outs)}.")
        if (limit := self.objective.max_clean_drop) is not None:
            lines.append(
                f"A trial is feasible if its clean accuracy is at most {100 * limit:g} points below the baseline's "
                "(`clean_drop`)."
            )
        return lines

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, document: Any, info: ValidationInfo) -> Any:
        """New studies split their images by a seed of its own; older ones were split by the study's."""
        if isinstance(document, Mapping) and not is_kept(info) and isinstance(data := document.get("data"), Mapping):
            return {**document, "data": {"split_seed": 0, **data}}
        return document

    @model_validator(mode="after")
    def _check(self, info: ValidationInfo) -> "ImageSpec":
        if not is_kept(info):
            check_size(self.model.name, self.model.input_size)
        limit = freezable_layers(self.model.name)
        for value in self.search.values("frozen_layers"):
            if limit is not None and isinstance(value, int) and value > limit:
                raise ValueError(f"search.frozen_layers: {value} is more than the {limit} of {self.model.name}")
        for name in self.search.searched:
            if name in OF_PERTURBED_IMAGES and self.search.values("augmentation_strength") == [0]:
                raise ValueError(
                    f"search.{name}: no image is perturbed while augmentation_strength is fixed at 0; give both"
                )
        if self.augmentation.perturbations and "augmentation_strength" not in self.search.model_fields_set:
            raise ValueError(
                "augmentation.perturbations: no image is perturbed without search.augmentation_strength; give it too"
            )
        if not self.training_perturbations and self.search.values("augmentation_strength") != [0]:
            raise ValueError(
                "augmentation.perturbations: all that counts in the score is chosen against the scored network itself; "
                "list what training images are perturbed with, or fix search.augmentation_strength = 0"
            )
        return self

    def with_absolute_paths(self) -> "ImageSpec":
        """So that a worker that starts in another folder finds the same files."""
        data, model = self.data, self.model
        if data.archive is not None:
            data = data.model_copy(update={"archive": _absolute(data.archive)})
        if model.weights not in WEIGHTS_WITHOUT_FILE:
            model = model.model_copy(update={"weights": _absolute(model.weights)})
        return self.model_copy(update={"data": data, "model": model})


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute().resolve())
