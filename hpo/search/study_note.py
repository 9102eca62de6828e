"""What a study searches, in Markdown: the note that optuna-dashboard shows with it."""

from typing import Any

from hpo.doors.parameters import Choices, Range, Value
from hpo.study_file.spec import Spec

NOTE_CHUNK = 2045  # characters in one attribute, as optuna-dashboard splits its notes


def note_attributes(spec: Spec) -> dict[str, Any]:
    """The note as optuna-dashboard's `save_note` would keep it: study system attributes."""
    text = explain(spec)
    chunks = [text[start : start + NOTE_CHUNK] for start in range(0, len(text), NOTE_CHUNK)]
    return {"dashboard:note_ver": 1} | {f"dashboard:note_str:{i}": chunk for i, chunk in enumerate(chunks)}


def explain(spec: Spec) -> str:
    """Which images and network, what is searched, what the score is, and how to read the trials."""
    conditions = [(f"{spec.objective.clean:g}", "clean accuracy")]
    conditions += [
        (f"{p.weight:g}", f"accuracy under {p.name} {p.scored_severity:g}") for p in spec.objective.perturbations
    ]
    score = " + ".join(f"{weight} × {what}" for weight, what in conditions)  # noqa: RUF001
    training, tuned = spec.training, spec.objective
    lines = [
        f"**{spec.model.name}** (weights: {spec.model.weights}) on **{spec.data.name}**, {spec.model.input_size} px.",
        f"{spec.budget} trials of {training.epochs} epochs, sampler {spec.sampler.name}, pruner {spec.pruner.name}.",
        "",
        f"Score: {score}, on tuning images that no trial trains on.",
        "",
        "| parameter | searched |",
        "|---|---|",
        *(f"| {name} | {_said(parameter)} |" for name, parameter in spec.search.parameters()),
        "",
        "Trial 0 is the *baseline*: the study file's defaults without perturbed training images; it is never pruned.",
    ]
    if tuned.max_clean_drop is not None:
        most = f"at most {100 * tuned.max_clean_drop:g} points"
        lines.append(f"A trial is feasible if its clean accuracy is {most} below the baseline's (`clean_drop`).")
    return "\n".join([*lines, "", "Pictures: at the baseline and at each trial that was the best when it ended."])


def _said(parameter: Value | Range | Choices) -> str:
    if isinstance(parameter, Range):
        return f"{parameter.low:g} to {parameter.high:g}{', logarithmic' if parameter.log else ''}"
    if isinstance(parameter, Choices):
        return ", ".join(map(str, parameter.choices))
    return f"fixed at {parameter}"
