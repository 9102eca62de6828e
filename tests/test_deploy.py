"""What deploy/ promises: manifests that Kubernetes takes, and a Slurm job that is queued again when it is stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import sqlalchemy as sa
import yaml
from support.commands import Hpo
from support.search import open_fresh
from support.waiting import write_waiting_study

from hpo.search.sql.counts import count
from hpo.search.sql.studies import find_studies

DEPLOY = Path(__file__).parent.parent / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
STOPPED = 75


def documents() -> list[dict[str, Any]]:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    return [each for name in listed for each in yaml.safe_load_all((KUBERNETES / name).read_text())]


def container(kind: str) -> dict[str, Any]:
    (found,) = [each for each in documents() if each["kind"] == kind]
    (only,) = found["spec"]["template"]["spec"]["containers"]
    return dict(only)


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_kubernetes_takes_the_manifests(version: str) -> None:
    for document in documents():
        kubernetes_validate.validate(document, version, strict=True)
    kinds = [document["kind"] for document in documents()]
    assert kinds == ["Job", "Deployment", "Service"]
    example = (KUBERNETES / "hpo.env.example").read_text()
    assert {line.partition("=")[0] for line in example.splitlines()} >= {"HPO_STORAGE", "HPO_DASHBOARD_PASSWORD"}


def started(arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    given = os.environ | {"HPO_STORAGE": f"sqlite:///{folder}/hpo.db", "HPO_ARTIFACTS": str(folder)} | environment
    return subprocess.Popen(
        arguments, cwd=folder, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stop_in_a_trial(process: subprocess.Popen[str], engine: sa.Engine) -> str:
    """Sends SIGTERM when a trial runs; what was printed."""
    (study,) = find_studies(engine)
    deadline = time.monotonic() + 60
    while not count(engine, study.study_id).running:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=20)[0]


def test_a_worker_of_the_job_is_started_again_when_it_is_stopped_and_not_when_it_is_done(
    hpo_here: Hpo, tmp_path: Path, waiting: dict[str, str]
) -> None:
    worker = container("Job")
    environment = {each["name"]: each["value"] for each in worker["env"]} | waiting
    hpo_here("submit", write_waiting_study(tmp_path, budget=2, steps=5), **waiting)
    engine = open_fresh(f"sqlite:///{tmp_path}/hpo.db")
    command = [sys.executable, "-m", "hpo", *worker["args"]]
    process = started(command, tmp_path, environment)
    stop_in_a_trial(process, engine)
    assert process.returncode == STOPPED
    again = started(command, tmp_path, environment)
    assert again.communicate(timeout=60)[0].count("complete") == 2
    assert again.returncode == 0


def test_the_dashboards_probes_are_answered(hpo_here: Hpo) -> None:
    from hpo.cli.main import cli
    from hpo.web.guard import OPEN

    dashboard = container("Deployment")
    name, *options = dashboard["args"]
    assert cli.commands[name].make_context(name, list(options)).params["host"] == "0.0.0.0"  # noqa: S104
    probes = {dashboard[kind]["httpGet"]["path"] for kind in ("readinessProbe", "livenessProbe")}
    assert probes == set(OPEN)


def test_a_slurm_job_is_queued_again_when_it_is_stopped_and_not_when_it_is_done(
    hpo_here: Hpo, tmp_path: Path, waiting: dict[str, str]
) -> None:
    """There is no Slurm here: `scontrol` notes what it is told."""
    hpo_here("submit", write_waiting_study(tmp_path, budget=2, steps=5), **waiting)
    engine = open_fresh(f"sqlite:///{tmp_path}/hpo.db")
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/scontrol.txt\n')
    (programs / "hpo").write_text(f'#!/bin/sh\nexec {sys.executable} -m hpo "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "1234", "USER": "me", **waiting}
    command = ["bash", str(DEPLOY / "slurm.sbatch"), "study"]
    job = started(command, tmp_path, environment)
    said = stop_in_a_trial(job, engine)
    assert job.returncode == STOPPED, said
    assert "stopped; its trial, if any, was released" in said
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 1234\n"
    again = started(command, tmp_path, environment)
    assert again.communicate(timeout=60)[0].count("complete") == 2
    assert again.returncode == 0
    assert (tmp_path / "scontrol.txt").read_text() == "requeue 1234\n"
    lacking = started(command, tmp_path, environment | {"HPO_STORAGE": ""})
    assert "HPO_STORAGE: set it to postgresql://" in lacking.communicate(timeout=20)[0]
    assert lacking.returncode != 0
