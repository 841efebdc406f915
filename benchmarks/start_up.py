"""How long until something trains: the first tick of a study, and its compiled epochs, cold and warm, in new processes.

    python benchmarks/start_up.py --repeats 3

*First tick* is a whole study of eight trials, one tick each, after all imports: asking, tracing, checking, training, scoring. The
import of torch's compiler is triggered by the first optimizer of a process, in any PyTorch program. *Compiled* is what building the
epoch of the digits example's two signatures takes, with an empty cache and with a full one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

_FIRST_TICK = """
import time
import torch, optuna, shoal
from torch import nn
shoal.Recipe, shoal.tune
began = time.perf_counter()
torch.optim.Adam([torch.zeros(1, requires_grad=True)])
compiler = time.perf_counter() - began

def define(trial):
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True))
    return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=32)

x = torch.randn(32, 64)
y = x[:, :10].argmax(1)
took = []
for _ in range(2):
    began = time.perf_counter()
    shoal.tune(define, train=(x, y), valid=(x, y), n_trials=8, max_epochs=1, storage=None, progress=False, seed=0)
    took.append(time.perf_counter() - began)
print(compiler, *took)
"""

_COMPILED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from digits import define
import torch, shoal
from shoal.lanes.compiled import Compilation
x = torch.randn(256, 64)
y = x[:, :10].argmax(1)
waited = []
start, wait = Compilation.start, Compilation.wait

def timed(self):
    began = time.perf_counter()
    start(self)
    found = wait(self)
    waited.append(time.perf_counter() - began)
    return found

Compilation.start = lambda self: timed(self) and None
shoal.tune(define, train=(x, y), valid=(x, y), n_trials=16, max_epochs=100, scheduler="none", storage=None, progress=False, seed=0)
print(max(waited), len(waited))
"""


def child(program: str, *arguments: str, cache: Path | None = None) -> list[float]:
    """The numbers that a new process prints, with kernels and libraries cached where said."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({"XDG_CACHE_HOME": str(cache)} if cache else {})
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [float(x) for x in done.stdout.split()]


def main() -> None:
    """Measure and print medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    examples = str(Path(__file__).resolve().parent.parent / "examples")
    ticks = [child(_FIRST_TICK) for _ in range(args.repeats + 1)][1:]
    compiler_s, first_s, second_s = (statistics.median(column) for column in zip(*ticks, strict=True))
    cold, warm = [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(child(_COMPILED, examples, cache=Path(folder))[0])
            warm.append(child(_COMPILED, examples, cache=Path(folder))[0])
    print("| | s, median |\n| --- | --- |")
    print(f"| import of torch's compiler, by the first optimizer | {compiler_s:.2f} |")
    print(f"| a study of one tick, the first of its process | {first_s:.2f} |")
    print(f"| the same again | {second_s:.2f} |")
    print(f"| compiled epochs, cold | {statistics.median(cold):.2f} |")
    print(f"| compiled epochs, warm | {statistics.median(warm):.2f} |")


if __name__ == "__main__":
    main()
