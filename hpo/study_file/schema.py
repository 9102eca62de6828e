"""The study file as a JSON schema, for editors, with the perturbations and objectives that are installed."""

import re
from typing import Any

from hpo.doors.network import network_names, network_prefixes
from hpo.doors.objective import OBJECTIVES
from hpo.doors.perturbation import PERTURBATIONS, LeveledPerturbation, Perturbation
from hpo.study_file.custom import CustomSpec
from hpo.study_file.images import ImageSpec


def study_schema() -> dict[str, Any]:
    """A JSON schema (draft 2020-12). What one key means for another, the sum of weights say, only hpo checks."""
    schema = _image_study()
    if others := OBJECTIVES.installed():
        custom = CustomSpec.model_json_schema()
        definitions = schema.pop("$defs") | custom.pop("$defs")
        definitions["CustomObjective"]["properties"]["name"]["enum"] = others
        schema = {"anyOf": [schema, custom], "$defs": definitions}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "hpo study file"} | schema


def _image_study() -> dict[str, Any]:
    schema = ImageSpec.model_json_schema()
    prefixes = [{"pattern": f"^{re.escape(prefix)}"} for prefix in network_prefixes()]
    schema["$defs"]["ModelSpec"]["properties"]["name"]["anyOf"] = [{"enum": network_names()}, *prefixes]
    members = PERTURBATIONS.loadable()
    scored = [_perturbation(schema, name, kind) for name, kind in members.items()]
    trained = [{**section, "required": _without_weight(section["required"])} for section in scored]
    schema["$defs"]["ObjectiveSpec"]["properties"]["perturbations"]["items"] = {"oneOf": scored}
    lists, _ = schema["$defs"]["AugmentationSpec"]["properties"]["perturbations"]["anyOf"]
    lists["items"] = {"oneOf": trained}
    return schema


def _without_weight(required: list[str]) -> list[str]:
    return [key for key in required if key != "weight"]


def _perturbation(schema: dict[str, Any], name: str, kind: type[Perturbation]) -> dict[str, Any]:
    section = kind.model_json_schema()
    schema["$defs"] |= section.pop("$defs", {})
    section["properties"]["name"] = {"const": name}
    if issubclass(kind, LeveledPerturbation):
        section["required"].remove(kind.severity)
        section["oneOf"] = [{"required": [kind.severity]}, {"required": ["level"]}]
    return section
