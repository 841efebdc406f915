"""Set before torch is imported: one thread per process, for tests run side by side, and threads that sleep when they wait.

Two processes of two threads each on two cores spend most of their time on waiting in turns, and OpenMP waits busily.
"""

from __future__ import annotations

import os

for _name, _value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "passive")):
    os.environ.setdefault(_name, _value)
