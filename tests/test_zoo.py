"""The zoo: what people write fuses, and trains in a lane exactly as alone."""

from __future__ import annotations

import re

import pytest

from zoo import ARCHITECTURES, LAYERS, ZOO
from zoo.check import check

# Of a gradient's own scale; a bias before a norm, or one of attention's keys, has a gradient of rounding noise, whose scale is
# floored (``gradient_deviation``): what is left of it is the larger deviation allowed here.
GRADIENTS, TRAJECTORY = 1e-10, 1e-11


def test_the_zoo_is_large_enough_and_names_are_its_own() -> None:
    assert len(LAYERS) >= 45 and len(ARCHITECTURES) >= 20
    assert len(ZOO) == len(LAYERS) + len(ARCHITECTURES)


def test_nine_in_ten_fuse() -> None:
    """Each entry that trains solo says so in ``solo``, and is checked to do so."""
    assert sum(not e.solo for e in ZOO.values()) >= 0.9 * len(ZOO)


@pytest.mark.parametrize("name", ZOO)
def test_in_lanes_as_alone(name: str) -> None:
    entry, verdict = ZOO[name], check(ZOO[name])
    if entry.solo:
        assert not verdict.fused and re.search(entry.solo, verdict.reason), verdict
    else:
        assert verdict.fused, verdict.reason
    assert verdict.gradients <= GRADIENTS and verdict.trajectory <= TRAJECTORY, verdict
