"""Workers' logs as JSON lines."""

import json
import os
from datetime import datetime
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.commands import Hpo
from support.waiting import write_waiting_study

from hpo.log import text_of


def test_every_line_is_json_that_says_what_it_is_about(
    tmp_path: Path, hpo: Hpo, hpo_here: Hpo, waiting: dict[str, str]
) -> None:
    study = write_waiting_study(tmp_path, budget=2, steps=2)
    ran = hpo("run", study, HPO_LOG="json", **waiting)
    assert ran.returncode == 0, ran.stderr
    (log,) = (tmp_path / "hpo-logs" / "study").iterdir()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {line["level"] for line in lines} == {"info"}
    assert all(datetime.fromisoformat(line["time"]).tzinfo for line in lines)
    ended = [line for line in lines if "complete" in line["text"]]
    assert sorted((line["study"], line["trial"]) for line in ended) == [("study", 0), ("study", 1)]
    assert {line["worker"].partition(":")[0] for line in ended} == {os.uname().nodename}

    refused = hpo("worker", "no such study", HPO_LOG="json")
    assert refused.returncode == 2
    (line,) = refused.stdout.splitlines()
    assert json.loads(line)["level"] == "error"
    assert "no such study" in json.loads(line)["text"]

    (tmp_path / "study.toml").write_text((tmp_path / "study.toml").read_text().replace('"study"', '"other"'))
    assert hpo_here("submit", "study.toml", **waiting).returncode == 0
    launched = hpo("launch", "other", HPO_LOG="json")  # without the package: the worker's reason is told in a line
    assert launched.returncode == 2
    assert launched.stderr.splitlines()[-1].startswith("hpo: no objective 'waiting'; installed here are: ")


@given(st.text())
def test_a_line_of_any_kind_has_a_text(line: str) -> None:
    assert text_of(json.dumps({"text": line, "level": "info"})) == line
    assert isinstance(text_of(line), str)
