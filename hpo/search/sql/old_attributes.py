"""Reads attributes of trials, also as older versions of hpo stored them."""

from collections.abc import Mapping
from typing import Any

from hpo.search.sql.attributes import CONFIRMS_KEY, OUTCOMES_KEY
from hpo.trial_result import CLEAN

PARTS_KEY = "parts"
"""Of a trial: the parts of its score, by name."""
REPORTS_KEY = "reports"
"""Of a trial: score and parts after each step."""
BEFORE_PARTS = ("clean_accuracy", "perturbed_accuracy")
PARTS_KEYS = (PARTS_KEY, *BEFORE_PARTS)
BEFORE_REPORTS = "epochs"
NOT_SHOWN = (*PARTS_KEYS, REPORTS_KEY, BEFORE_REPORTS, "correct", OUTCOMES_KEY)
"""Attributes that the dashboard need not show beside the parts of the score."""


RESERVED = (
    *(
        *NOT_SHOWN,
        "mean_perturbed_accuracy",
        "images",
        "images_of",
        "made_by",
        "host",
        "worker",
        "baseline",
        CONFIRMS_KEY,
        "trouble",
        "bracket",
    ),
    *("failure", "interruption", "out_of_memory", "continues", "resumed_after_epoch", "paused_at_epoch", "diverged"),
    *("images_per_second", "device", "micro_batch_size", "constraints"),
)
"""Attributes that hpo itself writes or reads, which an installed objective may not give."""


def parts_of(attributes: Mapping[str, Any]) -> dict[str, float]:
    """The parts of the score, as measured by the last step, of a trial with these user attributes."""
    if PARTS_KEY in attributes:
        parts: dict[str, float] = attributes[PARTS_KEY]
        return parts
    clean, perturbed = (attributes.get(key) for key in BEFORE_PARTS)
    return ({} if clean is None else {CLEAN: clean}) | (perturbed or {})


def reports_of(attributes: Mapping[str, Any]) -> list[dict[str, float]]:
    """Score and parts after each step, of a trial with these user attributes."""
    if REPORTS_KEY in attributes:
        reports: list[dict[str, float]] = attributes[REPORTS_KEY]
        return reports
    found = attributes.get(BEFORE_REPORTS) or []
    return [{"step": report["epoch"], **{k: v for k, v in report.items() if k != "epoch"}} for report in found]
