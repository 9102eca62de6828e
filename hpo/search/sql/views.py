"""The SQL views over Optuna's tables: `trial_results`, one row per trial that is not excluded; `best_configs`, a
ranking of good ones; and `confirmations`, what was measured on locked test data.

Views are never stale. They cover every study in the database, also those that hpo did not create, whose rows must not
cause errors, whatever they contain.
"""

# ruff: noqa: S608 (the SQL here is put together from names of this file only)

from typing import Any, Literal

import sqlalchemy as sa

from hpo.search.sql.attributes import CONFIRMATION_KEY, CONFIRMS_KEY, EXCLUDED_KEY, OUTCOMES_KEY
from hpo.search.sql.old_attributes import BEFORE_PARTS, PARTS_KEY
from hpo.search.sql.tables import CONSTRAINT_PREFIX
from hpo.trial_result import CLEAN

VIEWS_VERSION = 7
"""Incremented when a view changes: older views are replaced by the first command that may, newer ones are kept."""

Kind = Literal["number", "text", "time", "flag"]

ACCURACY_COLUMNS = {"gaussian-noise": "gaussian_noise", "pixel-recolor": "pixel_recolor"}
"""Parts of the score with a column of their own, for compatibility; `accuracies` has all parts."""

KINDS: dict[str, Kind] = {
    "study": "text",
    "number": "number",
    "state": "text",
    "score": "number",
    "clean_accuracy": "number",
    "perturbed_accuracy": "number",
    "batch_size": "number",
    "learning_rate": "number",
    "frozen_layers": "number",
    "augmentation_strength": "number",
    "params": "text",
    "worker": "text",
    "started_at": "time",
    "finished_at": "time",
    "baseline": "flag",
    "feasible": "flag",
    "initial_weights": "text",
    **dict.fromkeys(ACCURACY_COLUMNS.values(), "number"),
    "accuracies": "text",
    "violation": "number",
}
"""The columns of `trial_results`, in order."""

_TYPES: dict[Kind, sa.types.TypeEngine[Any]] = {"time": sa.DateTime(), "flag": sa.Boolean()}
trial_results = sa.table("trial_results", *(sa.column(name, _TYPES.get(kind)) for name, kind in KINDS.items()))

VIEWS = ("trial_results", "best_configs", "confirmations")

# Differences between the dialects: how JSON text becomes a value, and how an object is built. PostgreSQL's `json` keeps
# the text, while `jsonb` rejects some strings; it also fails to cast numbers that are too large or too small. NaN and
# infinity are not JSON, but Python writes them into the choices of a categorical parameter.
_SQLITE = {
    "number": "CASE WHEN json_valid({0}) AND json_type({0}) IN ('integer', 'real') THEN CAST({0} AS REAL) END",
    "text": "CASE WHEN {0} LIKE '\"%' THEN json_extract({0}, '$') END",
    "object_text": "CASE WHEN json_valid({0}) AND json_type({0}) = 'object' THEN {0} END",
    "member": "CASE WHEN json_valid({0}) AND json_type({0}) = 'object' THEN {0} -> '$.\"{1}\"' END",
    "int": "CAST({0} AS INTEGER)",
    "float_json": "printf('%!.17g', {0})",
    "choice": "(CASE WHEN json_valid({0}) THEN {0} "
    "ELSE replace(replace(replace({0}, '-Infinity', 'null'), 'Infinity', 'null'), 'NaN', 'null') END "
    "-> ('$.attributes.choices[' || CAST({1} AS INTEGER) || ']'))",
    "object": "json_group_object({0}, json({1}))",
    "infinity": "9e999",
    "enum": "{0}",
    "array": "json_each(CASE WHEN json_valid({0}) AND json_type({0}) = 'array' THEN {0} ELSE '[]' END)",
    "key": "json_extract({0}, '$.{1}')",
    "key_of_own": "CASE WHEN json_valid({0}) THEN json_extract({0}, '$.{1}') END",
}
_POSTGRESQL = {
    "number": "CASE WHEN {0} ~ '^-?([0-9]{{1,20}}([.][0-9]+)?"
    "|[0-9]([.][0-9]+)?[eE][-+]?([0-9]{{1,2}}|[12][0-9]{{2}}|30[0-7]))$' THEN CAST({0} AS double precision) END",
    "text": "CASE WHEN {0} LIKE '\"%' AND {0} NOT LIKE '%\\\\u0000%' THEN CAST({0} AS json) #>> '{{}}' END",
    "object_text": "CASE WHEN {0} LIKE '{{%' THEN {0} END",
    "member": "CASE WHEN {0} LIKE '{{%' AND {0} !~ '(NaN|Infinity)' THEN CAST(CAST({0} AS json) -> '{1}' AS text) END",
    "int": "CAST({0} AS bigint)",
    "float_json": "CAST({0} AS text)",
    "choice": "CAST(CAST(regexp_replace(replace({0}, '\\u0000', '\\ufffd'), "
    "'(\\[|, )(NaN|-?Infinity)(?=[,\\]])', '\\1null', 'g') AS json) "
    "-> 'attributes' -> 'choices' -> CAST({1} AS integer) AS text)",
    "object": "CAST(json_object_agg({0}, CAST({1} AS json)) AS text)",
    "infinity": "CAST('Infinity' AS double precision)",
    "enum": "CAST({0} AS text)",
    "array": "LATERAL json_array_elements(CASE WHEN {0} LIKE '[{{%' AND {0} !~ '(NaN|Infinity)' "
    "THEN CAST({0} AS json) ELSE CAST('[]' AS json) END)",
    "key": "{0} ->> '{1}'",
    "key_of_own": "CASE WHEN {0} LIKE '{{%' AND {0} !~ '(NaN|Infinity)' THEN CAST({0} AS json) ->> '{1}' END",
}


def view_statements(dialect: str) -> list[str]:
    """The SQL that replaces the views, for "sqlite" or "postgresql"."""
    sql = _SQLITE if dialect == "sqlite" else _POSTGRESQL
    selected = _trial_results_sql(sql)
    best = f"""SELECT row_number() OVER (PARTITION BY study ORDER BY score DESC, number) AS rank, trial_results.*
        FROM trial_results WHERE state = 'complete' AND feasible AND score IS NOT NULL
        AND study NOT IN (SELECT s.study_name FROM studies s JOIN study_user_attributes c ON c.study_id = s.study_id
        WHERE c.key = '{CONFIRMATION_KEY}')"""
    version = f"hpo views {VIEWS_VERSION}"
    return [
        "DROP VIEW IF EXISTS confirmations",
        "DROP VIEW IF EXISTS best_configs",
        "DROP VIEW IF EXISTS trial_results",
        f"CREATE VIEW trial_results AS {selected}{f' -- {version}' if dialect == 'sqlite' else ''}",
        f"CREATE VIEW best_configs AS {best}",
        f"CREATE VIEW confirmations AS {_confirmations_sql(sql)}",
        *([f"COMMENT ON VIEW trial_results IS '{version}'"] if dialect == "postgresql" else []),
    ]


def _confirmations_sql(sql: dict[str, str]) -> str:
    """A row for each condition of each complete run of a confirmation. study: the search; trial: of the search, of a
    control that of its candidate; run: of the confirmation's own study; accuracy: or another mean.
    """

    def typed(value: str, kind: str) -> str:
        return f"CAST({value} AS {kind})"

    def confirms(key: str) -> str:
        return sql["key_of_own"].format("a.value_json", key)

    def outcome(key: str) -> str:
        return sql["key"].format("e.value", key)

    columns = {
        "study": sql["key_of_own"].format("c.value_json", "study"),
        "role": confirms("role"),
        "trial": typed(confirms("trial"), "integer"),
        "seed": typed(confirms("seed"), "bigint"),
        "condition": outcome("condition"),
        "severity": typed(outcome("severity"), "double precision"),
        "main": typed(outcome("main"), "boolean"),
        "correct": typed(outcome("correct"), "integer"),
        "images": typed(outcome("images"), "integer"),
        "accuracy": typed(outcome("value"), "double precision"),
        "run": "t.number",
    }
    selected = ", ".join(f"{value} AS {name}" for name, value in columns.items())
    return f"""SELECT {selected} FROM trials t
        JOIN study_user_attributes c ON c.study_id = t.study_id AND c.key = '{CONFIRMATION_KEY}'
        JOIN trial_user_attributes a ON a.trial_id = t.trial_id AND a.key = '{CONFIRMS_KEY}'
        JOIN trial_user_attributes o ON o.trial_id = t.trial_id AND o.key = '{OUTCOMES_KEY}'
        CROSS JOIN {sql["array"].format("o.value_json")} e
        WHERE {sql["enum"].format("t.state")} = 'COMPLETE'"""


def _trial_results_sql(sql: dict[str, str]) -> str:
    def attribute(kind: str, key: str) -> str:
        value = sql[kind].format("a.value_json")
        return f"(SELECT {value} FROM trial_user_attributes a WHERE a.trial_id = t.trial_id AND a.key = '{key}')"

    def part(name: str, old_key: str) -> str:
        """A part of the score; older versions of hpo stored each under a key of its own."""
        new, old = sql["member"].format("a.value_json", name), sql["number"].format("a.value_json")
        value = f"CASE a.key WHEN '{PARTS_KEY}' THEN {sql['number'].format(f'({new})')} ELSE {old} END"
        return f"""(SELECT {value} FROM trial_user_attributes a WHERE a.trial_id = t.trial_id
                AND a.key IN ('{PARTS_KEY}', '{old_key}') ORDER BY a.key = '{old_key}' LIMIT 1)"""

    def parameter(name: str, value: str = "p.param_value") -> str:
        return f"(SELECT {value} FROM trial_params p WHERE p.trial_id = t.trial_id AND p.param_name = '{name}')"

    whole_number = sql["int"].format("p.param_value")
    choice = sql["choice"].format("p.distribution_json", "p.param_value")
    is_choice = "p.distribution_json LIKE '%\"CategoricalDistribution\"%'"
    param_json = (
        f"CASE WHEN {is_choice} THEN {choice} "
        f"WHEN p.distribution_json LIKE '%\"IntDistribution\"%' THEN CAST({whole_number} AS text) "
        f"ELSE {sql['float_json'].format('p.param_value')} END"
    )
    word = sql["text"].format(f"({choice})")
    violation = f"""(SELECT max({sql["number"].format("c.value_json")}) FROM trial_system_attributes c
                WHERE c.trial_id = t.trial_id AND c.key LIKE '{CONSTRAINT_PREFIX}%')"""
    columns = {
        "study": "s.study_name",
        "number": "t.number",
        "state": f"lower({sql['enum'].format('t.state')})",
        "score": f"""(SELECT CASE {sql["enum"].format("v.value_type")} WHEN 'INF_POS' THEN {sql["infinity"]}
                WHEN 'INF_NEG' THEN -{sql["infinity"]} ELSE v.value END
                FROM trial_values v WHERE v.trial_id = t.trial_id AND v.objective = 0)""",
        "clean_accuracy": part(CLEAN, BEFORE_PARTS[0]),
        "perturbed_accuracy": attribute("number", "mean_perturbed_accuracy"),
        "batch_size": parameter("batch_size", whole_number),
        "learning_rate": parameter("learning_rate"),
        "frozen_layers": parameter("frozen_layers", whole_number),
        "augmentation_strength": parameter("augmentation_strength"),
        "params": f"""(SELECT {sql["object"].format("p.param_name", param_json)} FROM trial_params p
                WHERE p.trial_id = t.trial_id)""",
        "worker": attribute("text", "worker"),
        "started_at": "t.datetime_start",
        "finished_at": "t.datetime_complete",
        "baseline": """EXISTS (SELECT 1 FROM trial_user_attributes b WHERE b.trial_id = t.trial_id
                AND b.key = 'baseline')""",
        "feasible": f"coalesce({violation}, 0) <= 0",
        "initial_weights": parameter("initial_weights", f"CASE WHEN {is_choice} THEN {word} END"),
        **{column: part(name, name) for name, column in ACCURACY_COLUMNS.items()},
        "accuracies": f"""(SELECT {sql["object_text"].format("a.value_json")} FROM trial_user_attributes a
                WHERE a.trial_id = t.trial_id AND a.key IN ('{PARTS_KEY}', '{BEFORE_PARTS[1]}')
                ORDER BY a.key = '{BEFORE_PARTS[1]}' LIMIT 1)""",
        "violation": violation,
    }
    selected = ", ".join(f"{columns[name]} AS {name}" for name in KINDS)
    return f"""SELECT {selected} FROM trials t JOIN studies s ON s.study_id = t.study_id
        WHERE NOT EXISTS (SELECT 1 FROM trial_user_attributes x WHERE x.trial_id = t.trial_id
        AND x.key = '{EXCLUDED_KEY}')"""
