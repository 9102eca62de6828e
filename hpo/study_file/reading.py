"""Reads study files and the specs that are kept with studies; writes the study file of one trial."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.errors import SpecError
from hpo.study_file.custom import CustomSpec
from hpo.study_file.images import ROBUST_ACCURACY, ImageSpec
from hpo.study_file.messages import explain
from hpo.study_file.overrides import apply_override
from hpo.study_file.spec import Spec

KEPT = {"kept": True}
"""The context in which a stored spec is read: what is refused today may have been allowed when it was submitted."""


def spec_class(document: Any) -> type[Spec]:
    """The class of a study file, by the name of its objective."""
    objective = document.get("objective") if isinstance(document, Mapping) else None
    name = objective.get("name", ROBUST_ACCURACY) if isinstance(objective, Mapping) else ROBUST_ACCURACY
    return ImageSpec if name == ROBUST_ACCURACY or not isinstance(name, str) else CustomSpec


def read_spec(document: Mapping[str, Any]) -> Spec:
    """A study file's content, checked. Raises ValidationError."""
    return spec_class(document).model_validate(document)


def read_kept_spec(text: str) -> Spec:
    """A spec as it is kept with its study, in JSON. Raises ValidationError."""
    return spec_class(json.loads(text)).model_validate_json(text, context=KEPT)


def load_spec(path: Path | str, overrides: Sequence[str] = ()) -> Spec:
    """Reads a study file, applies `key=value` overrides, makes relative paths absolute.

    Raises SpecError, whose one line names the file, the key, what is allowed and the nearest name.
    """
    path = Path(path)
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SpecError(f"{path}: no such study file") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file in UTF-8") from None
    except (ValueError, RecursionError) as error:  # tomllib's own error, numbers of thousands of digits, deep nesting
        raise SpecError(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        apply_override(document, override)
    try:
        spec = read_spec(document)
    except ValidationError as error:
        raise SpecError(f"{path}: {explain(error, spec_class(document))}") from None
    return spec.with_absolute_paths() if isinstance(spec, ImageSpec) else spec


def trial_as_toml(spec: Spec, number: int, params: Mapping[str, Any]) -> str:
    """A study file with the parameters of one trial fixed, which `hpo run` takes."""
    import tomli_w

    fixed = spec.search.model_validate(dict(params), context=KEPT)
    has_baseline = fixed.baseline() != dict(params)
    changes = {
        "name": f"{spec.name}-trial-{number}",
        "budget": 2 if has_baseline else 1,
        "search": dict(params),
        "sampler": {"name": "random"},
    }
    document = tomli_w.dumps(spec.model_dump(exclude_none=True) | changes)
    beside = ", and the baseline to compare it with" if has_baseline else ""
    return f"# Trial {number} of study {spec.name}{beside}.\n{document}"
