"""Runs a confirmation on this machine until it is complete: `hpo confirm` and `hpo.confirm`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click
import sqlalchemy as sa

from hpo.cli.options import launch_command
from hpo.cli.run_here import how_many, run_until_done
from hpo.conclude.candidates import check_test_sets, choose
from hpo.conclude.confirmed import Confirmed, read_confirmed
from hpo.errors import InputError, WorkerError
from hpo.search.sql.confirming import confirm, find_confirmation, planned
from hpo.search.sql.counts import count
from hpo.search.sql.studies import Study
from hpo.study_file.images import ImageSpec
from hpo.workers.machine import check_workers

SEEDS = 8
"""With fewer nothing can be claimed of four conditions or more."""


@dataclass(frozen=True)
class Asked:
    """What a user asks to have confirmed. top: how many of the best trials; seeds: how many fresh ones; None: as
    many as before; test_sets: of images from disk; anyway: also of a search that is not finished.
    """

    top: int | None
    seeds: int | None
    test_sets: Sequence[Path]
    anyway: bool


def confirm_study(engine: sa.Engine, study: Study, asked: Asked, storage: str, workers: int | None) -> Confirmed:
    """Adds what is lacking to the database, runs it here, and reads what was found. workers: None for as many as this
    machine has room for. Raises WorkerError if it was stopped before anything could be compared.
    """
    check_workers(workers)
    confirmation, trials, new = submit_confirmation(engine, study, asked)
    if count(engine, confirmation.study_id).finished < confirmation.budget:
        run_until_done(engine, confirmation, storage, how_many(study.spec, workers), new)
        finished = count(engine, confirmation.study_id).finished
        if finished < confirmation.budget:
            left = f"{finished} of {confirmation.budget} trainings are finished; run the same command again to continue"
            click.echo(f"study {confirmation.name} was interrupted: {left}", err=True)
    confirmed = read_confirmed(engine, study, confirmation, trials)
    if confirmed is None:
        raise WorkerError(
            f"study '{confirmation.name}' has no complete run of each configuration yet; run the same command again to "
            "continue"
        )
    return confirmed


def submit_confirmation(engine: sa.Engine, study: Study, asked: Asked) -> tuple[Study, list[int], bool]:
    """The confirmation's study, the trials to be confirmed, the best first, and whether anything was added. What is
    wrong is said before the database is written. Raises InputError.
    """
    study.refuse_confirmation()
    known = find_confirmation(engine, study)
    before = known.confirmation if known else None
    baseline, candidates = choose(engine, study, asked.top, asked.anyway, before)
    seeds = asked.seeds or (len(before.seeds_of(0)) if before else SEEDS)
    if before and seeds < len(before.seeds_of(0)):
        click.echo(f"{len(before.seeds_of(0))} seeds were trained before, and all of them count", err=True)
    sets = [os.path.abspath(path.expanduser()) for path in asked.test_sets]
    if missing := [path for path in sets if not os.path.exists(path)]:
        raise InputError(f"--test-set: {missing[0]} does not exist; give a folder or a zip")
    new = before is None or planned(study, before, baseline, candidates, seeds, sets).runs != before.runs
    if new:
        check_test_sets(study, sets)
        _check_images(study, sets)
    confirmation = confirm(engine, study, baseline, candidates, seeds, sets)
    return confirmation, [trial.number for trial in candidates], new


def _check_images(study: Study, test_sets: Sequence[str]) -> None:
    if not isinstance(study.spec, ImageSpec) or not test_sets:
        return
    from hpo.vision.data.corrupted_sets import find_corrupted_sets
    from hpo.vision.data.images import load_images
    from hpo.vision.outcomes import TEST_SET_OPTION

    images = load_images(study.spec.data, study.spec.model.input_size, study.spec.split_seed)
    size = images.test.pixels.shape[1]
    for path in test_sets:
        for found in find_corrupted_sets(Path(path), images.classes, TEST_SET_OPTION):
            first = replace(found.listing, test=found.listing.test[:1])  # the others when they are scored
            replace(found, listing=first).decode(size)


def submit_only(engine: sa.Engine, study: Study, asked: Asked) -> None:
    """Adds it to the database, and says how workers are started."""
    confirmation, _, new = submit_confirmation(engine, study, asked)
    finished = count(engine, confirmation.study_id).finished
    outcome = "submitted" if new else "was submitted before; nothing changed"
    left = f"Start workers with: {launch_command(confirmation.name)}"
    done = "all are complete" if finished >= confirmation.budget else left
    click.echo(f"study {confirmation.name} {outcome}: {confirmation.budget} trainings. {done}", err=True)
