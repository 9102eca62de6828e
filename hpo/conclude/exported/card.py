"""The model card of an exported network, in Hugging Face's format: what it is, what is known of it, what is not."""

from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from hpo import __version__
from hpo.conclude.confirmed import Confirmed
from hpo.conclude.report.facts import Facts
from hpo.conclude.words import amount, conclusions, named, with_ends
from hpo.doors.perturbation import PERTURBATIONS
from hpo.study_file.images import ImageSpec

IN_HPO = """
    import hpo
    model = hpo.load_model("{folder}")    # takes uint8 images, or floats in [0, 1], (n, 3, height, width)
    model(images).argmax(1), model.classes
"""
IN_TORCHVISION = """
    python predict.py IMAGE …             # with torch, torchvision and safetensors alone
"""


def model_card(
    facts: Facts, spec: ImageSpec, folder: str, classes: Sequence[str], right: tuple[int, int] | None, predicts: bool
) -> str:
    """right: how many test images these very weights classify correctly here, and of how many; predicts: whether there
    is a predict.py.
    """
    best = facts.best
    about = (
        f"Trial {best.number} of the hpo study `{facts.study.name}`: {spec.model.name} on {spec.data.name} "
        f"({len(classes)} classes, {spec.model.input_size} px), initial weights: {_weights(spec)}."
    )
    shown = facts.shown_params.items()
    params = ", ".join(f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in shown)
    learned = "on all training images, tuning images included" if facts.confirmed else "without the tuning images"
    files = (
        "`config.json` has the classes, in the order of the network's outputs, the preprocessing, and the seed that "
        f"these weights were trained with, {learned}. `study.toml` trains the configuration again with the study's own "
        "seed and split (`hpo run study.toml`)."
    )
    lines = [
        f"# {spec.model.name}, trained to stay right when its input is perturbed",
        "",
        about,
        "",
        f"Parameters: {params}.",
        "",
        "## Use",
        IN_HPO.format(folder=folder) + (IN_TORCHVISION if predicts else ""),
        files,
        "",
        "## What is known",
        "",
        *(_confirmed(facts.confirmed, spec) if facts.confirmed else _not_confirmed(facts)),
    ]
    if right is not None:
        lines += [
            "",
            f"These weights classify {right[0]:,} of the {right[1]:,} test images correctly (clean, in fp32).",
        ]
    tested = {each.condition.name for each in facts.confirmed.results} if facts.confirmed else set(best.parts)
    never = [name for name in PERTURBATIONS.names() if not any(name in condition for condition in tested)]
    lines += [
        "",
        "## What was never tested",
        "",
        f"Images of other sources, classes or sizes; and these perturbations: {', '.join(never)}.",
        "",
    ]
    return f"---\n{_data(facts, spec).to_yaml()}\n---\n\n" + "\n".join(lines)


def _weights(spec: ImageSpec) -> str:
    known = {"imagenet": "ImageNet", "none": "random"}
    return known.get(spec.model.weights, "a file of the user's")


def _confirmed(confirmed: Confirmed, spec: ImageSpec) -> list[str]:
    trial = confirmed.candidates[0].trial
    baseline = {each.condition.key: each for each in confirmed.of("baseline")}
    rows = [
        "| condition | severity | images | baseline | this configuration | difference (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for each in confirmed.of("candidate", trial):
        difference = with_ends(confirmed, each.to_baseline.interval) if each.to_baseline else ""
        severity = "" if each.condition.severity is None else f"{each.condition.severity:g}"
        means = (baseline[each.condition.key].accuracy.mean, each.accuracy.mean)
        shown = " | ".join(amount(confirmed, value, sign=False) for value in means)
        about = f"| {named(spec, each.condition.name)} | {severity} | {each.condition.images or ''}"
        rows.append(f"{about} | {shown} | {difference} |")
    said = [f"- {each}" for sentences in conclusions(confirmed).as_headed().values() for each in sentences]
    how = f"Mean accuracies of {confirmed.seeds} trainings on fresh seeds; this network is the first of them."
    return [how, "", *rows, "", *said]


def _not_confirmed(facts: Facts) -> list[str]:
    parts = [f"{name} {100 * value:.1f} %" for name, value in facts.best.parts.items()]
    how = "On the tuning images that the search chose it by, with one seed, it has"
    return [
        f"**Nothing is confirmed.** {how} {', '.join(parts)}; such figures look better than they are (`hpo confirm`)."
    ]


def _data(facts: Facts, spec: ImageSpec) -> ModelCardData:
    results = []
    trial = facts.best.number
    for each in facts.confirmed.of("candidate", trial) if facts.confirmed else []:
        if not each.condition.main:
            continue
        name = each.condition.name + ("" if each.condition.severity is None else f" {each.condition.severity:g}")
        results.append(
            EvalResult(
                task_type="image-classification",
                dataset_type=spec.data.name,
                dataset_name=f"{spec.data.name}, locked test images",
                dataset_split="test",
                metric_type="accuracy",
                metric_name=f"accuracy, {name}, mean of {len(each.seeds)} seeds",
                metric_value=round(each.accuracy.mean, 4),
            )
        )
    known: dict[str, Any] = {"model_name": facts.study.name, "eval_results": results} if results else {}
    return ModelCardData(
        library_name="pytorch", tags=["image-classification", "robustness", f"hpo-{__version__}"], **known
    )
