"""Hosts that are cut off: benchmarks/hosts.py in its short form, with network namespaces for hosts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def why_not() -> str:
    """Why network namespaces cannot be made here; "" if they can."""
    if shutil.which("ip") is None:
        return "no ip (apt install iproute2)"
    tried = subprocess.run(["ip", "netns", "add", f"hpo-{os.getpid()}"], capture_output=True, text=True)
    if tried.returncode == 0:
        subprocess.run(["ip", "netns", "del", f"hpo-{os.getpid()}"], check=True)
    return tried.stderr.strip()


def test_a_worker_s_host_and_the_database_s_are_cut_off_and_come_back() -> None:
    if reason := why_not():
        pytest.skip(f"network namespaces are not allowed here: {reason}")
    command = [sys.executable, str(ROOT / "benchmarks" / "hosts.py"), "--short"]
    ran = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
