"""A study's note for optuna-dashboard: what it searches, in Markdown."""

from typing import Any

from hpo.doors.parameters import Choices, Range, Value
from hpo.study_file.spec import Spec

NOTE_CHUNK = 2045  # characters per attribute, as in optuna-dashboard


def note_attributes(spec: Spec) -> dict[str, Any]:
    """The study system attributes that optuna-dashboard's `save_note` would write."""
    text = explain(spec)
    chunks = [text[start : start + NOTE_CHUNK] for start in range(0, len(text), NOTE_CHUNK)]
    return {"dashboard:note_ver": 1} | {f"dashboard:note_str:{i}": chunk for i, chunk in enumerate(chunks)}


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
