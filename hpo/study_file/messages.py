"""Turns pydantic's validation errors into one line that a person can act on."""

import types
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from hpo.errors import nearest, short

_UNION_TAGS = {"range", "choices", "value"}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem of `error`, and how many more there are, in one line."""
    errors = error.errors(include_url=False)
    errors.sort(key=lambda details: details["type"] == "missing")  # a typo explains what is missing
    problems = {".".join(_path(details)): details for details in reversed(errors)}
    key, details = list(problems.items())[-1]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = _message(details, model)
    return (f"{key}: {message}" if key else message) + more


def _path(details: ErrorDetails) -> list[str]:
    """The key as `--set` takes it: without the union members that pydantic puts into the location, and without the
    index of a table that has a name.
    """
    path = [str(part) for part in details["loc"]]
    if path[1:2] == ["perturbations"] and len(path) > 3:
        path.pop(2)
    if path[-1:] and path[-1] in ("int", "float", "str"):
        path.pop()
    if path[:1] == ["search"] and len(path) > 2 and path[2] in _UNION_TAGS:
        path.pop(2)
    return path


def with_allowed_keys(
    error: ValidationError, model: type[BaseModel], place: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> ValidationError:
    """The same with the keys of the model, which cannot be told from the place of a table whose name chooses it.

    place: where the table is, if the error does not say; others: keys that are allowed beside the model's.
    """
    lines = []
    for details in error.errors(include_url=False):
        context = {**details.get("ctx", {}), "reason": details["msg"], "allowed": [*others, *model.model_fields]}
        kind = PydanticCustomError(details["type"], "{reason}", context)
        lines.append(InitErrorDetails(type=kind, loc=(*place, *details["loc"]), input=details["input"]))
    return ValidationError.from_exception_data(model.__name__, lines)


def _message(details: ErrorDetails, model: type[BaseModel]) -> str:
    given = details["input"]
    match details["type"]:
        case "extra_forbidden":
            key = _path(details)[-1]
            allowed = details.get("ctx", {}).get("allowed") or _keys_at(model, [str(p) for p in details["loc"][:-1]])
            return f"unknown key; allowed here: {', '.join(allowed)}.{nearest(key, allowed)}"
        case "missing":
            return "required, but not given"
        case "literal_error":
            expected = str(details.get("ctx", {}).get("expected", ""))
            allowed = [word.strip(" '") for word in expected.replace(" or ", ", ").split(",")]
            return f"must be {expected}, not {short(given)}.{nearest(str(given), allowed)}"
        case "value_error":
            return str(details.get("ctx", {}).get("error", details["msg"]))
        case "bool_type" | "bool_parsing":
            return f"must be true or false, not {short(given)}"
        case "too_short":
            return "must not be empty"
        case "model_type" | "dict_type" | "model_attributes_type":
            return f"must be a table, not {short(given)}"
    if details["loc"][-1] in ("int", "float"):  # one of several types that would do
        is_odd = isinstance(given, bool) or not isinstance(given, int | float | str)
        in_search = is_odd and details["loc"][0] == "search" and "choices" not in details["loc"]
        or_else = ", a range { low, high }, { choices = [...] } or a word" if in_search else ""
        return f"must be a finite number{or_else}, not {short(given)}"
    message = (
        details["msg"]
        .replace("Input should be", "must be")
        .replace("Input should have", "must have")
        .replace("String should", "must")
    )
    return f"{message}, not {short(given)}"


def _keys_at(model: type[BaseModel], location: list[str]) -> list[str]:
    """The keys that are allowed in the table at `location`, which may name a union's member by its tag."""
    candidates: list[type[BaseModel]] = [model]
    for part in location:
        tagged = [c for c in candidates if _has_tag(c, part)]
        fields = [c.model_fields[part].annotation for c in candidates if part in c.model_fields]
        if not tagged and not fields:  # a key that the model does not name, but allows
            fields = [get_type_hints(c, include_extras=True).get("__pydantic_extra__") for c in candidates]
        if tagged or fields:
            candidates = tagged or [m for field in fields for m in _models_in(field)]
    return list(dict.fromkeys(key for c in candidates for key in c.model_fields))


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [found for argument in get_args(annotation) for found in _models_in(argument)]


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    name = model.model_fields.get("name")
    return model.__name__.lower() == tag or (name is not None and tag in get_args(name.annotation))
