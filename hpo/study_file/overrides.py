"""`--set key=value`: changes to a study file's document before it is checked."""

import tomllib
from typing import Any

from hpo.errors import SpecError, nearest


def apply_override(document: dict[str, Any], override: str) -> None:
    """Sets one key, such as training.epochs=3 or objective.perturbations.gaussian-noise.sigma=0.2.

    The value is TOML, or else a string as it stands. Raises SpecError.
    """
    key, separator, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise SpecError(f"--set {override}: must be key=value, such as training.epochs=3")
    value = parse_value(text)
    place: Any = document
    for depth, part in enumerate(parts):
        if not isinstance(place, dict | list):
            raise SpecError(f"--set {override}: {'.'.join(parts[:depth])} is a value, not a table")
        step: Any = _index(place, part, override) if isinstance(place, list) else part
        if depth == len(parts) - 1:
            place[step] = value
        else:
            place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]


def parse_value(text: str) -> Any:
    """The TOML value that this text is, or else the text."""
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return document["value"] if len(document) == 1 else text


def _index(entries: list[Any], key: str, override: str) -> int:
    """The position of the entry that `key` numbers (from 0) or names."""
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(entries):
        return int(key)
    known = [str(name) for name in names]
    raise SpecError(f"--set {override}: '{key}' is not among {', '.join(known)}.{nearest(key, known)}")
