"""What one hyperparameter may be, and how it is changed: by a factor, to a neighbour, or drawn anew."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from typing import final

from shoal.records import ParamValue


@final
@dataclass(frozen=True, slots=True)
class Dimension:
    """One hyperparameter of a search space.

    Attributes:
        low, high: The range of a number.
        step: The distance of its values; 0 for any.
        log: Whether it is drawn on a logarithmic scale.
        whole: Whether it is a whole number.
        choices: Of a categorical one, else empty.
    """

    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[ParamValue, ...] = ()

    @classmethod
    def of(cls, distribution: str) -> Dimension:
        """From a distribution as Optuna writes it to JSON.

        >>> Dimension.of('{"name": "IntDistribution", "attributes": {"log": false, "step": 2, "low": 1, "high": 9}}').high
        9.0
        """
        found = json.loads(distribution)
        at = found["attributes"]
        if "choices" in at:
            return cls(choices=tuple(at["choices"]))
        step, whole = at.get("step"), found["name"] == "IntDistribution"
        return cls(float(at["low"]), float(at["high"]), float(step or 0.0), bool(at["log"]), whole)

    @property
    def numeric(self) -> bool:
        """Whether it is a number with more than one value."""
        return not self.choices and self.low < self.high

    def near(self, value: ParamValue, factor: float) -> ParamValue:
        """The value times a factor, kept in range and moved by a step at least; of a choice, the one before or after it.

        >>> Dimension(0.0, 1.0).near(0.5, 1.2), Dimension(1, 9, 1, whole=True).near(2, 1.2)
        (0.6, 3)
        >>> Dimension(choices=("a", "b", "c")).near("b", 0.8)
        'a'
        """
        up = factor > 1.0
        if self.choices:
            at = next((i for i, c in enumerate(self.choices) if type(c) is type(value) and c == value), 0)
            return self.choices[min(len(self.choices) - 1, max(0, at + (1 if up else -1)))]
        assert isinstance(value, int | float)
        to = float(value) * factor
        if self.step:  # less than a step would be lost when it is rounded
            to = max(to, value + self.step) if up else min(to, value - self.step)
        return self._held(to)

    def drawn(self, rng: random.Random) -> ParamValue:
        """A value of the whole range."""
        return rng.choice(self.choices) if self.choices else self.at(rng.random())

    def at(self, share: float) -> ParamValue:
        """The value of a number that lies so far on the way from its low to its high, 0 to 1, on its own scale."""
        if self.log:
            return self._held(math.exp(math.log(self.low) + share * (math.log(self.high) - math.log(self.low))))
        return self._held(self.low + share * (self.high - self.low))

    def share(self, value: ParamValue) -> float:
        """How far a number lies on the way from its low to its high, 0 to 1: what ``at`` is given."""
        assert isinstance(value, int | float)
        if self.high <= self.low:
            return 0.0
        if self.log:
            return (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def _held(self, value: float) -> ParamValue:
        """The nearest value there is."""
        value = min(self.high, max(self.low, value))
        if self.step:
            n = round((value - self.low) / self.step)
            value = self.low + min(n, math.floor((self.high - self.low) / self.step + 1e-9)) * self.step
        if self.whole:
            return round(value)
        return float(f"{value:.12g}") if self.step else value
