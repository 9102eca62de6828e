"""Studies in the database: how they are found and read."""

import contextlib
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from hpo import OLDEST_PROTOCOL, PROTOCOL, __version__
from hpo.doors.parameters import Params
from hpo.errors import StudyError, nearest
from hpo.search.confirmation import Confirmation
from hpo.search.sql.attributes import (
    BUDGET_KEY,
    CONFIRMATION_KEY,
    FIRST_STARTS_KEY,
    FOLDER_KEY,
    STOPPED_KEY,
    UID_KEY,
)
from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.tables import (
    studies,
    study_user_attributes,
)
from hpo.study_file.reading import read_kept_spec
from hpo.study_file.spec import Spec

SPEC_KEY = "spec"
PROTOCOL_KEY = "protocol"


@dataclass(frozen=True)
class Study:
    """A submitted study. budget: includes extensions; stopped: why it was stopped, None if it was not; failing: whether
    it was stopped because too many trials failed; rule: the one of its [stop] section that stopped it, if one did; uid:
    differs if SQLite reuses the id of a deleted study; refused: why this version of hpo may read it but not work on it,
    None if it may; first: configurations that a warm start tries first, None in studies of older versions of hpo, which
    stored all trials in advance; confirmation: what it trains again of another study, None if it is a search; folder:
    in the artifact store, None for that of its name.
    """

    study_id: int
    spec: Spec
    budget: int
    stopped: str | None = None
    failing: bool = False
    rule: str | None = None
    uid: str | None = None
    refused: str | None = None
    first: tuple[Params, ...] | None = None
    confirmation: Confirmation | None = None
    folder: str | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def key(self) -> StudyKey:
        return self.study_id, self.uid

    @property
    def files(self) -> str:
        """The name of its folder in the artifact store."""
        return self.folder or self.spec.folder_name

    @property
    def waits_for_baseline(self) -> bool:
        """Whether its other trials cannot start before its baseline is complete; a confirmation has the search's."""
        return self.confirmation is None and self.spec.waits_for_baseline

    @property
    def resume_command(self) -> str:
        return f"hpo resume {shlex.quote(self.name)}"

    @property
    def why_stopped(self) -> str:
        return f"stopped: {self.stopped}; `{self.resume_command}` continues it"

    def refuse_confirmation(self) -> None:
        """Raises StudyError if it is no search."""
        if (confirmation := self.confirmation) is not None:
            raise StudyError(
                f"study '{self.name}' is no search: it confirms '{confirmation.study}'; `hpo confirm "
                f"{shlex.quote(confirmation.study)}` says what was found"
            )

    def refuse(self) -> None:
        """Raises StudyError if this version of hpo may not work on it."""
        if self.refused:
            raise StudyError(self.refused)


def _query_studies(*keys: str) -> sa.Select[Any]:
    """(study_id, name, key, JSON value) of these attributes of all studies."""
    a = study_user_attributes.c
    return (
        sa.select(studies.c.study_id, studies.c.study_name, a.key, a.value_json)
        .join(study_user_attributes, a.study_id == studies.c.study_id)
        .where(a.key.in_(keys))
        .order_by(studies.c.study_id)
    )


def study_names(connection: sa.Connection) -> list[str]:
    """Names of all studies that hpo submitted, the oldest first."""
    return [name for _, name, *_ in connection.execute(_query_studies(SPEC_KEY))]


def load_studies(
    connection: sa.Connection, names: Sequence[str] = (), ids: Sequence[int] | None = None
) -> dict[str, Study | StudyError]:
    """Studies that hpo submitted, by name; the error for those that this version of hpo cannot read."""
    keys = (SPEC_KEY, PROTOCOL_KEY, BUDGET_KEY, STOPPED_KEY, UID_KEY, FIRST_STARTS_KEY, CONFIRMATION_KEY, FOLDER_KEY)
    query = _query_studies(*keys)
    if names:
        query = query.where(studies.c.study_name.in_(names))
    if ids is not None:
        query = query.where(studies.c.study_id.in_(ids))
    kept: dict[tuple[int, str], dict[str, str]] = {}
    for study_id, name, key, text in connection.execute(query):
        kept.setdefault((study_id, name), {})[key] = text
    found: dict[str, Study | StudyError] = {}
    for (study_id, name), texts in kept.items():
        if SPEC_KEY not in texts:
            continue
        try:
            found[name] = _as_study(study_id, name, texts)
        except ValidationError as error:
            reason = error.errors()[0]
            key = ".".join(map(str, reason["loc"])) or "it"
            found[name] = StudyError(f"study '{name}' cannot be read by hpo {__version__}: {key}: {reason['msg']}")
    return found


def _as_study(study_id: int, name: str, texts: Mapping[str, str]) -> Study:
    spec, unknown = _read_spec(texts[SPEC_KEY])
    protocol, version = json.loads(texts.get(PROTOCOL_KEY, '[0, "0.1.0"]'))
    stopped = json.loads(texts.get(STOPPED_KEY, "{}"))
    differs = None if OLDEST_PROTOCOL <= protocol <= PROTOCOL else f"protocol {protocol}, not {PROTOCOL}"
    differs = f"this version does not know {', '.join(unknown)}" if unknown else differs
    return Study(
        study_id,
        spec.model_copy(update={"name": name}),  # other tools may have renamed it
        int(texts.get(BUDGET_KEY, spec.budget)),
        stopped.get("reason"),
        stopped.get("failing", False),
        stopped.get("rule"),
        json.loads(texts.get(UID_KEY, "null")),
        _refusal(name, version, differs) if differs else None,
        tuple(json.loads(texts[FIRST_STARTS_KEY])) if FIRST_STARTS_KEY in texts else None,
        Confirmation.from_json(json.loads(texts[CONFIRMATION_KEY])) if CONFIRMATION_KEY in texts else None,
        json.loads(texts.get(FOLDER_KEY, "null")),
    )


def _refusal(name: str, version: str, differs: str) -> str:
    this = f"this is hpo {__version__}" if version != __version__ else "as this is, perhaps with other packages"
    return (
        f"study '{name}' was submitted by hpo {version}, {this} ({differs}): it can be read, but "
        "the workers of a study need the same versions"
    )


@lru_cache(maxsize=2000)
def _read_spec(text: str) -> tuple[Spec, tuple[str, ...]]:
    """A stored spec, and its keys that this version does not know. Raises ValidationError."""
    try:
        return read_kept_spec(text), ()
    except ValidationError as error:
        unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        if len(unknown) < error.error_count():
            raise
    values = json.loads(text)
    for location in unknown:
        _remove(values, location)
    return read_kept_spec(json.dumps(values)), tuple(".".join(map(str, location)) for location in unknown)


def _remove(values: Any, location: Sequence[str | int]) -> None:
    *parents, last = location
    for key in parents:
        with contextlib.suppress(KeyError, IndexError, TypeError):  # pydantic also lists members of a union
            values = values[key]
    values.pop(last, None)


def find_study(connection: sa.Connection, name: str) -> Study | None:
    """The study of this name; None if there is none that hpo submitted. Raises StudyError if it cannot be read."""
    found = load_studies(connection, [name]).get(name)
    if isinstance(found, StudyError):
        raise found
    return found


def find_studies(
    engine: sa.Engine, names: Sequence[str] = (), say: Callable[[str], object] | None = None
) -> list[Study]:
    """The named studies, or all that this version of hpo can read; `say` is told about others. Raises StudyError if a
    named study does not exist or cannot be read.
    """
    with engine.connect() as connection:
        found = load_studies(connection, names)
        there = study_names(connection) if names else []
    for name in names:
        if name not in found:
            raise StudyError(f"no study '{name}' in this storage; {those_there(name, there)}")
        if isinstance(unreadable := found[name], StudyError):
            raise unreadable
    for unreadable in found.values():
        if say and isinstance(unreadable, StudyError):
            say(str(unreadable))
    return [study for name in names or found if isinstance(study := found[name], Study)]


def those_there(name: str, there: Sequence[str]) -> str:
    """For messages about an unknown study: which studies exist, and the most similar name."""
    listed = f"there are: {', '.join(there)}" if there else "there are none; `hpo submit` makes one"
    return f"{listed}.{nearest(name, there)}"
