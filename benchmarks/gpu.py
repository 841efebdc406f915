"""Lanes on a GPU (or any device): equal to plain steps, and lane-steps per second by width beside the best plain loop.

Needs no files and no network. First, three epochs of eight lanes in float64 are held against each trial's plain loop on the same
device. Then a fleet of every width trains in float32, batches of 32, Adam, its evaluation and bookkeeping included; the plain loop
has its data on the device, indexes them, and takes the faster of fused and foreach Adam. Shares are of what ``torch.bmm`` reaches
in float32 on this device. Ends within ``--minutes``, with the widths that it has got through by then.

    python benchmarks/gpu.py                       # what `make bench-gpu` runs
    python benchmarks/gpu.py --device cpu --widths 1 4 --seconds 0.2
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import optuna
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from networks import NETWORKS, Network
from shoal.data import Datasets, Split
from shoal.devices import device_named
from shoal.lanes.fleet import Work
from shoal.lanes.pool import Pool
from shoal.lanes.solo import Solo
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from shoal.replay import replay
from shoal.session import candidate
from shoal.signature import Signer

BATCH, N_TRAIN, N_VALID = 32, 1024, 256
NAMES = {
    "MLP": "MLP 64-64-64-10",
    "CNN": "CNN, 8 x 8",
    "ResNet": "residual network, 3 x 16 x 16",
    "LSTM": "LSTM, 20 words",
    "transformer": "transformer, 20 words",
}


@dataclass(frozen=True, slots=True)
class Case:
    """A network with its data on a device, as ``shoal.tune`` would put it before its pools.

    Attributes:
        host: Training samples and classes where models are made.
        work: The same, and validation samples, on the device.
    """

    network: Network
    dtype: torch.dtype
    host: tuple[Tensor, Tensor]
    work: Work

    @classmethod
    def of(cls, network: Network, dtype: torch.dtype, device: torch.device) -> Case:
        """Random data of the network's shape."""
        splits = []
        for n, seed in ((N_TRAIN, 1), (N_VALID, 2)):
            x, y = network.data(n, seed)
            splits.append((x if network.words else x.to(dtype), y))
        train, valid = (Split(tuple(t.to(device) for t in split), ()) for split in splits)
        return cls(network, dtype, splits[0], Work(Datasets(train, valid, None, ""), (), device))

    def define(self, trial: optuna.Trial) -> Recipe:
        """A search over the learning rate alone."""
        model = self.network.make().to(self.dtype)
        optimizer = torch.optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-4, 1e-2, log=True))
        return Recipe(model=model, optimizer=optimizer, loss=nn.CrossEntropyLoss(), batch_size=BATCH)

    def rebuild(self, spec: TrialSpec) -> Recipe:
        """A trial's recipe, anew."""
        return replay(self.define, spec, N_TRAIN)

    def pool(self, specs: list[TrialSpec]) -> Pool:
        """A pool in which the trials are about to train as lanes, whatever is faster."""
        pool, signer = Pool(self.work, self.rebuild, measure=False), Signer(self.host)
        pool.admit([candidate(spec, self.rebuild(spec), signer, self.host[1]) for spec in specs])
        return pool


def specs(n: int) -> list[TrialSpec]:
    """Trials with learning rates from 1e-4 to 1e-2."""
    return [TrialSpec(i, 1000 + i, {"lr": 10 ** (-4 + 2 * i / max(1, n - 1))}, {}) for i in range(n)]


def furthest_apart(case: Case, lanes: int = 8, epochs: int = 3) -> float:
    """The largest relative difference of an epoch's training or validation loss between lanes and plain loops."""
    pool = case.pool(specs(lanes))
    if pool.n_fleets == 0:
        raise RuntimeError("its trials train solo: there is nothing to compare")
    alone = [Solo(spec, case.rebuild(spec), case.work) for spec in specs(lanes)]
    worst = 0.0
    for _ in range(epochs):
        for lane, solo in zip(pool.run_epoch(), (s.run_epoch() for s in alone), strict=True):
            for a, b in ((lane.train_loss, solo.train_loss), (lane.valid_loss, solo.valid_loss)):
                worst = max(worst, abs(a - b) / max(1.0, abs(b)))
    return worst


def finished(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_call(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Of a call that is made, after one that does not count, until so much time is over."""
    call()
    finished(device)
    start, calls = time.perf_counter(), 0
    while (gone := time.perf_counter() - start) < seconds or calls == 0:
        call()
        finished(device)
        calls += 1
    return gone / calls


def plain_us(case: Case, seconds: float) -> float:
    """Microseconds of a plain step, by the faster Adam."""
    x, y = case.work.data.train.tensors
    best = math.inf
    for how in ("fused", "foreach"):
        torch.manual_seed(0)
        model = case.network.make().to(case.dtype).to(case.work.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=how == "fused", foreach=how == "foreach")

        def epoch(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
            for index in torch.randperm(N_TRAIN, device=x.device).view(-1, BATCH):
                loss = nn.functional.cross_entropy(model(x[index]), y[index])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()

        best = min(best, seconds_per_call(epoch, case.work.device, seconds))
    return 1e6 * best / (N_TRAIN // BATCH)


def lane_us(case: Case, width: int, seconds: float) -> float:
    """Microseconds of a lane's step where so many train together; NaN where no fleet is as wide on this device."""
    pool = case.pool(specs(width))
    if any(event.kind == "solo" for event in pool.drain_events()):
        return math.nan
    pool.run_epoch()
    return 1e6 * seconds_per_call(pool.run_epoch, case.work.device, seconds) / (width * N_TRAIN // BATCH)


def flops_of(case: Case) -> int:
    """Of one step, by torch's own counter."""
    model, (x, y) = case.network.make().to(case.dtype), case.host
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(model(x[:BATCH]), y[:BATCH]).backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def bmm_peak(device: torch.device) -> float:
    """FLOP/s of ``torch.bmm`` in float32, over small shapes and large."""
    best = 0.0
    for lanes, side in ((1024, 64), (256, 256), (16, 1024)) if device.type == "cuda" else ((64, 64), (16, 256)):
        a, b = (torch.randn(lanes, side, side, device=device) for _ in range(2))
        best = max(best, 2 * lanes * side**3 / seconds_per_call(lambda a=a, b=b: torch.bmm(a, b), device, 0.3))  # type: ignore[misc]
    return best


def main() -> int:
    """Compare, measure, print Markdown tables; 1 where lanes are not what plain loops are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="NAME")
    parser.add_argument("--widths", type=int, nargs="+", default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=2.0, help="for about how long each width trains")
    parser.add_argument("--minutes", type=float, default=7.5)
    args = parser.parse_args()
    device, end = device_named(args.device), time.perf_counter() + 60 * args.minutes
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    peak = bmm_peak(device)
    print(f"torch {torch.__version__}, {named}; bmm reaches {peak / 1e9:.0f} GFLOP/s in float32\n", flush=True)
    print("| float64, 8 lanes, 3 epochs | furthest from the plain loop |\n| --- | --- |", flush=True)
    equal = True
    for name in args.only:
        apart = furthest_apart(Case.of(NETWORKS[NAMES[name]], torch.float64, device))
        equal &= apart <= 1e-9
        print(f"| {name} | {apart:.1e}{'' if apart <= 1e-9 else ' (too far)'} |", flush=True)
    heads = ["us per lane-step", "plain loop", *(f"{w} lanes" for w in args.widths), "times as fast", "share of bmm"]
    print(f"\n| {' | '.join(heads)} |\n|{' --- |' * len(heads)}", flush=True)
    for name in args.only:
        if time.perf_counter() > end:
            break
        case = Case.of(NETWORKS[NAMES[name]], torch.float32, device)
        plain, flops, ours = plain_us(case, args.seconds / 2), flops_of(case), []
        for width in args.widths:
            if time.perf_counter() > end:
                ours.append(math.nan)
                continue
            try:
                ours.append(lane_us(case, width, args.seconds))
            except torch.OutOfMemoryError:
                ours.append(math.nan)
        best = min((us for us in ours if us == us), default=math.nan)
        us = ["-" if us != us else f"{us:.2f}" for us in ours]
        share = f"{100 * flops / (best * 1e-6) / peak:.1f} %"
        print(f"| {' | '.join([name, f'{plain:.0f}', *us, f'{plain / best:.1f}', share])} |", flush=True)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
