"""The parameters of the objective `robust-accuracy`: a row for each, and the section [search] made of them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    create_model,
    field_validator,
    model_serializer,
)

from hpo.doors.parameters import Choices, Parameter, Range, Row, SearchSection, Value, is_kept

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
            help="How many units, from the input on, keep their initial weights: most often the stem, then each block.",
        ),
        Row(
            "augmentation_strength",
            "number",
            plain=0.0,
            good=1.0,
            low=0,
            high=1,
            baseline=0.0,
            help="0 (no perturbed training images) to 1 (with up to twice the severity that is scored).",
        ),
        Row(
            "initial_weights",
            "word",
            plain="pretrained",
            good="pretrained",
            words=("pretrained", "baseline"),
            baseline="pretrained",
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
        Row(
            "perturbed_area",
            "number",
            plain=None,
            good=1.0,
            low=0.2,
            high=1,
            help="Training images are perturbed within a random rectangle, between this share of the image and all of "
            "it; 1 where it is left out.",
        ),
        Row(
            "severity_draw",
            "word",
            plain=None,
            good="uniform",
            words=("uniform", "beta"),
            help="How training images' severities are drawn, from 0 to the largest: `uniform` (where it is left out), "
            "or `beta`, Beta(2, 5) times the largest: mostly mild, 0.29 of it on average instead of 0.5.",
        ),
        Row(
            "consistency",
            "number",
            plain=None,
            good=0.0,
            low=0,
            high=12,
            log=True,
            baseline=0.0,
            help="Weight of the Jensen-Shannon divergence between what is said of a perturbed image and of the same "
            "one unperturbed; 0 (none) where it is left out. Above 0, training takes twice as long.",
        ),
        Row(
            "batch_norm",
            "word",
            plain=None,
            good="shared",
            words=("shared", "split"),
            baseline="shared",
            help="`split`: each training image comes unperturbed and perturbed, and each kind has BatchNorm statistics "
            "of its own; the unperturbed ones' score. Training takes twice as long. `shared` where it is left out.",
        ),
        Row(
            "interpolated",
            "word",
            plain=None,
            good="no",
            words=("no", "yes"),
            baseline="no",
            help="Whether a trial ends with a mean of the baseline's weights and its own, also of frozen layers: that "
            "of 0.2, 0.4, 0.6, 0.8 or 1 of its own which scores best; `no` where it is left out.",
        ),
    )
}
"""All that a trial may try: what [search] accepts, the samplers' distributions and the order of columns."""

OF_PERTURBED_IMAGES = ("perturbed_share", "perturbed_area", "severity_draw", "consistency", "batch_norm")
"""Parameters that change nothing where no training image is perturbed."""

SMALLEST_BATCH_ONCE = 1
"""Was allowed before it was refused; studies that have it stay readable."""


class ImageSearchSection(SearchSection):
    """The parameters of a trial, a key for each of PARAMETERS."""

    @property
    def rows(self) -> Mapping[str, Row]:
        return PARAMETERS

    @field_validator("*")
    @classmethod
    def _check(cls, value: Value | Range | Choices | None, info: ValidationInfo) -> Value | Range | Choices | None:
        if value is None:
            return None
        if isinstance(value, Choices) and len(value.choices) == 1:
            value = value.choices[0]
        row = PARAMETERS[str(info.field_name)]
        if row.name == "batch_size" and is_kept(info):
            row = replace(row, low=SMALLEST_BATCH_ONCE)
        row.check(value)
        return value

    @model_serializer(mode="wrap")
    def _without_what_is_left_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A study that names none of the newer parameters is what it was before there were such."""
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def may_need_baseline(self) -> bool:
        """Whether a trial may need the weights that the baseline trial learned."""
        return "baseline" in self.values("initial_weights") or "yes" in self.values("interpolated")


if TYPE_CHECKING:
    ImageSearch = ImageSearchSection
else:
    ImageSearch = create_model(
        "SearchSpec",
        __base__=ImageSearchSection,
        __module__=__name__,
        **{
            row.name: (
                Parameter if row.plain is not None else Parameter | None,
                Field(default=row.plain, description=row.help),
            )
            for row in PARAMETERS.values()
        },
    )
