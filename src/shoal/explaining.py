"""Which recipes share a fleet, which train solo, and why: answered before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from shoal import planner
from shoal.asking import Asker
from shoal.data import load
from shoal.differences import differences
from shoal.errors import FuseError
from shoal.lanes.fleet import Work
from shoal.lanes.lane import LaneTrial
from shoal.lanes.pool import Candidate, Outlook, outlook
from shoal.lanes.watch import Watch
from shoal.preparing import PrepareArgument, Prepared
from shoal.recipe import Recipe
from shoal.records import ParamValue, TrialSpec
from shoal.replay import Define, replay, run_define
from shoal.signature import Signature, Signer, lane_trial


@dataclass(frozen=True, slots=True)
class Group:
    """Trials that share a fleet, or (``reason`` not empty) train solo for the same reason.

    ``tier`` is what the fleet runs on once it has trained for a while; ``uncompiled``, where that is not ``compiled``, says what
    keeps it from being so.
    """

    trials: tuple[int, ...]
    signature: Signature | None
    reason: str
    model: str
    n_parameters: int
    width: int = 0
    tier: str = ""
    uncompiled: str = ""
    lifted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """What ``explain`` found; ``str()`` is made for reading."""

    groups: tuple[Group, ...]
    params: tuple[dict[str, ParamValue], ...]
    splits: tuple[tuple[int, int, tuple[str, ...]], ...]
    differences: tuple[tuple[str, ...], ...] = ()
    choices: frozenset[str] = frozenset()

    def __str__(self) -> str:
        fused = [g for g in self.groups if not g.reason]
        n = sum(len(g.trials) for g in self.groups)
        lines = [f"{n} sampled trials: {sum(len(g.trials) for g in fused)} fuse into {len(fused)} fleet(s)."]
        for k, g in enumerate(fused):
            assert g.signature is not None
            whole = "whole batches of" if g.signature.exact else "micro-batches of up to"
            lines.append(
                f"  fleet {k}: {len(g.trials)} trials, {g.model} with {g.n_parameters:,} parameters, {whole} "
                f"{g.signature.quantum} samples, {g.width} lanes wide, tier {g.tier} [{g.signature.key}]"
            )
            if g.uncompiled:
                lines.append(f"    not compiled: {g.uncompiled}")
            if g.signature.whole:
                lines.append(f"    whole batches, because {g.signature.whole}")
            if g.lifted:
                lines.append(f"    each lane has its own: {', '.join(g.lifted)}")
        for (a, b, parts), found in zip(self.splits, self.differences, strict=True):
            lines.append(f"  fleets {a} and {b} differ in: {', '.join(parts)}{self._hint(fused, a, b)}")
            lines += [f"    {sentence}" for sentence in found]
        for g in self.groups:
            if g.reason:
                lines.append(f"  solo: {len(g.trials)} trials, {g.model}: {g.reason}")
        return "\n".join(lines)

    def _hint(self, fused: Sequence[Group], a: int, b: int) -> str:
        """Categorical parameters that are constant in each of the two fleets, and not the same."""
        names = []
        for name in sorted(self.choices):
            mine, theirs = ({repr(self.params[t].get(name)) for t in fused[i].trials} for i in (a, b))
            if len(mine) == len(theirs) == 1 and mine != theirs:
                names.append(name)
        return f" (parameter {', '.join(names)})" if names else ""


@dataclass(frozen=True, slots=True)
class _Found:
    """Sampled trials of one signature (None for those that have none), and the first recipe among them."""

    first: Recipe
    signature: Signature | None
    trials: list[int] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)

    def group(self, o: Outlook) -> Group:
        model = self.first.model
        n_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        named = (tuple(self.trials), self.signature, o.solo, type(model).__name__, n_parameters)
        if o.solo:
            return Group(*named)
        width = planner.snug(len(self.trials), planner.WIDEST)
        return Group(*named, width, o.tier, o.uncompiled, self.first.lifts)


def explain(
    define: Define, *, train: Any, valid: Any = None, prepare: PrepareArgument = None, n_trials: int = 20, seed: int = 0
) -> Explanation:
    """Sample trials at random and say how they would be trained, without training them.

    Args:
        define, train, valid, prepare, seed: As for ``tune``.
        n_trials: How many to sample.
    """
    raw = load(train, valid, None, seed=seed, raw=prepare is not None)
    data = Prepared.of(prepare, raw, None, seed).data
    asker = Asker("random", "minimize", seed)
    signer = Signer(data.train.tensors)
    work = Work(data, (), torch.device("cpu"))

    def again(spec: TrialSpec) -> Recipe:
        return replay(define, spec, data.train.n, data.train.form)

    found: dict[str, _Found] = {}  # by signature, or by the reason why there is none
    params: list[dict[str, ParamValue]] = []
    choices: set[str] = set()
    for _ in range(n_trials):
        trial = asker.ask()
        recipe = run_define(define, trial, asker.trial_seed(trial.number), data.train.n, data.train.form)
        spec = asker.spec(trial)
        params.append(dict(spec.params))
        # Numbers from a range differ between any two trials; only a choice can be what tells two fleets apart.
        choices.update(name for name, d in spec.distributions.items() if "Float" not in d)
        try:
            signature = signer.sign(recipe)
            if Watch.of(recipe) is not None:
                _step_once(lane_trial(spec, again(spec), data.train.tensors[-1]))
        except FuseError as error:
            found.setdefault(str(error), _Found(recipe, None)).trials.append(trial.number)
            continue
        here = found.setdefault(signature.key, _Found(recipe, signature))
        here.trials.append(trial.number)
        lane = lane_trial(spec, recipe, data.train.tensors[-1])
        here.candidates.append(Candidate(spec, recipe, lane, signature.key, signature.quantum, signature.exact))
    groups = tuple(
        f.group(outlook(work, f.candidates, again) if f.signature is not None else Outlook(why))
        for why, f in found.items()
    )
    fused = [g.signature for g in groups if not g.reason and g.signature is not None]
    splits, told = [], []
    for b in range(1, len(fused)):
        # The fleet before it that it has most in common with says best what would join the two.
        a = min(range(b), key=lambda i: (len(fused[i].differs(fused[b])), i))
        splits.append((a, b, tuple(fused[a].differs(fused[b]))))
        told.append(tuple(differences(found[fused[a].key].first, found[fused[b].key].first, fused[a], fused[b])))
    return Explanation(groups, tuple(params), tuple(splits), tuple(told), frozenset(choices))


def _step_once(trial: LaneTrial) -> None:
    """Step a schedule of the user's own, on a recipe made for this.

    Raises:
        FuseError: It looks at what a lane trains elsewhere.
    """
    with suppress(Exception), trial.looking_on():  # what it raises is said when it trains
        trial.recipe.step_schedule(loss=1.0, value=1.0, progress=1.0)
    if trial.looks:
        raise FuseError(trial.looks)
