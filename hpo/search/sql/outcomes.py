"""What the trials of a confirmation got under each condition: counts as a user attribute, for SQL and people, and which
examples were right as bits.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from hpo.doors.objective import Outcome
from hpo.search.sql.attributes import CONFIRMS_KEY, OUTCOMES_KEY, RIGHT_KEY
from hpo.search.sql.tables import trial_system_attributes, trial_user_attributes, trial_values, trials


@dataclass(frozen=True)
class RunOutcomes:
    """Of one complete run. configuration: its position in the confirmation."""

    number: int
    configuration: int
    seed: int
    score: float
    outcomes: tuple[Outcome, ...]


def outcome_attributes(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The user attributes of a trial with these outcomes."""
    return {OUTCOMES_KEY: [_counted(outcome) for outcome in outcomes]} if outcomes else {}


def _counted(outcome: Outcome) -> dict[str, Any]:
    right, value = outcome.right, outcome.value if math.isfinite(outcome.value) else None
    counts = {} if right is None else {"correct": int(right.sum()), "images": len(right)}
    about = {"condition": outcome.condition, "severity": outcome.severity, "main": outcome.main, "value": value}
    return {**about, **counts} | ({"digest": outcome.digest} if outcome.digest else {})


def packed(right: NDArray[np.bool_]) -> str:
    """Eight examples a byte, in base64."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def _unpacked(text: str, count: int) -> NDArray[np.bool_]:
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def read_outcomes(engine: sa.Engine, study_id: int) -> list[RunOutcomes]:
    """Of all complete runs of a confirmation, by number."""
    user = {key: trial_user_attributes.alias() for key in (CONFIRMS_KEY, OUTCOMES_KEY)}
    bits = trial_system_attributes.alias()
    query = (
        sa.select(
            trials.c.number,
            trial_values.c.value,
            *(table.c.value_json.label(key) for key, table in user.items()),
            bits.c.value_json.label("bits"),
        )
        .join(trial_values, trial_values.c.trial_id == trials.c.trial_id)
        .join(bits, (bits.c.trial_id == trials.c.trial_id) & (bits.c.key == RIGHT_KEY))
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE")
        .order_by(trials.c.number)
    )
    for key, table in user.items():
        query = query.join(table, (table.c.trial_id == trials.c.trial_id) & (table.c.key == key))
    with engine.connect() as connection:
        rows = connection.execute(query).mappings().all()
    return [_run(row) for row in rows]


def _run(row: Any) -> RunOutcomes:
    confirms, counted, bits = (json.loads(row[key]) for key in (CONFIRMS_KEY, OUTCOMES_KEY, "bits"))
    outcomes = tuple(
        Outcome(
            condition=each["condition"],
            value=math.nan if each["value"] is None else each["value"],
            right=None if packed_bits is None else _unpacked(packed_bits, each["images"]),
            severity=each["severity"],
            main=each["main"],
            digest=each.get("digest"),
        )
        for each, packed_bits in zip(counted, bits, strict=True)
    )
    return RunOutcomes(row["number"], confirms["configuration"], confirms["seed"], row["value"], outcomes)
