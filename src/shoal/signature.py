"""From a recipe to its signature: what must be equal for two recipes to share a program, in parts that can be explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from shoal.errors import FuseError, blame
from shoal.extend import LossWeights
from shoal.extend._weighted import weights_of
from shoal.keys import Reader, digest
from shoal.lanes import rehearsal
from shoal.lanes.criteria import criterion_key, denominators, is_known
from shoal.lanes.elsewhere import kept
from shoal.lanes.lane import LaneTrial
from shoal.lanes.lift import lift_values, model_key, names_of
from shoal.lanes.numbers import Guards, Place, Value, holding, values_of
from shoal.lanes.order import quantum
from shoal.lanes.probe import output_classes, probe_padding, probe_samples, probe_transform
from shoal.lanes.step import Layout, places_of
from shoal.lanes.tables import family_of
from shoal.lanes.watch import Watch
from shoal.recipe import Recipe
from shoal.records import TrialSpec
from shoal.transforms import by_sample

# Samples of the batch that numbers are lifted on.
_PROBE = 8


@dataclass(frozen=True, slots=True)
class Signature:
    """What a fleet's lanes have in common.

    ``parts`` name what went into ``key``, so that ``explain`` can say which part keeps two recipes apart. ``exact`` signatures
    train whole batches; ``whole`` says why, in words.
    """

    key: str
    parts: tuple[tuple[str, str], ...]
    quantum: int
    exact: bool
    whole: str = ""

    def differs(self, other: Signature) -> list[str]:
        """The names of the parts in which two signatures differ."""
        mine, theirs = dict(self.parts), dict(other.parts)
        return [name for name in mine if mine[name] != theirs.get(name)]


@dataclass(frozen=True, slots=True)
class _Way:
    """One way through a structure's code: what it leaves behind, what is lifted, the guards, and a digest of the other numbers."""

    effects: rehearsal.Effects
    lifts: tuple[str, ...]
    guards: Guards
    others: str

    def serves(self, values: Mapping[str, Value]) -> bool:
        """Whether a recipe with these numbers takes it too."""
        return self.guards.hold(values) and self.others == _others(values, self.lifts)


def _others(values: Mapping[str, Value], lifts: Sequence[str]) -> str:
    return digest(tuple((name, _plain(v)) for name, v in values.items() if name not in lifts))


def _plain(value: Value) -> object:
    return value.tolist() if isinstance(value, torch.Tensor) else value


@dataclass(slots=True)
class _Structure:
    """What is known of recipes that are the same but for numbers which may be lifted."""

    ways: list[_Way] = field(default_factory=list)
    reason: str = ""  # why none of them can be fused


class Signer:
    """Signs recipes of one study. Remembers, per structure, what trying it out has shown.

    Args:
        data: The training split's tensors.
        n_train: How many samples a trial, or each fold of one, trains on.
    """

    def __init__(self, data: tuple[torch.Tensor, ...], n_train: Sequence[int] = ()) -> None:
        self._data, self._n_train = data, n_train or (len(data[0]),)
        self._structures: dict[str, _Structure] = {}
        self._independent: dict[tuple[str, int, str], bool] = {}
        self._no_lane_form: dict[str, str] = {}  # structure -> why; empty where there is nothing against it
        self._classes: dict[str, int] = {}

    def sign(self, recipe: Recipe) -> Signature:
        """The signature of a recipe; also settles which of its numbers are lifted.

        Raises:
            FuseError: If no lane form of the recipe exists; the message says why.
        """
        family_of(recipe.optimizer, recipe.schedule)
        _refuse(recipe)
        places = places_of(recipe)
        object.__setattr__(recipe, "lifts", ())
        layout = Layout.of(recipe)
        parts = _parts(recipe, layout, places)
        effects, lifts, guards = self._settle(recipe, places, digest(tuple(parts)))
        if len(lifts) < len(places):  # what is not lifted is part of the signature
            parts = _parts(recipe, layout, {name: places[name] for name in lifts})
        object.__setattr__(recipe, "lifts", lifts)
        moves = any(isinstance(e, LossWeights) for e in recipe.extensions if e.on)
        if moves and (fixed := sorted(set(weights_of(recipe.loss)) - set(lifts))):
            raise FuseError(f"shoal.extend.LossWeights moves {fixed[0]!r}, which its loss needs as a plain number")
        parts.append(("numbers", digest((lifts, guards.outcomes))))
        structure = digest(tuple(parts))
        self._check_weights(recipe, structure)
        if structure not in self._no_lane_form:
            self._no_lane_form[structure] = self._objection(recipe)
        if self._no_lane_form[structure]:
            raise FuseError(self._no_lane_form[structure])
        own = values_of(places, lifts)
        exact = bool(effects.advances) or not self._splittable(recipe, structure, own)
        q = recipe.batch_size if exact else quantum(recipe.batch_size)
        parts.append(("batch size" if exact else "quantum", str(q)))
        whole = _why_whole(recipe, effects) if exact else ""
        return Signature(digest(tuple(parts)), tuple(parts), q, exact, whole)

    def _objection(self, recipe: Recipe) -> str:
        try:
            with kept(recipe.model):
                probe_padding(recipe, self._data)
        except FuseError as error:
            return str(error)
        except Exception:  # as above: the plain loop will say so
            return ""
        return ""

    def _settle(
        self, recipe: Recipe, places: Mapping[str, Place], key: str
    ) -> tuple[rehearsal.Effects, tuple[str, ...], Guards]:
        """What a forward pass leaves behind, which numbers are lifted, and the guards; tries a new structure out."""
        known = self._structures.setdefault(key, _Structure())
        if known.reason:
            raise FuseError(known.reason)
        n = min(recipe.batch_size, len(self._data[0]))
        values = values_of(places, places)
        way = next((w for w in known.ways if w.serves(values)), None)
        if way is None:
            try:
                effects = rehearsal.effects(recipe, *rehearsal.batch_of(self._data, n))
            except (
                Exception
            ) as error:  # alone it raises too, and the trial fails with that; another of its kind may not
                raise FuseError(f"its forward pass raises {blame(error)}") from error
            known.reason = effects.reason
            if known.reason:
                raise FuseError(known.reason)
            lifts: tuple[str, ...] = ()
            guards = Guards()
            if places:
                lifts, guards = rehearsal.liftable(recipe, places, *rehearsal.batch_of(self._data, min(_PROBE, n)))
            way = _Way(effects, lifts, guards, _others(values, lifts))
            known.ways.append(way)
        return way.effects, way.lifts, way.guards

    def _splittable(self, recipe: Recipe, structure: str, own: Mapping[str, Value]) -> bool:
        """Whether a batch may be split into micro-batches, with these numbers, which are its own."""
        case = (structure, recipe.batch_size, _others(own, ()))
        if case not in self._independent:
            n = self._data[0].shape[0]
            try:
                # A batch may be split, the last one of an epoch is smaller, and empty slots fill it up.
                size, q = recipe.batch_size, quantum(recipe.batch_size)
                sizes = {min(n, size), *(rows % size for rows in self._n_train), min(n, q), min(n, q) - 1}
                with kept(recipe.model):
                    free = probe_transform(recipe, self._data) and probe_samples(recipe, self._data, n)
                    self._independent[case] = free and rehearsal.same_in_any(recipe, self._data, sizes)
            except Exception:  # the plain loop will say so, with the user's traceback
                self._independent[case] = False
        return self._independent[case]

    def _check_weights(self, recipe: Recipe, structure: str) -> None:
        """Class weights belong to lanes, which hold as many as the model has outputs; another number raises alone, as in torch."""
        weight = getattr(recipe.loss, "weight", None)
        if not isinstance(recipe.loss, torch.nn.CrossEntropyLoss | torch.nn.NLLLoss) or weight is None:
            return
        if structure not in self._classes:
            try:
                self._classes[structure] = output_classes(recipe, self._data)
            except Exception:  # as below
                self._classes[structure] = len(weight)
        if len(weight) != self._classes[structure]:
            raise FuseError(f"its loss has {len(weight)} class weights for {self._classes[structure]} outputs")


def _why_whole(recipe: Recipe, effects: rehearsal.Effects) -> str:
    """Why a batch is not split."""
    if effects.advances:
        return f"{effects.advances} follows statistics of whole batches"
    if recipe.transform is not None and not by_sample(recipe.transform):
        return "its transform is given whole batches"
    if not is_known(recipe.loss):
        return "the loss is not one that Shoal can take apart by samples"
    return "samples of a batch see each other, or the forward pass looks at how many there are"


def _parts(recipe: Recipe, layout: Layout, lifted: Mapping[str, Place]) -> list[tuple[str, str]]:
    """The parts of a signature but for batch sizes, blind to the numbers that are lifted.

    Raises:
        FuseError: If something in the recipe cannot be read.
    """
    blank = {name: _blank(place) for name, place in lifted.items()}
    reader = Reader(names_of(recipe.model))
    with holding(lifted, blank):
        model = model_key(recipe.model, reader)
        if reader.hidden:
            raise FuseError(
                f"it keeps modules with parameters at {reader.hidden[0]}, where torch does not see them and nothing trains them; "
                "use nn.ModuleList or nn.ModuleDict"
            )
        loss = criterion_key(recipe.loss) if is_known(recipe.loss) else reader.key(recipe.loss, "its loss")
        predict = reader.key(recipe.predict, "its predict")
        transform = reader.key(recipe.transform, "its transform")
    if reader.unread:
        where, what = reader.unread[0]
        raise FuseError(f"{where} is {what}")
    criterion_only = [name for name in layout.values if name not in lifted]
    return [
        ("model", digest(model)),
        ("shapes", digest((layout.shapes, layout.dtype, layout.frozen, layout.buffers))),
        ("loss", digest(loss)),
        ("loss options", digest(criterion_only)),
        ("predict", digest(predict)),
        ("transform", digest(transform)),
    ]


def _blank(place: Place) -> tuple[object, ...]:
    value = place.get()
    return ("lifted", tuple(value.shape), str(value.dtype)) if isinstance(value, torch.Tensor) else ("lifted",)


def _refuse(recipe: Recipe) -> None:
    """Refuse what would be lost silently when a model runs on tensors that are not its own.

    Raises:
        FuseError: Saying what it is, and where.
    """
    for name, module in recipe.model.named_modules():
        where = f"its module {name!r}" if name else "its model"
        if type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise FuseError(f"{where} was compiled by torch.compile; Shoal traces plain modules itself")
        if type(module).__module__.startswith("torch.jit"):
            raise FuseError(f"{where} was compiled by torch.jit, and lanes are traced through Python")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise FuseError(
                f"{where} is {type(module).__name__}, which spreads one model over devices; pass the model itself"
            )
        if module._backward_hooks or module._backward_pre_hooks:
            raise FuseError(f"{where} has a backward hook, which lanes do not call")
    for name, p in recipe.model.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise FuseError(f"its parameter {name!r} has a gradient hook, which lanes do not call")
        if nn.parameter.is_lazy(p):
            raise FuseError(f"its parameter {name!r} has no shape yet; run the model once in define")
    Watch.of(recipe)


def lane_trial(spec: TrialSpec, recipe: Recipe, target: torch.Tensor) -> LaneTrial:
    """A signed recipe as a trial ready for a lane."""
    per_sample = None
    if is_known(recipe.loss) and recipe.loss.reduction != "sum":  # type: ignore[union-attr]
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
