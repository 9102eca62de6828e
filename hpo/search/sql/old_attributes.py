"""What older versions of hpo kept with a trial, as it is read today."""

from collections.abc import Mapping
from typing import Any

from hpo.trial_result import CLEAN

PARTS_KEY = "parts"
"""Of a trial: what its score is made of, by name."""
REPORTS_KEY = "reports"
"""Of a trial: score and parts after each step."""
BEFORE_PARTS = ("clean_accuracy", "perturbed_accuracy")
PARTS_KEYS = (PARTS_KEY, *BEFORE_PARTS)
BEFORE_REPORTS = "epochs"
NOT_SHOWN = (*PARTS_KEYS, REPORTS_KEY, BEFORE_REPORTS, "correct")
"""What a page that has the parts of the score by name need not show."""


def parts_of(attributes: Mapping[str, Any]) -> dict[str, float]:
    """Of a trial with these user attributes, as its last step measured them."""
    if PARTS_KEY in attributes:
        parts: dict[str, float] = attributes[PARTS_KEY]
        return parts
    clean, perturbed = (attributes.get(key) for key in BEFORE_PARTS)
    return ({} if clean is None else {CLEAN: clean}) | (perturbed or {})


def reports_of(attributes: Mapping[str, Any]) -> list[dict[str, float]]:
    """Score and parts after each step."""
    if REPORTS_KEY in attributes:
        reports: list[dict[str, float]] = attributes[REPORTS_KEY]
        return reports
    found = attributes.get(BEFORE_REPORTS) or []
    return [{"step": report["epoch"], **{k: v for k, v in report.items() if k != "epoch"}} for report in found]
