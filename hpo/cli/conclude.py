"""The commands that draw conclusions from a finished search."""

from collections.abc import Sequence
from pathlib import Path

import click

from hpo.cli.options import json_option, open_study, print_json, storage_option, workers_option


@click.command()
@click.argument("study")
@click.option(
    "--top",
    type=click.IntRange(1, 1000),
    help="How many of the best trials to confirm. Default: those that were asked for before, else 3, or as many as "
    "there are.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    help="On how many fresh seeds to train each. Default: as many as were asked for before, else 8.",
)
@click.option(
    "--test-set",
    "test_sets",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="PATH",
    help="Also score corrupted test images from disk: a folder or zip in Tiny-ImageNet-C's layout. May be repeated.",
)
@click.option("--anyway", is_flag=True, help="Even if the search is not finished, or no trial is feasible.")
@click.option("--submit", "only_submit", is_flag=True, help="Only add it to the database, for workers elsewhere.")
@storage_option
@workers_option
@json_option
def confirm(
    study: str,
    top: int | None,
    seeds: int | None,
    test_sets: Sequence[Path],
    anyway: bool,
    only_submit: bool,
    storage: str,
    workers: int | None,
    as_json: bool,
) -> None:
    """Train the best trials again and say what holds.

    The baseline, the best trials and a control of each (the same parameters without perturbed training images) are
    trained on fresh seeds and all training images, and scored once on the locked test images. This runs here, as a
    study of its own that workers elsewhere share; if it was interrupted, run the same command again to continue. Asked
    again, it prints what is known.
    """
    from hpo.cli.confirm_here import Asked, confirm_study, submit_only
    from hpo.cli.confirmed_tables import print_confirmed
    from hpo.cli.tables import console

    engine, found = open_study(study, storage)
    asked = Asked(top, seeds, test_sets, anyway)
    if only_submit:
        submit_only(engine, found, asked)
        return
    confirmed = confirm_study(engine, found, asked, storage, workers)
    if as_json:
        print_json(confirmed.as_json())
    else:
        print_confirmed(console(), confirmed)


@click.command()
@click.argument("study")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The HTML file. Default: STUDY-report.html in the current folder."
)
@click.option(
    "--figures", type=click.Path(path_type=Path), help="Also write each figure into this new folder: SVG, PNG and CSV."
)
@click.option("--anyway", is_flag=True, help="Even if the search is not finished, or no trial is feasible.")
@storage_option
def report(study: str, output: Path | None, figures: Path | None, anyway: bool, storage: str) -> None:
    """Write a page that says what was found.

    One HTML file that needs nothing else: what is confirmed, curves, what the score depends on, images with what the
    networks say of them, cost, and how to make it again. Images and networks are shown if this machine has the study's
    images and HPO_ARTIFACTS.
    """
    from hpo.cli.report_here import write_report

    engine, found = open_study(study, storage)
    write_report(engine, found, output, figures, anyway)


@click.command()
@click.argument("study")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--onnx", is_flag=True, help="Also write model.onnx.")
@click.option(
    "--mlflow",
    metavar="URI",
    help="Also copy all trials into MLflow, an experiment of the study's name, and the folder.",
)
@click.option(
    "--tensorboard",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write all trials' curves into a new folder.",
)
@click.option("--anyway", is_flag=True, help="Even if the search is not finished, or no trial is feasible.")
@storage_option
def export(
    study: str, folder: Path, onnx: bool, mlflow: str | None, tensorboard: Path | None, anyway: bool, storage: str
) -> None:
    """Write the best network into a folder.

    Weights (safetensors, with torchvision's own names), classes and preprocessing, the configuration as a study file,
    a model card that says what is known and what was never tested, and predict.py, which needs no hpo. Of a confirmed
    study it is the network that was trained on the first fresh seed, else the one that the search kept.
    """
    from hpo.cli.export_here import Wanted, export_study

    engine, found = open_study(study, storage)
    export_study(engine, found, Wanted(folder, onnx, mlflow, tensorboard, anyway))


CONCLUDING_COMMANDS = (confirm, report, export)
