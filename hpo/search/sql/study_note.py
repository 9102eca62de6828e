"""A study's note for optuna-dashboard: what it searches, in Markdown."""

import shlex
from typing import Any

from hpo.doors.parameters import Choices, Range, Value
from hpo.search.confirmation import Confirmation
from hpo.study_file.spec import Spec

NOTE_CHUNK = 2045  # characters per attribute, as in optuna-dashboard


def note_attributes(spec: Spec) -> dict[str, Any]:
    """The study system attributes that optuna-dashboard's `save_note` would write."""
    return _in_chunks(explain(spec))


def _in_chunks(text: str) -> dict[str, Any]:
    chunks = [text[start : start + NOTE_CHUNK] for start in range(0, len(text), NOTE_CHUNK)]
    return {"dashboard:note_ver": 1} | {f"dashboard:note_str:{i}": chunk for i, chunk in enumerate(chunks)}


def note_of_confirmation(confirmation: Confirmation) -> dict[str, Any]:
    """The same for a study that confirms another."""
    what = "each configuration is trained again on fresh seeds and all training data, and scored on locked test data"
    lines = [
        f"Confirms **{confirmation.study}**: {what}. These trials are no part of a search.",
        "",
        "| configuration | trial of the search | seeds |",
        "|---|---|---|",
        *(
            f"| {each.role} | {each.trial} | {', '.join(map(str, confirmation.seeds_of(place)))} |"
            for place, each in enumerate(confirmation.configurations)
        ),
        "",
        f"`hpo confirm {shlex.quote(confirmation.study)}` says what holds.",
    ]
    return _in_chunks("\n".join(lines))


def explain(spec: Spec) -> str:
    """What is searched, what the score is, and how to read the trials."""
    first, *others = spec.summary()
    return "\n".join(
        [
            first,
            f"{spec.budget} trials of {spec.steps} steps, sampler {spec.sampler.name}, pruner {spec.pruner.name}.",
            "",
            "| parameter | searched |",
            "|---|---|",
            *(f"| {name} | {_in_words(parameter)} |" for name, parameter in spec.search.parameters()),
            *(line for other in others for line in ("", other)),
        ]
    )


def _in_words(parameter: Value | Range | Choices) -> str:
    if isinstance(parameter, Range):
        return f"{parameter.low:g} to {parameter.high:g}{', logarithmic' if parameter.log else ''}"
    if isinstance(parameter, Choices):
        return ", ".join(map(str, parameter.choices))
    return f"fixed at {parameter}"
