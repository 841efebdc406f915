"""Microseconds per lane-step once everything runs: Shoal against the best plain loop, and against the machine's peak.

A lane-step is one batch of 32 through the MLP 64-h-h-10, forward, backward and Adam. The plain loop is what a careful
user writes: the data as tensors, indexed; fused or foreach Adam, whichever is faster; one-thread processes in parallel.

Shoal runs through its public interface, twice with different numbers of epochs: the difference of the walls holds
only steady state, evaluation on 256 samples after each epoch and the study's bookkeeping included.
"""

from __future__ import annotations

import argparse
import functools
import math
import multiprocessing as mp
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import optuna
import torch
from torch import Tensor, nn

import shoal
from cores import cores_at_work

Define = Callable[[optuna.Trial], shoal.Recipe]
Splits = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]

BATCH = 32
N_TRAIN = 4096
N_VALID = 256
FEATURES = 64
CLASSES = 10
STEPS_PER_EPOCH = N_TRAIN // BATCH


def make_model(h: int) -> nn.Sequential:
    """The MLP that both sides train."""
    return nn.Sequential(nn.Linear(FEATURES, h), nn.ReLU(), nn.Linear(h, h), nn.ReLU(), nn.Linear(h, CLASSES))


def make_data(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples (n, features) with labels (n,) that a linear map gives, so that training does not diverge."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    rule = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(0))
    return x, (x @ rule).argmax(1)


def flops_per_step(h: int) -> int:
    """Multiplications and additions of one lane-step: forward, and twice that backward (no gradient of the input)."""
    hidden = h * h + h * CLASSES
    return 2 * BATCH * (2 * FEATURES * h + 3 * hidden)


def _train_plain(plain: Plain, n_steps: int, barrier: Barrier, walls: SimpleQueue[tuple[float, float]]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = plain.data()
    model = plain.model()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=1e-3, fused=plain.adam == "fused", foreach=plain.adam == "foreach"
    )
    forward = torch.compile(model, dynamic=False) if plain.compiled else model

    def train(n: int) -> None:
        done = 0
        while done < n:
            for index in torch.randperm(len(y)).view(-1, BATCH)[: n - done]:
                loss = nn.functional.cross_entropy(forward(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1

    train(min(200, n_steps))
    barrier.wait(timeout=300)  # a neighbour that failed must not leave this one waiting for ever
    start = time.monotonic()
    train(n_steps)
    walls.put((start, time.monotonic()))


@dataclass(frozen=True, slots=True)
class Plain:
    """A plain loop: what makes its model and its data, its Adam, and whether ``torch.compile`` has a go at the model."""

    model: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    adam: str = "fused"
    compiled: bool = False


def plain_us(plain: Plain, n_processes: int, n_steps: int) -> float:
    """Microseconds per step of ``n_processes`` plain loops side by side: the wall over the steps of all of them."""
    context = mp.get_context("spawn")
    barrier, walls = context.Barrier(n_processes), context.SimpleQueue()
    arguments = (plain, n_steps, barrier, walls)
    processes = [context.Process(target=_train_plain, args=arguments) for _ in range(n_processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"a plain loop failed ({plain}); its traceback is above")
    spans: list[tuple[float, float]] = [walls.get() for _ in processes]
    # Monotonic time is one clock for all processes: from the first start to the last end.
    wall_s = max(end for _, end in spans) - min(start for start, _ in spans)
    return 1e6 * wall_s / (n_steps * n_processes)


def make_define(h: int) -> Define:
    """A search over the learning rate alone, so that all trials share one fleet."""

    def define(trial: optuna.Trial) -> shoal.Recipe:
        model = make_model(h)
        optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True))
        return shoal.Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=BATCH)

    return define


def shoal_wall_s(define: Define, n_trials: int, max_epochs: int, splits: Splits) -> float:
    """Seconds of one whole ``shoal.tune`` with all its trials waiting from the start."""
    start = time.perf_counter()
    shoal.tune(
        define,
        train=splits[0],
        valid=splits[1],
        metric="accuracy",
        direction="maximize",
        n_trials=n_trials,
        max_epochs=max_epochs,
        # Learns nothing, so nothing keeps the engine from running as wide as it likes.
        sampler=optuna.samplers.RandomSampler(seed=0),
        scheduler="none",
        storage=None,
        progress=False,
        seed=0,
    )
    return time.perf_counter() - start


def shoal_us(define: Define, n_trials: int, seconds: tuple[float, float], splits: Splits | None = None) -> float:
    """Microseconds per lane-step with ``n_trials`` trials in the study, start-up taken out.

    The walls of two studies are compared that train for about so many seconds; the shorter is long enough to run compiled.
    """
    splits = splits or (make_data(N_TRAIN, seed=1), make_data(N_VALID, seed=2))

    def wall_s(max_epochs: int) -> float:
        return shoal_wall_s(define, n_trials, max_epochs, splits)

    guess_s = (wall_s(12) - wall_s(2)) / 10  # an epoch, before it is compiled
    few, many = (math.ceil(s / max(guess_s, 1e-3)) for s in seconds)
    few, many = max(3, few), max(few + 3, 6, many)  # apart by more than one epoch, which noise could hide
    wall_s(few)  # whatever a machine caches is cached for all runs that count
    pairs = [(wall_s(few), wall_s(many)) for _ in range(3)]
    few_s, many_s = min(short for short, _ in pairs), min(long for _, long in pairs)
    if many_s <= few_s:
        raise RuntimeError(f"{many} epochs took no longer than {few}: the machine is too busy to measure.")
    return 1e6 * (many_s - few_s) / ((many - few) * n_trials * len(splits[0][1]) // BATCH)


def bmm_peak_gflops(repeats: int = 20) -> float:
    """The best GFLOP/s that ``torch.bmm`` reaches over shapes like those of a fleet, best of ``repeats`` each."""
    best = 0.0
    shapes = [(32, 32, 64, 64), (128, 32, 64, 64), (8, 32, 256, 256), (32, 256, 256, 256), (4, 512, 512, 512)]
    for lanes, m, k, n in shapes:
        a, b = torch.randn(lanes, m, k), torch.randn(lanes, k, n)
        out = torch.empty(lanes, m, n)
        for _ in range(repeats):
            start = time.perf_counter()
            for _ in range(10):
                torch.bmm(a, b, out=out)
            best = max(best, 10 * 2e-9 * lanes * m * k * n / (time.perf_counter() - start))
    return best


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h", type=int, nargs="+", default=[32, 64, 256], help="hidden sizes")
    parser.add_argument("--trials", type=int, nargs="+", default=[8, 32, 128], help="trials in Shoal's study")
    parser.add_argument("--seconds", type=float, nargs=2, default=[4, 8], help="for about how long the two runs train")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1), help="plain loops side by side")
    parser.add_argument("--steps", type=int, default=5000, help="steps of each plain loop")
    args = parser.parse_args()
    few, many = args.seconds
    if not 0 < few < many:
        parser.error(f"--seconds needs two rising numbers; got {few} {many}")
    torch.set_num_threads(args.processes)
    print(f"{args.processes} busy processes do {cores_at_work(args.processes):.1f} times the work of one")
    print(
        f"torch {torch.__version__}, {args.processes} cores; bmm peaks at {bmm_peak_gflops():.0f} GFLOP/s\n", flush=True
    )
    heads = ["us per lane-step", "plain loop", *(f"Shoal, {n} trials" for n in args.trials), "best ratio", "GFLOP/s"]
    print(f"| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for h in args.h:
        model, data = functools.partial(make_model, h), functools.partial(make_data, N_TRAIN, 1)
        loops = [Plain(model, data, adam) for adam in ("fused", "foreach")]
        plain = min(plain_us(loop, args.processes, args.steps) for loop in loops)
        ours = [shoal_us(make_define(h), n_trials, (few, many)) for n_trials in args.trials]
        gflops = 1e-3 * flops_per_step(h) / min(ours)
        cells = [f"h={h}", *(f"{us:.1f}" for us in (plain, *ours)), f"{plain / min(ours):.1f}", f"{gflops:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
