"""What docker-compose.yml and the Dockerfile promise; benchmarks/stack_story.py starts the services' commands."""

import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack_story import interpolated, refuses_the_examples_passwords

PROJECT = Path(__file__).parent.parent
TEXT = (PROJECT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
SECRETS = ("POSTGRES_PASSWORD", "POSTGRES_HPO_PASSWORD", "POSTGRES_READER_PASSWORD", "HPO_DASHBOARD_PASSWORD")


def program(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def test_the_compose_file_follows_the_specification() -> None:
    command = [
        program("check-jsonschema"),
        "--builtin-schema",
        "vendor.compose-spec",
        str(PROJECT / "docker-compose.yml"),
    ]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_dockerfile_passes_hadolint() -> None:
    checked = subprocess.run([program("hadolint"), str(PROJECT / "Dockerfile")], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("index", ["", "https://host/whl/cpu"])
def test_the_image_takes_packages_from_pips_own_index_and_one_more_if_it_is_given(tmp_path: Path, index: str) -> None:
    dockerfile = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    assert "://" not in dockerfile
    assert 'ARG TORCH_INDEX=""\n' in dockerfile
    (command,) = re.findall(r"^RUN (pip install (?:.*\\\n)*.*\btorch torchvision)$", dockerfile, re.MULTILINE)
    (tmp_path / "pip").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "TORCH_INDEX": index}
    ran = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True)
    given = ["--extra-index-url", index] if index else []
    assert ran.stdout.split("\n")[:-1] == [
        *("install", "--no-cache-dir", *given, "--constraint", "constraints.txt", "torch", "torchvision")
    ]


def test_no_port_is_published_beyond_loopback() -> None:
    published = [port for service in SERVICES.values() for port in interpolated(service.get("ports", []), {})]
    assert len(published) == 2
    assert all(port.startswith("127.0.0.1:") for port in published)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_ordered_bounded_and_without_secrets(name: str) -> None:
    service = SERVICES[name]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service.get("restart") in ("unless-stopped", "no")
    if name != "postgres":
        assert service["cap_drop"] == ["ALL"]
        conditions = {needed["condition"] for needed in service["depends_on"].values()}
        assert conditions <= {"service_healthy", "service_completed_successfully"}
        assert "container_name" not in service, "it could not be scaled"
        assert re.fullmatch(r"postgresql://\w+@postgres/hpo", service["environment"]["HPO_STORAGE"])


def test_every_secret_comes_from_outside_and_must_be_given() -> None:
    for secret in SECRETS:
        uses = re.findall(rf"\$\{{{secret}[^}}]*\}}", TEXT)
        assert uses
        assert all(use.startswith(f"${{{secret}:?") for use in uses)
    refuses_the_examples_passwords()


def test_images_are_pinned_and_the_database_is_healthy_before_anything_starts() -> None:
    dockerfile = (PROJECT / "Dockerfile").read_text(encoding="utf-8")
    images = [SERVICES["postgres"]["image"], *re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)]
    assert all(re.search(r":\d+\.\d+", image) for image in images)
    assert "pg_isready" in SERVICES["postgres"]["healthcheck"]["test"]
    assert SERVICES["init"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert re.search(r"^USER \d+$", dockerfile, re.MULTILINE)


def test_make_env_writes_passwords_of_ones_own(tmp_path: Path) -> None:
    for name in ("Makefile", ".env.example"):
        (tmp_path / name).write_bytes((PROJECT / name).read_bytes())
    written = []
    for _ in range(2):
        subprocess.run(["make", ".env", f"PYTHON={sys.executable}"], cwd=tmp_path, check=True, capture_output=True)
        file = tmp_path / ".env"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
        written.append(dict(line.split("=", 1) for line in lines))
        assert "change-me" not in written[-1].values()
    assert written[0] == written[1], "an .env that is there stays"
    assert len({written[0][secret] for secret in SECRETS}) == 4
    example = {line.split("=")[0] for line in (PROJECT / ".env.example").read_text().splitlines() if "=" in line}
    assert example == written[0].keys()
    ignored = (PROJECT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "/.env" in ignored
