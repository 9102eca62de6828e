"""What a worker checks and records when it joins a study: its images and weights, and the version of hpo."""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from hpo import PROTOCOL
from hpo.errors import StudyError
from hpo.search.sql import attributes
from hpo.search.sql.claims import lock_study
from hpo.search.sql.storage import writing
from hpo.search.sql.studies import PROTOCOL_KEY, Study
from hpo.search.sql.tables import study_user_attributes

FINGERPRINTS_KEY = "fingerprints"


def adopt(engine: sa.Engine, study: Study) -> None:
    """Raises the study's protocol to this version's, so that workers of an older hpo can no longer join it."""
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        protocol, version = attributes.read_study(connection, study.study_id, PROTOCOL_KEY) or [0, "0.1.0"]
        if protocol < PROTOCOL:
            kept = {PROTOCOL_KEY: [PROTOCOL, version]}
            attributes.write(connection, study_user_attributes, study.study_id, kept)


def has_fingerprints(engine: sa.Engine, study: Study) -> bool:
    """Whether a worker has joined this study before."""
    with engine.connect() as connection:
        return attributes.read_study(connection, study.study_id, FINGERPRINTS_KEY) is not None


def check_fingerprints(
    engine: sa.Engine, study: Study, fingerprints: Mapping[str, str], about: Mapping[str, Any]
) -> None:
    """Stores the first worker's fingerprints of images and weights with the study, and `about`, which describes them.
    Raises StudyError if a later worker's fingerprints differ.
    """
    with writing(engine) as connection:
        lock_study(connection, study.study_id)
        expected = attributes.read_study(connection, study.study_id, FINGERPRINTS_KEY)
        if expected is None:
            kept = {FINGERPRINTS_KEY: dict(fingerprints), **about}
            attributes.write(connection, study_user_attributes, study.study_id, kept)
            return
    for name, known in expected.items():
        given = fingerprints.get(name, "missing")
        if given != known:
            raise StudyError(
                f"study '{study.name}' has other {name} than this machine "
                f"(fingerprint {known[:12]}, not {given[:12]}); use the same {name} on every machine, or "
                f"another study name if you changed them (--set name=…)"
            )
