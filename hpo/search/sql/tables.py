"""Optuna's tables, as far as hpo reads or writes them.

Declared here rather than imported from Optuna's private models, so that queries need no import of Optuna; a test
compares them with Optuna's own (schema v3.2.0.a). Enums are native types in PostgreSQL and text in SQLite.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

OPTUNA_SCHEMA = "v3.2.0.a"
alembic_version = sa.table("alembic_version", sa.column("version_num"))

TRIAL_STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")
_VALUE_TYPES = ("FINITE", "INF_POS", "INF_NEG")
_INTERMEDIATE_VALUE_TYPES = (*_VALUE_TYPES, "NAN")

studies = sa.Table(
    "studies",
    metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("study_name", sa.String(512), nullable=False),
)
study_directions = sa.Table(
    "study_directions",
    metadata,
    sa.Column("study_direction_id", sa.Integer, primary_key=True),
    sa.Column("direction", sa.Enum("NOT_SET", "MINIMIZE", "MAXIMIZE", name="studydirection"), nullable=False),
    sa.Column("study_id", sa.Integer, nullable=False),
    sa.Column("objective", sa.Integer, nullable=False),
)
trials = sa.Table(
    "trials",
    metadata,
    sa.Column("trial_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer),
    sa.Column("study_id", sa.Integer),
    sa.Column("state", sa.Enum(*TRIAL_STATES, name="trialstate"), nullable=False),
    sa.Column("datetime_start", sa.DateTime),
    sa.Column("datetime_complete", sa.DateTime),
)


def _attributes(owner: str, kind: str) -> sa.Table:
    """A table of JSON values by key."""
    return sa.Table(
        f"{owner}_{kind}_attributes",
        metadata,
        sa.Column(f"{owner}_{kind}_attribute_id", sa.Integer, primary_key=True),
        sa.Column(f"{owner}_id", sa.Integer),
        sa.Column("key", sa.String(512)),
        sa.Column("value_json", sa.Text),
    )


study_user_attributes = _attributes("study", "user")
study_system_attributes = _attributes("study", "system")
trial_user_attributes = _attributes("trial", "user")
trial_system_attributes = _attributes("trial", "system")
trial_params = sa.Table(
    "trial_params",
    metadata,
    sa.Column("param_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer),
    sa.Column("param_name", sa.String(512)),
    sa.Column("param_value", sa.Double),
    sa.Column("distribution_json", sa.Text),
)
trial_values = sa.Table(
    "trial_values",
    metadata,
    sa.Column("trial_value_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("objective", sa.Integer, nullable=False),
    sa.Column("value", sa.Double),
    sa.Column("value_type", sa.Enum(*_VALUE_TYPES, name="trialvaluetype"), nullable=False),
)
trial_intermediate_values = sa.Table(
    "trial_intermediate_values",
    metadata,
    sa.Column("trial_intermediate_value_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("intermediate_value", sa.Double),
    sa.Column(
        "intermediate_value_type",
        sa.Enum(*_INTERMEDIATE_VALUE_TYPES, name="trialintermediatevaluetype"),
        nullable=False,
    ),
)
trial_heartbeats = sa.Table(
    "trial_heartbeats",
    metadata,
    sa.Column("trial_heartbeat_id", sa.Integer, primary_key=True),
    sa.Column("trial_id", sa.Integer, nullable=False),
    sa.Column("heartbeat", sa.DateTime, nullable=False),
)

CONSTRAINT_PREFIX = "constraints:"
"""Prefix of Optuna's system attributes for constraints (`trial.set_constraint`); above 0 is infeasible."""
PAUSED_KEY = "paused_at_epoch"
"""User attribute of a paused trial: the step after which it was paused."""
