"""Optuna's tables, as far as hpo reads or writes them, and the two SQL views over them.

Declared here rather than imported from Optuna's private models, so that queries start without importing Optuna; a
test compares them with Optuna's own (schema v3.2.0.a). Enums are native types in PostgreSQL and text in SQLite.
"""

import sqlalchemy as sa

metadata = sa.MetaData()

OPTUNA_SCHEMA = "v3.2.0.a"
alembic_version = sa.table("alembic_version", sa.column("version_num"))

_STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")
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
    sa.Column("state", sa.Enum(*_STATES, name="trialstate"), nullable=False),
    sa.Column("datetime_start", sa.DateTime),
    sa.Column("datetime_complete", sa.DateTime),
)


def _attributes(owner: str, kind: str) -> sa.Table:
    """study_user_attributes and its three likes: JSON text by key."""
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

CONSTRAINT_KEY = "constraints:clean_drop"
"""Optuna's system attribute for the constraint that `trial.set_constraint("clean_drop", ...)` sets; above 0 is
infeasible.
"""

trial_results = sa.table(
    "trial_results",
    *(
        sa.column(name)
        for name in (
            "study",
            "number",
            "state",
            "score",
            "clean_accuracy",
            "perturbed_accuracy",
            "batch_size",
            "learning_rate",
            "frozen_layers",
            "augmentation_strength",
            "params",
            "worker",
            "started_at",
            "finished_at",
            "baseline",
            "feasible",
        )
    ),
)

# What differs between the two dialects: how JSON text becomes a value, and how an object is put together.
_SQLITE = {
    "number": "CAST({0} AS REAL)",
    "text": "json_extract({0}, '$')",
    "int": "CAST({0} AS INTEGER)",
    "float_json": "printf('%!.17g', {0})",
    "distribution": "json_extract({0}, '$.name')",
    "choice": "({0} -> ('$.attributes.choices[' || CAST({1} AS INTEGER) || ']'))",
    "object": "json_group_object({0}, json({1}))",
    "infinity": "9e999",
    "state": "{0}",
}
_POSTGRESQL = {
    "number": "CASE WHEN {0} ~ '^-?[0-9]+([.][0-9]+)?([eE][-+]?[0-9]+)?$' THEN CAST({0} AS double precision) END",
    "text": "(CAST({0} AS jsonb) #>> '{{}}')",
    "int": "CAST({0} AS bigint)",
    "float_json": "CAST({0} AS text)",
    "distribution": "(CAST({0} AS jsonb) ->> 'name')",
    "choice": "CAST(CAST({0} AS jsonb) -> 'attributes' -> 'choices' -> CAST({1} AS integer) AS text)",
    "object": "CAST(jsonb_object_agg({0}, CAST({1} AS jsonb)) AS text)",
    "infinity": "CAST('Infinity' AS double precision)",
    "state": "CAST({0} AS text)",
}


def view_statements(dialect: str) -> list[str]:
    """The SQL that makes the views `trial_results` and `best_configs` anew, for "sqlite" or "postgresql"."""
    sql = _SQLITE if dialect == "sqlite" else _POSTGRESQL

    def attribute(kind: str, key: str) -> str:
        value = sql[kind].format("a.value_json")
        return f"(SELECT {value} FROM trial_user_attributes a WHERE a.trial_id = t.trial_id AND a.key = '{key}')"  # noqa: S608

    def parameter(name: str, value: str = "p.param_value") -> str:
        return f"(SELECT {value} FROM trial_params p WHERE p.trial_id = t.trial_id AND p.param_name = '{name}')"  # noqa: S608

    whole_number = sql["int"].format("p.param_value")
    param_json = (
        f"CASE {sql['distribution'].format('p.distribution_json')} "
        f"WHEN 'IntDistribution' THEN CAST({whole_number} AS text) "
        f"WHEN 'CategoricalDistribution' THEN {sql['choice'].format('p.distribution_json', 'p.param_value')} "
        f"ELSE {sql['float_json'].format('p.param_value')} END"
    )
    create = "CREATE VIEW" if dialect == "sqlite" else "CREATE OR REPLACE VIEW"
    violation = sql["number"].format("c.value_json")
    trial_results_sql = f"""
        {create} trial_results AS SELECT
            s.study_name AS study,
            t.number AS number,
            {sql["state"].format("t.state")} AS state,
            (SELECT CASE {sql["state"].format("v.value_type")} WHEN 'INF_POS' THEN {sql["infinity"]}
                WHEN 'INF_NEG' THEN -{sql["infinity"]} ELSE v.value END
                FROM trial_values v WHERE v.trial_id = t.trial_id AND v.objective = 0) AS score,
            {attribute("number", "clean_accuracy")} AS clean_accuracy,
            {attribute("number", "mean_perturbed_accuracy")} AS perturbed_accuracy,
            {parameter("batch_size", whole_number)} AS batch_size,
            {parameter("learning_rate")} AS learning_rate,
            {parameter("frozen_layers", whole_number)} AS frozen_layers,
            {parameter("augmentation_strength")} AS augmentation_strength,
            (SELECT {sql["object"].format("p.param_name", param_json)} FROM trial_params p
                WHERE p.trial_id = t.trial_id) AS params,
            {attribute("text", "worker")} AS worker,
            t.datetime_start AS started_at,
            t.datetime_complete AS finished_at,
            CASE WHEN {attribute("text", "baseline")} IS NULL THEN 0 ELSE 1 END AS baseline,
            CASE WHEN EXISTS (SELECT 1 FROM trial_system_attributes c WHERE c.trial_id = t.trial_id
                AND c.key = '{CONSTRAINT_KEY}' AND {violation} > 0) THEN 0 ELSE 1 END AS feasible
        FROM trials t JOIN studies s ON s.study_id = t.study_id"""  # noqa: S608 (only names of this file)
    best_configs_sql = f"""
        {create} best_configs AS SELECT
            row_number() OVER (PARTITION BY study ORDER BY score DESC, number) AS rank, trial_results.*
        FROM trial_results WHERE state = 'COMPLETE' AND feasible = 1 AND score IS NOT NULL"""  # noqa: S608
    if dialect == "sqlite":
        return [
            "DROP VIEW IF EXISTS best_configs",
            "DROP VIEW IF EXISTS trial_results",
            trial_results_sql,
            best_configs_sql,
        ]
    return [trial_results_sql, best_configs_sql]
