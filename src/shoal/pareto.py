"""Who is best by several values at once: the Pareto front. Plain numbers in, plain numbers out.

Glossary: a *point* is a tuple of values, one per objective, each of which is to be made small. A point *dominates* another if it is
nowhere larger and somewhere smaller. The *front* of some points are those that none of them dominates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias, final

Point: TypeAlias = tuple[float, ...]


def covers(a: Point, b: Point) -> bool:
    """Whether ``a`` is nowhere larger than ``b``: it dominates ``b``, or is the same."""
    return all(x <= y for x, y in zip(a, b, strict=True))


def front(points: Sequence[Point]) -> list[bool]:
    """Which points are on the front; equal points are on it together.

    Args:
        points: n points of one length, none of whose values is NaN.

    Returns:
        n truth values.

    Example:
        >>> front([(1.0, 3.0), (2.0, 2.0), (2.0, 3.0), (3.0, 1.0)])
        [True, True, False, True]
    """
    # What dominates a point comes before it in this order, and so does a point of the front that dominates it.
    order = sorted(range(len(points)), key=points.__getitem__)
    found: list[Point] = []
    on = [False] * len(points)
    for i in order:
        p = points[i]
        if not any(covers(f, p) and f != p for f in reversed(found)):
            on[i] = True
            if not found or found[-1] != p:
                found.append(p)
    return on


def crowding(points: Sequence[Point]) -> list[float]:
    r"""How far each point lies from its neighbours; the ends of every objective are infinitely far.

    .. math:: d_i = \sum_m \frac{p_{i+1, m} - p_{i-1, m}}{\max_j p_{j, m} - \min_j p_{j, m}}

    with neighbours in the order of objective m.

    Args:
        points: n points of one length.

    Returns:
        n distances.

    References:
        Deb, Pratap, Agarwal and Meyarivan, A fast and elitist multiobjective genetic algorithm: NSGA-II, IEEE Transactions on
        Evolutionary Computation 6, 2002, section III.B.

    Example:
        >>> crowding([(0.0, 4.0), (1.0, 3.0), (4.0, 0.0)])
        [inf, 2.0, inf]
    """
    distances = [0.0] * len(points)
    for m in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: (points[i][m], i))
        low, high = points[order[0]][m], points[order[-1]][m]
        distances[order[0]] = distances[order[-1]] = math.inf
        if not 0 < high - low < math.inf:
            continue
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            distances[i] += (points[after][m] - points[before][m]) / (high - low)
    return distances


def spread(points: Mapping[int, Point], n: int) -> list[int]:
    """At most ``n`` of the points, those in the thickest places left out one after the other.

    Args:
        points: By number.
        n: How many to keep, at least 1.

    Returns:
        Their numbers, in the order of their values.

    Example:
        >>> spread({0: (0.0, 9.0), 1: (4.0, 5.0), 2: (4.1, 4.9), 3: (9.0, 0.0)}, 3)
        [0, 2, 3]
    """
    kept = sorted(points, key=lambda number: (points[number], number))
    while len(kept) > n:
        distances = crowding([points[number] for number in kept])
        kept.pop(min(range(len(kept)), key=lambda i: (distances[i], -kept[i])))
    return kept


@final
class Front:
    """A front that grows point by point.

    Example:
        >>> front = Front()
        >>> front.add(0, (2.0, 2.0)), front.add(1, (3.0, 3.0)), front.add(2, (1.0, 1.0)), sorted(front.points)
        (True, False, True, [2])
    """

    def __init__(self) -> None:
        self.points: dict[int, Point] = {}

    def add(self, number: int, point: Point) -> bool:
        """Take a point in, and those that it dominates out; False if one that is at least as good was there."""
        self.points.pop(number, None)
        as_good = any(covers(p, point) for p in self.points.values())
        if as_good and point not in self.points.values():
            return False
        self.points = {n: p for n, p in self.points.items() if p == point or not covers(point, p)}
        self.points[number] = point
        return not as_good
