"""Files that trials worth keeping have in the artifact store: pictures, and the weights of the network."""

import json
import shlex
from pathlib import Path

import sqlalchemy as sa

from hpo.artifacts import Artifacts, write_file
from hpo.errors import HpoError
from hpo.search.sql import attributes
from hpo.search.sql.attributes import ARTIFACTS_KEY
from hpo.search.sql.studies import Study
from hpo.search.sql.tables import trial_system_attributes, trials
from hpo.search.study_files import is_elsewhere

WEIGHTS_FILE = "weights.safetensors"


def write_weights(engine: sa.Engine, study: Study, number: int, artifacts: Artifacts, target: Path) -> None:
    """Writes the weights that a trial kept into a file. Raises HpoError if it kept none or they are out of reach, and
    OSError.
    """
    write_file(target, read_weights(engine, study, number, artifacts))


def read_weights(engine: sa.Engine, study: Study, number: int, artifacts: Artifacts) -> bytes:
    """The weights that a trial kept, as safetensors. Raises HpoError if it kept none or they are out of reach, and
    OSError.
    """
    kept = _artifact_id(engine, study.study_id, number, WEIGHTS_FILE)
    if kept is None:
        raise HpoError(
            f"study '{study.name}': trial {number} kept no weights; an objective that has any keeps those of "
            "the baseline and of trials that were the best feasible one when they ended. To train it again: "
            f"hpo best {shlex.quote(study.name)} --toml"
        )
    content = artifacts.read(kept)
    if content is None:
        with engine.connect() as connection:
            location = attributes.read_study(connection, study.study_id, ARTIFACTS_KEY)
        where = f"; its workers keep files in {location}, so set HPO_ARTIFACTS to that" if location else ""
        where = where if is_elsewhere(location, artifacts) else "; set it to the folder or bucket that has them"
        lacking = f"the weights of trial {number} are not in HPO_ARTIFACTS ({artifacts.location})"
        raise HpoError(f"study '{study.name}': {lacking}{where}")
    return content


def _artifact_id(engine: sa.Engine, study_id: int, number: int, filename: str) -> str | None:
    kept = trial_system_attributes.c
    query = (
        sa.select(kept.value_json)
        .join(trials, trials.c.trial_id == kept.trial_id)
        .where(trials.c.study_id == study_id, trials.c.number == number, kept.key.startswith("artifacts:"))
    )
    with engine.connect() as connection:
        texts = [json.loads(text) for text in connection.execute(query).scalars()]
    files = [json.loads(text) for text in texts if text]
    return next((str(file["artifact_id"]) for file in files if file["filename"] == filename), None)
