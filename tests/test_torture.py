"""A small part of ``make torture``: studies killed at random moments in a file and in a database, and failing disks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from postgres_server import server
from shoal.lanes.native._build import cache_folder, compiler

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name: str, *words: str) -> str:
    """What a program says; its libraries are built once for all tests."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SHOAL_CACHE": str(cache_folder())}
    command = [sys.executable, str(BENCHMARKS / name), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# The fourth study has two processes and goes over to compiled epochs; the fifth has one, and nothing of it hangs on the clock.
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize("words", [("--first", "3", "--kills", "1"), ("--first", "4", "--kills", "1", "--postgres")])
def test_killed_studies_end_as_those_that_were_not(words: tuple[str, ...]) -> None:
    if "--postgres" in words:
        server()  # skips where there is none
    last = run("torture.py", "--studies", "1", "--trials", "16", *words).splitlines()[-1]
    said = re.match(r"study \d: (\d+) kills and (\d+) of workers.* so far, 0 finished trials lost, 0 differences", last)
    assert said is not None and int(said[1]) + int(said[2]) >= 1, last


@pytest.mark.skipif(
    sys.platform != "linux" or compiler() is None, reason="puts a library of its own before the system's"
)
def test_a_power_cut_loses_nothing_that_was_acknowledged_and_a_full_disk_is_survived() -> None:
    first, second = run("disk_faults.py", "--cuts", "20", "--resumed", "1", "--full", "1", "--trials", "8").splitlines()
    assert first == "power cuts: 20, 1 of them resumed: 0 acknowledged epochs lost, 0 differences"
    assert second == "full disks: 1: 0 differences"
