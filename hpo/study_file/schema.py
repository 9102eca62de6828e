"""The study file as a JSON schema, for editors, with the perturbations that are installed."""

from typing import Any

from hpo.doors.network import network_names
from hpo.doors.perturbation import PERTURBATIONS, Perturbation
from hpo.study_file.spec import Spec


def study_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12). What one key means for another, the sum of weights say, only hpo checks."""
    schema = Spec.model_json_schema()
    schema["$defs"]["ModelSpec"]["properties"]["name"]["enum"] = network_names()
    objective = schema["$defs"]["ObjectiveSpec"]["properties"]
    objective["perturbations"]["items"] = {
        "oneOf": [_perturbation(schema, name, kind) for name, kind in PERTURBATIONS.loadable().items()]
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hpo study file"} | schema


def _perturbation(schema: dict[str, Any], name: str, kind: type[Perturbation]) -> dict[str, Any]:
    section = kind.model_json_schema()
    schema["$defs"] |= section.pop("$defs", {})
    section["properties"]["name"] = {"const": name}
    return section
