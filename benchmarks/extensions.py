"""What extensions cost and what they gain: CPU time of training with and without, and the share of poor starts that end well.

``cost``: the same 32 trials of an MLP 64-64-64-10 in one process, with few epochs and with many; the difference of the CPU times is
steady state, evaluation included. ``ticks``: the same of one fleet's compiled epochs, the shortest of several, which holds on a
busy machine too. ``starts``: scikit-learn's digits or Fashion-MNIST, learning rates from 1e-5 to 1, with each way of moving them; a
start ends well if its accuracy is within 0.01 of the best of its optimizer. ``batch``: samples, updates and CPU time until the mean
accuracy over seeds reaches a target, with fixed batch sizes and with one that moves. ``shapes``: accuracy with learned activations.

Fashion-MNIST comes from Debian's package dataset-fashion-mnist, or any folder with its four archives: ``--folder``.
"""

from __future__ import annotations

import argparse
import gzip
import math
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import shoal
from shoal.data import Datasets, Split
from shoal.extend import Activation, BatchSize, Extension, LearningRate
from shoal.lanes import native
from shoal.lanes.compiled import Compilation, Variant
from shoal.lanes.fleet import Fleet, Work, example_of
from shoal.lanes.step import Layout, Program
from shoal.records import TrialSpec
from shoal.replay import replay
from shoal.scores import wilson
from shoal.signature import Signer, lane_trial

Parameters = Any
BASE = "adam"

# name -> (optimizer, extensions): what training is compared with is ``BASE``.
COSTS: dict[str, tuple[Callable[[Parameters], torch.optim.Optimizer], Sequence[Extension]]] = {
    BASE: (lambda p: torch.optim.Adam(p, lr=1e-3), []),
    "adam, learning rate, additive": (
        lambda p: torch.optim.Adam(p, lr=1e-3),
        [LearningRate(rule="additive", step=1e-6)],
    ),
    "adam, learning rate, multiplicative": (lambda p: torch.optim.Adam(p, lr=1e-3), [LearningRate(step=0.02)]),
    "adam, batch size": (lambda p: torch.optim.Adam(p, lr=1e-3), [BatchSize(bounds=(32, 33))]),
    "adam, prelu": (lambda p: torch.optim.Adam(p, lr=1e-3), [Activation(shape="prelu")]),
    "adam, swish": (lambda p: torch.optim.Adam(p, lr=1e-3), [Activation(shape="swish")]),
    "adam, bias": (lambda p: torch.optim.Adam(p, lr=1e-3), [Activation(shape="bias")]),
    "adam, mixture": (lambda p: torch.optim.Adam(p, lr=1e-3), [Activation(shape="mixture")]),
    "AdamWScheduleFree": (lambda p: shoal.optim.AdamWScheduleFree(p), []),
    "Prodigy": (lambda p: shoal.optim.Prodigy(p), []),
    "DAdaptAdam": (lambda p: shoal.optim.DAdaptAdam(p), []),
}

OPTIMIZERS: dict[str, Callable[[Parameters, float], torch.optim.Optimizer]] = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr),
    "momentum": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "AdamWScheduleFree": lambda p, lr: shoal.optim.AdamWScheduleFree(p, lr=lr),
    "SGDScheduleFree": lambda p, lr: shoal.optim.SGDScheduleFree(p, lr=lr),
    "Prodigy": lambda p, lr: shoal.optim.Prodigy(p, d0=1e-6 * lr / 1e-3),
    "DAdaptAdam": lambda p, lr: shoal.optim.DAdaptAdam(p, d0=1e-6 * lr / 1e-3),
}
MOVES: dict[str, Callable[[str], Sequence[Extension]]] = {
    "fixed": lambda optimizer: [],
    "additive": lambda optimizer: [
        LearningRate(rule="additive", step=1e-6 if optimizer == "adam" else 1e-2, bounds=(0, 2))
    ],
    "multiplicative": lambda optimizer: [LearningRate(step=0.05, bounds=(0, 2))],
}
MOVABLE = ("sgd", "momentum", "adam")


def cpu_s() -> float:
    """CPU seconds of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def blobs(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples (n, 64) with the labels that a linear map gives."""
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
    rule = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    return x, (x @ rule).argmax(1)


def training_s(name: str, epochs: int, n_trials: int) -> float:
    """CPU seconds of one study in which every trial trains so many epochs."""
    make, extensions = COSTS[name]

    def define(trial: optuna.Trial) -> shoal.Recipe:
        trial.suggest_float("nothing", 0, 1)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        return shoal.Recipe(model, make(model.parameters()), nn.CrossEntropyLoss(), 32, extensions=extensions)

    before = cpu_s()
    shoal.tune(
        define,
        train=blobs(2048, 1),
        valid=blobs(256, 2),
        n_trials=n_trials,
        max_epochs=epochs,
        sampler="random",
        scheduler="none",
        progress=False,
    )
    return cpu_s() - before


def cost(args: argparse.Namespace) -> None:
    """Print the table of costs."""
    torch.set_num_threads(1)
    few, many = args.epochs
    training_s(BASE, 1, args.trials)  # whatever a process loads and builds is there for all that count
    per_step: dict[str, list[float]] = {name: [] for name in COSTS}
    for _ in range(args.repeats):
        for name in args.only or COSTS:
            spent = training_s(name, many, args.trials) - training_s(name, few, args.trials)
            per_step[name].append(1e6 * spent / ((many - few) * args.trials * 64))
    base = statistics.median(per_step[BASE])
    print("| | CPU us per lane-step | times |\n| --- | --- | --- |")
    for name, values in ((n, v) for n, v in per_step.items() if v):
        us = statistics.median(values)
        print(f"| {name} | {us:.1f} | {us / base:.2f} |", flush=True)


def compiled_fleet(name: str, width: int) -> Fleet:
    """A full fleet of one of ``COSTS``, with its compiled epoch."""
    make, extensions = COSTS[name]

    def define(trial: Any) -> shoal.Recipe:
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        return shoal.Recipe(model, make(model.parameters()), nn.CrossEntropyLoss(), 32, extensions=extensions)

    data = Datasets(Split(blobs(2048, 1)), Split(blobs(16, 2)), None, "")
    work, signer = Work(data, (), torch.device("cpu")), Signer(data.train.tensors)
    recipes = [replay(define, TrialSpec(i, i, {}, {}), 2048, data.train.form) for i in range(width + 2)]
    template, spare, *trained = recipes
    signature = signer.sign(template)
    layout, like = Layout.of(template), example_of(template, lambda: spare, work)
    fleet = Fleet(0, Program.prepare(template), layout, width, signature.quantum, signature.exact, work, like)
    kernels = native.kernels()
    if kernels is None:
        raise SystemExit("ticks needs a C++ compiler")
    fleet.kernels = kernels
    fleet.compiled = Compilation(fleet.program, data, fleet.quantum, Variant.of(fleet))
    fleet.compiled.start()
    fleet.compiled.wait()
    for i, recipe in enumerate(trained):
        signer.sign(recipe)
        fleet.admit(lane_trial(TrialSpec(i, i, {}, {}), recipe, data.train.tensors[-1]))
    fleet.arrange()
    return fleet


def ticks(args: argparse.Namespace) -> None:
    """Print the table of compiled ticks."""
    torch.set_num_threads(1)
    native.prepare()
    native.wait()
    fleets = {name: compiled_fleet(name, 16) for name in args.only or COSTS}
    best = dict.fromkeys(fleets, math.inf)
    for fleet in fleets.values():
        fleet.run_epoch()
    for _ in range(args.repeats):
        for name, fleet in fleets.items():
            before = time.process_time()
            fleet.run_epoch()
            best[name] = min(best[name], time.process_time() - before)
    print("| | CPU us per lane-tick | times |\n| --- | --- | --- |")
    for name, seconds in best.items():
        print(f"| {name} | {1e6 * seconds / 16 / 64:.1f} | {seconds / best[BASE]:.2f} |")


Pair = tuple[Tensor, Tensor]


def digits() -> tuple[Pair, Pair]:
    """scikit-learn's digits: 1,437 samples to train on, 360 to judge by."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    train, valid = order[:1437], order[1437:]
    return (x[train], y[train]), (x[valid], y[valid])


def fashion(folder: Path, n: int) -> tuple[Pair, Pair]:
    """Fashion-MNIST: ``n`` samples to train on, 2,000 others to judge by."""

    def read(name: str, header: int) -> Tensor:
        with gzip.open(folder / f"{name}.gz") as file:
            return torch.from_numpy(np.frombuffer(file.read(), dtype=np.uint8)[header:].copy())

    x = read("train-images-idx3-ubyte", 16).view(-1, 784).float() / 255
    y = read("train-labels-idx1-ubyte", 8).long()
    return (x[:n], y[:n]), (x[-2000:], y[-2000:])


def data_of(args: argparse.Namespace) -> tuple[Pair, Pair]:
    """Training and validation data."""
    return digits() if args.data == "digits" else fashion(args.folder, args.samples)


def starts(args: argparse.Namespace) -> None:
    """Print the table of starts."""
    train, valid = data_of(args)
    rates = [10.0**e for e in np.linspace(-5, 0, args.rates)]
    cases = [f"{o}, {m}" for o in OPTIMIZERS for m in (MOVES if o in MOVABLE else ["fixed"])]

    def define(trial: optuna.Trial) -> shoal.Recipe:
        optimizer, _, moves = trial.suggest_categorical("case", cases).partition(", ")
        lr = trial.suggest_categorical("lr", rates)
        trial.suggest_categorical("replica", list(range(args.replicas)))  # the trial's seed makes other weights
        model = nn.Sequential(nn.Linear(train[0].shape[1], 64), nn.ReLU(), nn.Linear(64, 10))
        made = OPTIMIZERS[optimizer](model.parameters(), lr)
        return shoal.Recipe(model, made, nn.CrossEntropyLoss(), 32, extensions=MOVES[moves](optimizer))

    study = shoal.tune(
        define,
        train=train,
        valid=valid,
        metric="accuracy",
        n_trials=len(cases) * len(rates) * args.replicas,
        max_epochs=args.max_epochs,
        sampler="grid",
        scheduler="none",
        progress=False,
    )
    found: dict[str, dict[float, list[float]]] = {c: {r: [] for r in rates} for c in cases}
    for t in study.record.trials:
        value = t.value if t.value is not None and t.state == "finished" else math.nan
        found[str(t.spec.params["case"])][float(t.spec.params["lr"] or 0)].append(value)
    print(
        "| optimizer | learning rate | starts within 0.01 of the best | share, 95 % interval | best | worst |\n|"
        + " --- |" * 6
    )
    for case in cases:
        optimizer, _, moves = case.partition(", ")
        peers = [v for c in cases if c.startswith(f"{optimizer},") for vs in found[c].values() for v in vs]
        best = np.nanmax(peers)
        mine = [v for vs in found[case].values() for v in vs]
        good = sum(v >= best - 0.01 for v in mine)
        low, high = wilson(good, len(mine))
        worst = min(0.0 if math.isnan(v) else v for v in mine)
        print(
            f"| {optimizer} | {moves} | {good} of {len(mine)} | {low:.2f} to {high:.2f} | {np.nanmax(mine):.3f} | {worst:.3f} |"
        )


def curves(args: argparse.Namespace, make: Callable[[nn.Module], shoal.Recipe], seeds: int) -> tuple[Any, float]:
    """A study of so many seeds of one recipe, and the CPU seconds that it took."""
    train, valid = data_of(args)

    def define(trial: optuna.Trial) -> shoal.Recipe:
        trial.suggest_categorical("replica", list(range(seeds)))
        return make(nn.Sequential(nn.Linear(train[0].shape[1], 64), nn.ReLU(), nn.Linear(64, 10)))

    before = cpu_s()
    study = shoal.tune(
        define,
        train=train,
        valid=valid,
        metric="accuracy",
        n_trials=seeds,
        max_epochs=args.max_epochs,
        sampler="grid",
        scheduler="none",
        progress=False,
    )
    return study, cpu_s() - before


def batch(args: argparse.Namespace) -> None:
    """Print the table of batch sizes."""
    torch.set_num_threads(1)
    n = len(data_of(args)[0][0])

    def recipe(model: nn.Module, size: int, lr: float, moves: Sequence[Extension] = ()) -> shoal.Recipe:
        return shoal.Recipe(
            model, torch.optim.Adam(model.parameters(), lr=lr), nn.CrossEntropyLoss(), size, extensions=moves
        )

    sizes = [16, 32, 64, 128, 256, 512]
    fixed = {f"{b}": (lambda m, b=b: recipe(m, b, 1e-3 * math.sqrt(b / 32))) for b in sizes}
    moving = {
        f"moves, from {b}": (
            lambda m, b=b: recipe(m, b, 1e-3 * math.sqrt(b / 32), [BatchSize(bounds=(16, 512), every=4)])
        )
        for b in (32, 256)
    }
    curves(args, fixed["32"], 2)  # whatever a process loads and builds is there for all that count
    print(
        "| batch size | samples to the target | updates | CPU s per lane to the target | in the last epoch |\n|"
        + " --- |" * 5
    )
    for name, make in {**fixed, **moving}.items():
        study, spent = curves(args, make, args.replicas)
        mean = np.mean([[row.value for row in t.rows] for t in study.record.trials], axis=0)
        reached = np.flatnonzero(mean >= args.target)
        epochs = int(reached[0]) + 1 if len(reached) else 0
        path = [t.values for t in (study.trajectories(i).get("batch_size") for i in range(args.replicas)) if t]
        used = np.array(path) if path else np.full((args.replicas, args.max_epochs), float(name))
        updates = np.ceil(n / used[:, :epochs]).sum(1).mean()
        seconds = spent / args.replicas / args.max_epochs * epochs
        last = f"{used[:, -1].mean():.0f}, accuracy {mean[-1]:.4f}"
        shown = f"{epochs * n} | {updates:.0f} | {seconds:.2f}" if epochs else "not reached | | "
        print(f"| {name} | {shown} | {last} |", flush=True)


def shapes(args: argparse.Namespace) -> None:
    """Print the table of learned activations."""
    cases: dict[str, Sequence[Extension]] = {"relu": []}
    cases |= {shape: [Activation(shape=shape)] for shape in ("prelu", "swish", "bias", "mixture")}
    print("| activation | mean accuracy | standard error |\n|" + " --- |" * 3)
    for name, moves in cases.items():

        def make(model: nn.Module, moves: Sequence[Extension] = moves) -> shoal.Recipe:
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
            return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, extensions=moves)

        study, _ = curves(args, make, args.replicas)
        values = [t.value for t in study.record.trials]
        error = statistics.stdev(values) / math.sqrt(len(values))
        print(f"| {name} | {statistics.mean(values):.4f} | {error:.4f} |", flush=True)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "ticks", "starts", "batch", "shapes"])
    parser.add_argument("--trials", type=int, default=32, help="cost: lanes")
    parser.add_argument("--epochs", type=int, nargs=2, default=[2, 22], help="cost: epochs of the two runs")
    parser.add_argument(
        "--repeats", type=int, default=3, help="cost: how often, the median counts; ticks: epochs, the shortest counts"
    )
    parser.add_argument("--rates", type=int, default=11, help="starts: learning rates from 1e-5 to 1")
    parser.add_argument("--replicas", type=int, default=2, help="starts: trials per learning rate")
    parser.add_argument("--max-epochs", type=int, default=20, help="starts: epochs of a trial")
    parser.add_argument("--only", nargs="*", help="cost, ticks: which of the rows")
    parser.add_argument("--data", choices=["digits", "fashion"], default="digits")
    parser.add_argument("--folder", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--samples", type=int, default=10_000, help="of Fashion-MNIST")
    parser.add_argument("--target", type=float, default=0.97, help="batch: accuracy to reach")
    args = parser.parse_args()
    {"cost": cost, "ticks": ticks, "starts": starts, "batch": batch, "shapes": shapes}[args.what](args)


if __name__ == "__main__":
    main()
