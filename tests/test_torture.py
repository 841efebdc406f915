"""A small part of ``make torture``: a study in one process and one in two, killed at random moments and compared bit for bit."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[1] / "benchmarks" / "torture.py"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
def test_killed_studies_end_as_those_that_were_not() -> None:
    words = [sys.executable, str(TORTURE), "--studies", "2", "--kills", "2", "--trials", "12"]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    kills = re.match(r"study 1: (\d+) kills and (\d+) of workers so far, 0 finished trials lost, 0 differences", last)
    assert kills is not None and int(kills[1]) + int(kills[2]) == 4, last
