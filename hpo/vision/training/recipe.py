"""How one trial is trained: what a study file and the trial's parameters say, put together."""

from dataclasses import dataclass

from hpo.doors.parameters import Params
from hpo.study_file.images import ImageSpec
from hpo.study_file.parameters import PARAMETERS
from hpo.vision.training.augmentation import Augmentation


@dataclass(frozen=True)
class Recipe:
    """How to train. batch_size: images per update; learning_rate: the peak of the schedule."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    augmentation: Augmentation
    seed: int
    optimizer: str = "sgd"
    compile: bool = False
    """Whether to compile the step with torch.compile first, which takes half a minute."""
    consistency: float = 0.0
    """Weight of the consistency of an image and its unperturbed twin."""
    splits_statistics: bool = False
    """Whether unperturbed twins have BatchNorm statistics of their own, which are kept, and are trained on too."""
    averages: bool = True
    """Whether the average of the weights is scored and kept; not from random weights, which change too much for it."""

    @property
    def has_twins(self) -> bool:
        """Whether each image comes with its unperturbed twin: a step has twice the images then."""
        return self.consistency > 0 or self.splits_statistics


def recipe_of(spec: ImageSpec, params: Params, epochs: int, seed: int, averages: bool) -> Recipe:
    """The recipe of a trial with these parameters."""
    training = spec.training
    values = {name: row.good for name, row in PARAMETERS.items()} | params
    splits, share = values["batch_norm"] == "split", float(values["perturbed_share"])
    augmentation = Augmentation(
        float(values["augmentation_strength"]),
        spec.training_perturbations,
        training.horizontal_flip,
        perturbed_share=min(1.0, 2 * share) if splits else share,  # of all that is trained on, of which twins are half
        perturbed_area=float(values["perturbed_area"]),
        severity_draw=str(values["severity_draw"]),
        trivial_augment=training.trivial_augment,
    )
    return Recipe(
        epochs=epochs,
        batch_size=int(values["batch_size"]),
        learning_rate=float(values["learning_rate"]),
        weight_decay=float(params.get("weight_decay", training.weight_decay)),
        label_smoothing=float(params.get("label_smoothing", training.label_smoothing)),
        optimizer=str(values["optimizer"]),
        compile=training.compile,
        augmentation=augmentation,
        consistency=float(values["consistency"]) if augmentation.perturbs else 0.0,
        splits_statistics=splits and augmentation.perturbs,
        seed=seed,
        averages=averages,
    )
