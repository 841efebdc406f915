"""From a recipe to its signature: what must be equal for two recipes to share a program, in parts that can be explained."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from shoal.errors import FuseError
from shoal.keys import digest, object_key
from shoal.lanes.criteria import criterion_key, denominators, is_known
from shoal.lanes.lane import LaneTrial
from shoal.lanes.lift import lift_values, model_key
from shoal.lanes.order import quantum
from shoal.lanes.probe import probe_padding, probe_samples
from shoal.lanes.step import Layout
from shoal.lanes.tables import family_of
from shoal.recipe import Recipe
from shoal.records import TrialSpec


@dataclass(frozen=True, slots=True)
class Signature:
    """What a fleet's lanes have in common.

    ``parts`` name what went into ``key``, so that ``explain`` can say which part keeps two recipes apart. ``exact`` signatures
    train whole batches: their layers mix samples, or their loss is not a sum over samples.
    """

    key: str
    parts: tuple[tuple[str, str], ...]
    quantum: int
    exact: bool

    def differs(self, other: Signature) -> list[str]:
        """The names of the parts in which two signatures differ."""
        mine, theirs = dict(self.parts), dict(other.parts)
        return [name for name in mine if mine[name] != theirs.get(name)]


class Signer:
    """Signs recipes of one study. Remembers, per structure, whether samples of a batch are independent."""

    def __init__(self, data: tuple[torch.Tensor, ...]) -> None:
        self._data = data
        self._independent: dict[str, bool] = {}
        self._no_lane_form: dict[str, str] = {}  # structure -> why; empty where there is nothing against it

    def sign(self, recipe: Recipe) -> Signature:
        """The signature of a recipe.

        Raises:
            FuseError: If no lane form of the recipe exists; the message says why.
        """
        family_of(recipe.optimizer, recipe.schedule)
        if type(recipe.model).__name__ == "OptimizedModule":
            raise FuseError("its model was compiled by torch.compile; Shoal traces and compiles plain modules itself")
        layout = Layout.of(recipe)
        known = is_known(recipe.loss)
        parts = [
            ("model", digest(model_key(recipe.model))),
            ("shapes", digest((layout.shapes, layout.dtype, layout.frozen, layout.buffers))),
            ("loss", digest(criterion_key(recipe.loss) if known else object_key(recipe.loss))),  # type: ignore[arg-type]
            ("loss options", digest(layout.values)),
            ("predict", digest(object_key(recipe.predict))),
        ]
        structure = digest(tuple(parts))
        if structure not in self._independent:
            try:
                self._independent[structure] = probe_samples(recipe, layout, self._data, self._data[0].shape[0])
            except (
                Exception
            ):  # the forward pass raises on this data: the plain loop will say so, with the user's traceback
                self._independent[structure] = False
        if structure not in self._no_lane_form:
            self._no_lane_form[structure] = self._objection(recipe)
        if self._no_lane_form[structure]:
            raise FuseError(self._no_lane_form[structure])
        exact = not self._independent[structure]
        q = recipe.batch_size if exact else quantum(recipe.batch_size)
        parts.append(("batch size" if exact else "quantum", str(q)))
        return Signature(digest(tuple(parts)), tuple(parts), q, exact)

    def _objection(self, recipe: Recipe) -> str:
        try:
            probe_padding(recipe, self._data)
        except FuseError as error:
            return str(error)
        except Exception:  # as above: the plain loop will say so
            return ""
        return ""


def lane_trial(spec: TrialSpec, recipe: Recipe, target: torch.Tensor) -> LaneTrial:
    """A signed recipe as a trial ready for a lane."""
    per_sample = None
    if is_known(recipe.loss) and recipe.loss.reduction == "mean":  # type: ignore[union-attr]
        per_sample = denominators(recipe.loss, target).numpy()
    groups = recipe.optimizer.param_groups
    group_of = None
    if len(groups) > 1:
        of = {id(p): k for k, g in enumerate(groups) for p in g["params"]}
        trainable = [p for p in recipe.model.parameters() if p.requires_grad]
        group_of = np.array([of[id(p)] for p in trainable])
    kinds = tuple(int(v) for name, v in lift_values(recipe.model).items() if name.endswith(".kind"))
    family = family_of(recipe.optimizer, recipe.schedule)
    return LaneTrial(spec, recipe, family, per_sample, kinds, groups=len(groups), group_of=group_of)
