"""How many lanes, in which fleets: pure decisions from counts. Knows no torch, no clock and no files."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

# Widths a fleet may have: even from 2 on, so that parallel kernels split a stacked tensor between lanes and not inside one.
# Beyond ``WIDEST`` only a GPU gains: a CPU's lanes cost the same each by then.
WIDTHS: tuple[int, ...] = (
    *(1, *range(2, 64, 2), *range(64, 128, 4)),
    *(*range(128, 256, 16), *range(256, 512, 32), *range(512, 1025, 64)),
)
WIDEST, WIDEST_ON_GPU = 128, WIDTHS[-1]


def widest(device_type: str) -> int:
    """Lanes that a fleet may have at most, memory apart.

    >>> widest("cpu"), widest("cuda")
    (128, 1024)
    """
    return WIDEST if device_type == "cpu" else WIDEST_ON_GPU


@dataclass(frozen=True, slots=True)
class Demand:
    """What one signature asks for: lanes it holds now (``width``, 0 without a fleet), trials in them, trials waiting."""

    width: int
    active: int
    waiting: int
    max_width: int = WIDEST


def total_lanes(n_trials: int, *, learns: bool, cheap: bool = False, limit: int = WIDEST, parts: int = 1) -> int:
    """Trials that run at once, each of which takes ``parts`` lanes of a fleet that has ``limit``.

    While a sampler learns from results, few trials run together: very wide waves turn a model-based search into a random one. Where
    lanes are ``cheap`` (on a GPU, whose ticks cost next to the same at any width) that is an eighth of the trials, elsewhere a
    thirty-second; never fewer than 32, below which a tick is mostly overhead.

    >>> total_lanes(200, learns=True), total_lanes(2000, learns=True), total_lanes(1000, learns=False)
    (32, 62, 128)
    """
    wanted = max(32, n_trials // (8 if cheap else 32)) if learns else n_trials
    return max(1, min(wanted, limit // parts, n_trials))


def snug(n: int, limit: int) -> int:
    """The smallest width that holds ``n`` lanes, or the largest allowed."""
    allowed = [w for w in WIDTHS if w <= limit] or [1]
    return next((w for w in allowed if w >= n), allowed[-1])


def widths(demands: Mapping[str, Demand]) -> dict[str, int]:
    """The width each signature's fleet should have next: 0 closes it.

    A fleet that is wide enough and not much too wide stays as it is: a change of width moves every lane and changes rounding. One
    in which nobody trains has nothing to move.
    """
    out: dict[str, int] = {}
    for key, d in demands.items():
        wanted = min(d.active + d.waiting, d.max_width)
        if wanted == 0:
            out[key] = 0
        elif d.active > 0 and wanted <= d.width <= max(1.25 * snug(wanted, d.max_width), 2):
            out[key] = d.width
        else:
            out[key] = max(snug(wanted, d.max_width), snug(d.active, d.max_width))
    return out


# What a tick costs, in the units of ``cost`` (parameters x samples): so much per fleet whatever its width, on torch's kernels or
# where lanes are compiled; for a solo trial; and per lane a part that does not shrink with the model. Measured on small networks
# (docs/benchmarks.md); only ratios matter.
_PER_FLEET, _PER_COMPILED, _PER_SOLO, _PER_LANE = 4_000_000.0, 700_000.0, 4_000_000.0, 130_000.0
# What a pool's first fleet of a signature takes before it trains, in the same units: tracing and timing it, a second or more.
_OPENING = 2e10
# Early stopping trains about this share of all epochs.
_STOPPED_SHARE = 0.2


def opening(n_trials: int, max_epochs: int, n_samples: int, lanes: int, *, stops: bool) -> float:
    """What a pool's first fleet of a signature adds to each tick of a study: the longer the study, the less.

    Args:
        n_trials, max_epochs, n_samples: Of the study.
        lanes: Trials at a time.
        stops: Whether most trials are stopped early.
    """
    rounds = max(max_epochs, n_trials * max_epochs * (_STOPPED_SHARE if stops else 1.0) / lanes)
    return _OPENING / (rounds * max(1.0, n_samples / 32))


def load(
    running: Sequence[tuple[str, float]],
    *,
    compiled: bool = False,
    known: Collection[str] = (),
    opening: float = 0.0,
) -> float:
    """How long one tick of a pool takes, given (signature, cost) of its trials; an empty signature trains solo.

    Each signature that is not ``known`` to the pool adds ``opening``.
    """
    fleets = {signature for signature, _ in running if signature}
    solos = sum(1 for signature, _ in running if not signature)
    per_fleet = _PER_COMPILED if compiled else _PER_FLEET
    n_new = sum(1 for signature in fleets if signature not in known)
    return per_fleet * len(fleets) + opening * n_new + _PER_SOLO * solos + sum(_PER_LANE + cost for _, cost in running)


def lightest(
    pools: Sequence[Sequence[tuple[str, float]]],
    trial: tuple[str, float],
    *,
    compiled: bool = False,
    known: Sequence[Collection[str]] = (),
    opening: float = 0.0,
) -> int:
    """The pool that a trial should join so that the slowest pool is as fast as can be; the first of equals.

    Where fleets are ``compiled``, or soon will be, lanes cost the same beside others as alone, and only their number counts; but
    in a short study, what it costs to open a fleet of a signature that is not ``known`` to a pool counts as well.

    >>> lightest([[("a", 1e5)], []], ("a", 1e5)), lightest([[("a", 1e5)], [("b", 1e5)]], ("a", 1e5))
    (1, 0)
    """
    there = known or [()] * len(pools)
    loads = [load(p, compiled=compiled, known=there[k], opening=opening) for k, p in enumerate(pools)]

    def after(k: int) -> tuple[float, float, int]:
        mine = load([*pools[k], trial], compiled=compiled, known=there[k], opening=opening)
        return max([mine, *(x for i, x in enumerate(loads) if i != k)]), mine - loads[k], k

    return min(range(len(pools)), key=after)
