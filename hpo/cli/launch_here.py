"""`hpo launch`: workers for studies that are in the database, on this machine or on a Ray cluster."""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import click
import sqlalchemy as sa

from hpo.cli import progress
from hpo.cli.launching import counted_workers, launch_for, logs_folder, report_progress, started, workers_for
from hpo.errors import InputError, StudyError
from hpo.search.sql.conditions import StudyKey
from hpo.search.sql.network_drive import check_network_drive
from hpo.search.sql.open_studies import Finished, open_studies
from hpo.search.sql.outages import outlast
from hpo.search.sql.status import read_split
from hpo.search.sql.storage import open_engine
from hpo.search.sql.studies import Study, find_studies
from hpo.search.sql.url import parse_url
from hpo.stopping import stop_on_signals
from hpo.study_file.images import WEIGHTS_WITHOUT_FILE, ImageSpec
from hpo.workers.launcher import Cluster
from hpo.workers.machine import check_workers

TEND_SECS = 0.5
LOOK_SECS = 2.0


def launch(
    names: Sequence[str], storage: str, workers: int | None, forever: bool, cluster: Cluster | None = None
) -> None:
    """Keeps this many workers running until the budgets of these studies (all, if none is named) are used up.

    workers: None for as many as there is room for; forever: then waits for new studies; cluster: where to run them, if
    not here.
    """
    if cluster is None:
        check_workers(workers)
    url = parse_url(storage)
    engine = open_engine(url)
    studies = find_studies(engine, names, partial(click.echo, err=True))
    for study in studies if names else ():
        study.refuse()
    check_network_drive(engine, partial(click.echo, err=True))
    if cluster is None:
        splits = [(study.spec, read_split(engine, study)) for study in (studies if names else ())]
        workers = workers_for([(spec, split.train if split else None) for spec, split in splits], workers)
        logs = logs_folder() / studies[0].spec.folder_name if len(names) == 1 else logs_folder()
        where = f"logs in {logs}/"
    else:
        cluster = _with_files(cluster, studies)
        logs, where = logs_folder(), "logs in Ray: `ray logs cluster`, or its dashboard"
    counted = "workers" if workers is None else counted_workers(workers)
    click.echo(f"{counted} for {', '.join(names) or 'all studies'}, {where}", err=True)
    stop_on_signals()
    try:
        with started(launch_for(names, storage, workers, logs, forever, cluster)) as launcher:
            if len(names) == 1 and not forever:
                progress.follow(engine, studies[0], launcher.tend)
            else:
                _follow_all(engine, names, launcher.tend, where)
    except InputError:  # from workers that did not find their study
        if deleted := _deleted(engine, studies if names else ()):
            verb = "was" if len(deleted) == 1 else "were"
            raise StudyError(f"{', '.join(deleted)} {verb} deleted while workers were running") from None
        raise
    for study in find_studies(engine, names):
        report_progress(engine, study)


def _with_files(cluster: Cluster, studies: Sequence[Study]) -> Cluster:
    """With what of this machine the workers of these studies read: images, weights, sets of test images."""
    from hpo.vision.data.disk import data_root
    from hpo.vision.data.download import TINY_IMAGENET_ZIP

    files: list[str] = []
    roots: list[str] = []
    for study in studies:
        if isinstance(spec := study.spec, ImageSpec):
            roots.append(spec.data.root)
            if spec.data.archive is not None:
                files.append(spec.data.archive)
            elif spec.data.name == "tiny-imagenet":
                files.append(str(data_root(spec.data) / TINY_IMAGENET_ZIP))
            if spec.model.weights not in WEIGHTS_WITHOUT_FILE:
                files.append(spec.model.weights)
        if study.confirmation is not None:
            files += study.confirmation.test_sets
    here = [file for file in dict.fromkeys(files) if os.path.exists(file)]
    if "HPO_ARTIFACTS" not in os.environ:
        click.echo(
            f"HPO_ARTIFACTS is not set: checkpoints and weights stay on the node that wrote them, unless all are "
            f"{socket.gethostname()}; set it to a bucket or to a folder that all nodes see",
            err=True,
        )
    root = os.environ.get("HPO_DATA_ROOT") or next(iter(roots), cluster.data_root)
    return replace(cluster, files=here, data_root=root)


def _follow_all(engine: sa.Engine, names: Sequence[str], working: Callable[[], bool], where: str) -> None:
    """Reports the trials of all studies as they end, and points to the logs if none runs, until not `working()`."""
    say = partial(click.echo, err=True)
    finished = Finished()
    followed: dict[StudyKey, progress.EndedTrials] = {}
    looked_at, reported_idle, ran_at = 0.0, False, time.monotonic()
    while True:
        still_working = working()  # asked before reading the database, so that the last trials are not missed
        if time.monotonic() - looked_at > LOOK_SECS or not still_working:
            looked_at = time.monotonic()
            found = outlast(partial(open_studies, engine, names, finished), say)
            still_open = [study for study, _ in found]
            if not found or any(counts.running for _, counts in found):
                ran_at, reported_idle = time.monotonic(), False
            elif time.monotonic() - ran_at > progress.QUIET_SECS and not reported_idle:
                reported_idle = True
                open_names = ", ".join(study.name for study in still_open)
                say(f"no trial of {open_names} is running; the reason is in the {where}")
            for study in still_open:
                if study.key not in followed:
                    followed[study.key] = progress.EndedTrials(engine, study, say, f"{study.name}: ")
            for trials in followed.values():
                trials.report_new()
            ended = [followed.pop(key).study for key in set(followed).difference(study.key for study in still_open)]
            for name in _deleted(engine, ended):
                say(f"study {name} was deleted while workers were running")
        if not still_working:
            return
        time.sleep(TEND_SECS)


def _deleted(engine: sa.Engine, studies: Sequence[Study]) -> list[str]:
    """The names of those studies that are no longer in the database."""
    if not studies:
        return []
    present = {study.key for study in outlast(partial(find_studies, engine), partial(click.echo, err=True))}
    return [study.name for study in studies if study.key not in present]
