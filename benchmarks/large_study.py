"""A study of many finished trials, made in seconds: what queries and pages are measured on.

    python benchmarks/large_study.py --storage sqlite:///large.db --trials 10000

The accuracies are made up; everything else is stored as workers store it.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from optuna.distributions import distribution_to_json

from hpo.search.samplers import distributions
from hpo.search.sql import attributes, tables
from hpo.search.sql.attributes import NEXT_START_KEY
from hpo.search.sql.storage import create_database, writing
from hpo.search.sql.studies import Study
from hpo.search.sql.submitting import submit
from hpo.search.sql.url import parse_url
from hpo.study_file.reading import load_spec
from hpo.study_file.spec import Spec

STUDIES = Path(__file__).parent.parent / "studies"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--storage", required=True)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--name", default="large")
    arguments = parser.parse_args()
    study = fill(create_database(parse_url(arguments.storage)), arguments.name, arguments.trials)
    print(f"{study.name}: {arguments.trials} trials", file=sys.stderr)


def fill(engine: sa.Engine, name: str, count: int, finished: int | None = None, settings: Sequence[str] = ()) -> Study:
    """Submits a study with this budget and finishes all of its trials, or the first `finished`."""
    named = [f"name={name}", f"budget={count}", "objective.max_clean_drop=0.02"]
    spec = load_spec(STUDIES / "tiny_imagenet.toml", [*named, *settings])
    study, _ = submit(engine, spec)
    generator = random.Random(0)
    with writing(engine) as connection:
        made = count if finished is None else finished
        trials = [{"study_id": study.study_id, "number": number, "state": "RUNNING"} for number in range(made)]
        attributes.insert(connection, tables.trials, trials)
        query = sa.select(tables.trials.c.trial_id, tables.trials.c.number)
        rows = connection.execute(query.where(tables.trials.c.study_id == study.study_id)).all()
        baseline = [(row.trial_id, "baseline", True) for row in rows if row.number == 0]
        attributes.write_all(connection, tables.trial_user_attributes, baseline)
        attributes.write(connection, tables.study_user_attributes, study.study_id, {NEXT_START_KEY: made})
        for first in range(0, len(rows), 1000):
            _finish(connection, spec, rows[first : first + 1000], generator)
    return study


def _finish(connection: sa.Connection, spec: Spec, rows: Any, generator: random.Random) -> None:
    """Writes a thousand trials: a third complete, the others pruned early."""
    space = distributions(spec, {"initial_weights": "pretrained"})
    values, steps, params, user, system, ended = [], [], [], [], [], []
    for trial_id, number in rows:
        complete = number == 0 or generator.random() < 0.33
        strength = 0.0 if number == 0 else generator.random()
        drawn = {
            "batch_size": generator.choice([32, 64, 128, 256, 512]),
            "learning_rate": 10 ** generator.uniform(-4, -1),
            "frozen_layers": generator.randrange(10),
            "augmentation_strength": strength,
            "initial_weights": "pretrained",
        }
        clean = 0.56 - 0.05 * strength + generator.gauss(0, 0.02)
        perturbed = {name: clean - 0.15 + 0.13 * strength + generator.gauss(0, 0.01) for name in _names(spec)}
        score = 0.5 * clean + 0.5 * sum(perturbed.values()) / len(perturbed)
        epochs = spec.training.epochs if complete else 3
        started = datetime(2026, 11, 1) + timedelta(seconds=30 * number)  # noqa: DTZ001 (as Optuna stores it)
        ended.append((trial_id, complete, started, started + timedelta(seconds=10 * epochs)))
        values.append({"trial_id": trial_id, "objective": 0, "value": score, "value_type": "FINITE"})
        for step in range(1, epochs + 1):
            kind = {"intermediate_value": score * step / epochs, "intermediate_value_type": "FINITE"}
            steps.append({"trial_id": trial_id, "step": step, **kind})
        for name, distribution in space.items():
            value = {"param_value": distribution.to_internal_repr(drawn[name])}
            text = {"distribution_json": distribution_to_json(distribution)}
            params.append({"trial_id": trial_id, "param_name": name, **value, **text})
        made_by = {"host": "made-up", "device": "cpu", "torch": "2.14.1", "seed": 0, "images": "0" * 64}
        known = {
            "worker": f"made-up:{number % 8}",
            "parts": {"clean": clean, **perturbed},
            "mean_perturbed_accuracy": sum(perturbed.values()) / len(perturbed),
            "images": 2500,
            "reports": [
                {"step": step, "score": score * step / epochs, "clean": clean * step / epochs, **perturbed}
                for step in range(1, epochs + 1)
            ],
            "made_by": made_by,
        }
        user += [(trial_id, key, value) for key, value in known.items()]
        if complete:
            user.append((trial_id, "clean_drop", 0.56 - clean))
            system.append((trial_id, f"{tables.CONSTRAINT_PREFIX}clean_drop", 0.54 - clean))
    connection.execute(tables.trial_values.insert(), values)
    connection.execute(tables.trial_intermediate_values.insert(), steps)
    connection.execute(tables.trial_params.insert(), params)
    attributes.write_all(connection, tables.trial_user_attributes, user)
    attributes.write_all(connection, tables.trial_system_attributes, system)
    t = tables.trials
    update = t.update().where(t.c.trial_id == sa.bindparam("id"))
    rows = [
        {"id": i, "state": "COMPLETE" if complete else "PRUNED", "datetime_start": start, "datetime_complete": end}
        for i, complete, start, end in ended
    ]
    connection.execute(update, rows)


def _names(spec: Spec) -> list[str]:
    return [perturbation.name for perturbation in spec.objective.perturbations]


if __name__ == "__main__":
    main()
