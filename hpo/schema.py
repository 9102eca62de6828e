"""The study file as a JSON schema, for editors, with the perturbations that are installed."""

from typing import Any

from hpo.errors import InputError
from hpo.network import network_names
from hpo.perturbation import PERTURBATIONS
from hpo.spec import Spec


def study_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12). What one key means for another, the sum of weights say, only hpo checks."""
    schema = Spec.model_json_schema()
    schema["$defs"]["ModelSpec"]["properties"]["name"]["enum"] = network_names()
    objective = schema["$defs"]["ObjectiveSpec"]["properties"]
    objective["perturbations"]["items"] = {"oneOf": [_perturbation(schema, name) for name in _loadable()]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hpo study file"} | schema


def _loadable() -> list[str]:
    """Perturbations of packages that do not load are no help to an editor."""
    names = []
    for name in PERTURBATIONS.names():
        try:
            PERTURBATIONS.find(name)
        except InputError:
            continue
        names.append(name)
    return names


def _perturbation(schema: dict[str, Any], name: str) -> dict[str, Any]:
    section = PERTURBATIONS.find(name).model_json_schema()
    schema["$defs"] |= section.pop("$defs", {})
    section["properties"]["name"] = {"const": name}
    return section
