"""Copies a study's trials into MLflow or TensorBoard: parameters, and score and accuracies after each step."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hpo.errors import InputError, short
from hpo.trial_result import TrialResult

STUDY_TAG, TRIAL_TAG = "hpo.study", "hpo.trial"
MILLISECONDS = 1000


def to_mlflow(uri: str, study: str, trials: Sequence[TrialResult], best: int, model: Path) -> int:
    """A run for each trial, in an experiment of the study's name, and the exported folder with the best one's. How many
    runs were added: trials that are there already are left as they are. Raises InputError without MLflow, or if it
    cannot be reached.
    """
    for name, value in {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}.items():
        os.environ.setdefault(name, value)  # by themselves, minutes
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise InputError("--mlflow needs another package: pip install mlflow-skinny") from None
    file = uri.removeprefix("sqlite:///")
    if file != uri and not Path(file).parent.is_dir():  # MLflow would make it
        raise InputError(f"--mlflow: {uri}: the file must be in a folder that exists")
    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(study)
        where = experiment.experiment_id if experiment else client.create_experiment(study)
        known = {run.data.tags.get(TRIAL_TAG) for run in _runs(client, where)}
        added = [trial for trial in trials if str(trial.number) not in known and trial.started_at]
        for trial in added:
            started = _milliseconds(trial.started_at) or 0
            tags = {STUDY_TAG: study, TRIAL_TAG: str(trial.number), "baseline": str(trial.baseline).lower()}
            run = client.create_run(where, started, tags, f"trial {trial.number}")
            metrics = [
                Metric(name, value, started, step) for step, name, value in _measured(trial) if math.isfinite(value)
            ]
            params = [Param(name, str(value)) for name, value in trial.params.items()]
            client.log_batch(run.info.run_id, metrics, params, [RunTag("hpo.state", trial.state)])
            if trial.number == best:
                client.log_artifacts(run.info.run_id, str(model), "model")
            status = "FINISHED" if trial.state in ("complete", "pruned") else "FAILED"
            client.set_terminated(run.info.run_id, status, _milliseconds(trial.finished_at))
    except (MlflowException, OSError) as error:
        reason = short(str(error).strip().splitlines()[0])
        raise InputError(f"--mlflow: {uri} refuses: {reason}") from None
    return len(added)


def _runs(client: Any, experiment: str) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _milliseconds(time: Any) -> int | None:
    from datetime import UTC

    return None if time is None else int(time.replace(tzinfo=UTC).timestamp() * MILLISECONDS)


def _measured(trial: TrialResult) -> Iterator[tuple[int, str, float]]:
    """(step, name, value) of score and parts."""
    for report in trial.reports:
        step = int(report["step"])
        yield from ((step, name, value) for name, value in report.items() if name != "step" and value is not None)


def to_tensorboard(folder: Path, trials: Sequence[TrialResult]) -> int:
    """A folder for each trial in a new one. How many. Raises InputError without TensorBoard, and OSError."""
    try:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams
    except ImportError:
        raise InputError("--tensorboard needs another package: pip install tensorboard") from None
    started = [trial for trial in trials if trial.reports]
    for trial in started:
        with SummaryWriter(str(folder / f"trial-{trial.number}")) as writer:
            for step, name, value in _measured(trial):
                writer.add_scalar(name, value, step)
            final = {f"final/{name}": value for name, value in ({"score": trial.score} | dict(trial.parts)).items()}
            known = {name: value for name, value in final.items() if value is not None}
            for summary in hparams(dict(trial.params), known):
                writer.file_writer.add_summary(summary)
            for name, value in known.items():
                writer.add_scalar(name, value, len(trial.reports))
    return len(started)
