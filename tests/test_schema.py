"""`hpo schema`: what it allows is what a study file may say, as far as one key goes."""

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import tomli_w
from click.testing import CliRunner

from hpo.cli.groups import GROUPS
from hpo.cli.main import cli
from hpo.errors import SpecError
from hpo.study_file.reading import load_spec
from hpo.study_file.schema import study_schema

ROOT = Path(__file__).parent.parent
STUDIES = sorted((ROOT / "studies").glob("*.toml"))
VALIDATOR = jsonschema.Draft202012Validator(study_schema())


def test_it_is_a_schema_and_what_docs_has_is_the_same() -> None:
    jsonschema.Draft202012Validator.check_schema(study_schema())
    printed = json.loads(CliRunner().invoke(cli, ["schema"]).output)
    assert printed == study_schema()
    kept = json.loads((ROOT / "docs" / "study.schema.json").read_text(encoding="utf-8"))
    assert kept == printed, "stale: hpo schema > docs/study.schema.json"


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.stem)
def test_our_studies_are_valid_and_name_it(study: Path) -> None:
    VALIDATOR.validate(tomllib.loads(study.read_text(encoding="utf-8")))
    named = study.read_text(encoding="utf-8").splitlines()[0].removeprefix("#:schema ")
    assert (study.parent / named).resolve() == ROOT / "docs" / "study.schema.json"


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (["training", "epoch"], 3),
        (["training", "epochs"], 0),
        (["budget"], "many"),
        (["search", "momentum"], 0.9),
        (["search", "weight_decay"], {"low": 1e-5, "hihg": 1e-2}),
        (["objective", "perturbations", 0, "name"], "frosted-glass"),
        (["objective", "perturbations", 0, "sigma"], 2.0),
        (["objective", "perturbations", 0, "fraction"], 0.1),
    ],
)
def test_what_hpo_refuses_the_schema_refuses(tmp_path: Path, keys: list[str | int], value: object) -> None:
    document: Any = tomllib.loads((ROOT / "studies" / "quickstart.toml").read_text(encoding="utf-8"))
    place = document
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    assert not VALIDATOR.is_valid(document)
    (tmp_path / "study.toml").write_text(tomli_w.dumps(document), encoding="utf-8")
    with pytest.raises(SpecError, match=str(keys[0])):
        load_spec(tmp_path / "study.toml")


def test_every_command_is_in_one_group_of_the_help() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(cli.commands)
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert all(f"{group}:" in shown for group in GROUPS)
