"""The best few trials as one model: stacked and run together where they share a structure, one by one otherwise.

Glossary: ``k`` models; ``outputs`` is (n, ...), one per sample; ``C`` is the number of classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from shoal.data import Split
from shoal.errors import UsageError, blame
from shoal.keys import module_key
from shoal.lanes.criteria import scale_of
from shoal.lanes.fleet import Work
from shoal.lanes.lane import evaluation_chunk
from shoal.recipe import Recipe
from shoal.scores import Score, scores_of
from shoal.winner import metrics_of, of_loss, split_scores

Average: TypeAlias = Literal["classes", "log_probabilities", "logits", "outputs"]

# What a module reads in training only; models that differ in it are the same in evaluation.
_TRAINING_ONLY: Final = {nn.Dropout: ("p",), nn.Dropout1d: ("p",), nn.Dropout2d: ("p",), nn.Dropout3d: ("p",)}
_ROWS: Final = 4  # of the training split that stacked models are tried on


class _Stack(nn.Module):
    """Models of one structure, run as one: (k, n, ...)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        # In a list, so that it is no part of this module: only its structure is used.
        self._template = [models[0]]
        parameters, buffers = stack_module_state(list(models))
        self._names: list[tuple[str, str, bool]] = []
        for tensors, trained in ((parameters, True), (buffers, False)):
            for place, (name, tensor) in enumerate(tensors.items()):
                own = f"{'parameter' if trained else 'buffer'}_{place}"
                self.register_buffer(own, tensor.detach())
                self._names.append((name, own, trained))

    def forward(self, *inputs: Tensor) -> Tensor:
        parameters, buffers = (
            {n: self.get_buffer(own) for n, own, trained in self._names if trained is wanted}
            for wanted in (True, False)
        )

        def one(p: dict[str, Tensor], b: dict[str, Tensor], *given: Tensor) -> Tensor:
            out: Tensor = functional_call(self._template[0], (p, b), given)
            return out

        shared = (None for _ in inputs)
        stacked: Tensor = vmap(one, in_dims=(0, 0, *shared), randomness="different")(parameters, buffers, *inputs)
        return stacked


class _OneByOne(nn.Module):
    """Models that are run one after the other: (k, n, ...)."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack([model(*inputs) for model in self.models])


class Ensemble(nn.Module):
    """The mean of several trained models, as one ``nn.Module`` in evaluation mode.

    Probabilities are averaged, not logits: for C classes the output is ``log(mean(softmax(logits)))``, for binary logits
    the logit of the mean probability, and for anything else the mean of the outputs. Argmax, sign, cross-entropy and metrics
    read it as they read one model's output.

    Attributes:
        trials: The trials whose models these are, the best first.
        groups: How many models each stack runs as one; a group of 1 runs by itself.
        valid_scores, test_scores: Metric -> its score on the split, with a confidence interval. The trials were chosen on the
            validation split, so that score is too good.

    Args:
        members: Trial number -> its recipe with trained weights, in evaluation mode, the best first.
        work: Splits and metrics.
    """

    def __init__(self, members: Mapping[int, Recipe], work: Work) -> None:
        super().__init__()
        self.trials = tuple(members)
        recipes = list(members.values())
        # In a list: their models are not this module's.
        self._recipes = [recipes]
        if work.data.train.names:
            raise UsageError("an ensemble needs data that are tuples: it calls each model with their tensors in order.")
        inputs = tuple(t[:_ROWS].cpu() for t in work.data.train.tensors)
        inputs = inputs[:-1] if recipes[0].is_criterion else inputs[: max(1, len(inputs) - 1)]
        models = [r.model for r in recipes]
        try:
            with torch.no_grad():
                alone = [m(*inputs) for m in models]
        except Exception as error:
            raise UsageError(
                f"an ensemble calls each model on all tensors of the data but the last, {len(inputs)} here, which raised "
                f"{blame(error)}"
            ) from error
        if any(not isinstance(out, Tensor) or out.shape != alone[0].shape for out in alone):
            raise UsageError(
                "an ensemble needs models whose outputs are tensors of one shape; those of trials "
                f"{', '.join(map(str, self.trials))} are {', '.join(str(getattr(o, 'shape', type(o))) for o in alone)}."
            )
        grouped: dict[object, list[int]] = {}
        for place, model in enumerate(models):
            grouped.setdefault(_structure(model), []).append(place)
        parts: list[_Stack | _OneByOne] = []
        self._order: list[int] = []
        for places in grouped.values():
            some = [models[i] for i in places]
            stack = _stacked(some, inputs, torch.stack([alone[i] for i in places])) if len(some) > 1 else None
            parts += [_OneByOne([m]) for m in some] if stack is None else [stack]
            self._order += places
        self._parts = nn.ModuleList(parts)
        self.groups = tuple(len(p.models) if isinstance(p, _OneByOne) else _count(p) for p in parts)
        self._average = average_of(recipes[0], alone[0], work.data.train.tensors[-1])
        self.eval()
        scores = {
            name: {} if split is None else self._scored(split, work)
            for name, split in (("valid", work.data.valid), ("test", work.data.test))
        }
        self.valid_scores: Mapping[str, Score] = scores["valid"]
        self.test_scores: Mapping[str, Score] = scores["test"]

    def members(self, *inputs: Tensor) -> Tensor:
        """The outputs of each model, (k, n, ...), in the order of ``trials``."""
        mixed = torch.cat([part(*inputs) for part in self._parts])
        return mixed[torch.tensor(self._order, device=mixed.device).argsort()]

    def forward(self, *inputs: Tensor) -> Tensor:
        return averaged(self.members(*inputs), self._average)

    def _scored(self, split: Split, work: Work) -> dict[str, Score]:
        """What metrics see, chunk by chunk: ``predict`` of each recipe where there is one, else the stacked outputs."""
        recipes, shown = self._recipes[0], []
        first, tensors = recipes[0], tuple(t.cpu() for t in split.tensors)
        if first.predict is None and not first.is_criterion:
            return {}
        with torch.no_grad():
            for at in range(0, split.n, evaluation_chunk(tensors)):
                batch = tuple(t[at : at + evaluation_chunk(tensors)].clone() for t in tensors)
                if first.predict is None:
                    shown.append(self(*batch[:-1]))
                else:
                    each = torch.stack([out for r in recipes if (out := r.shown(r.model, batch)) is not None])
                    shown.append(averaged(each, average_of(first, each[0], batch[-1])))
        outputs, target, scale = torch.cat(shown), tensors[-1], scale_of(first)
        measured, loss = metrics_of(outputs, target, work.metrics, scale), of_loss(first)
        if loss is not None:
            measured = {"loss": loss(outputs, target), **measured}
        return scores_of(split_scores(outputs, target, measured, work.metrics, loss, 0, scale))


def _count(stack: nn.Module) -> int:
    return len(next(iter(stack.buffers())))


def _structure(model: nn.Module) -> object:
    """Equal for models that compute the same in evaluation mode, but for their tensors."""
    shared: dict[int, str] = {}
    tied = tuple((name, shared.setdefault(id(p), name)) for name, p in model.named_parameters(remove_duplicate=False))
    keys = tuple((n, module_key(m, skip=_TRAINING_ONLY.get(type(m), ()))) for n, m in model.named_modules())
    return tied, keys


def _stacked(models: Sequence[nn.Module], inputs: Sequence[Tensor], expected: Tensor) -> _Stack | None:
    """The models as one, if that gives what they give alone."""
    try:
        stack = _Stack(models).eval()
        with torch.no_grad():
            came = stack(*inputs)
    except Exception:  # no batching rule, a branch on values: they run one by one
        return None
    wide = expected.abs().max().item() or 1.0
    close = came.shape == expected.shape and bool(((came - expected).abs() <= 1e-4 * wide).all())
    return stack if close else None


def average_of(recipe: Recipe, outputs: Tensor, targets: Tensor) -> Average:
    """How outputs of several models are averaged, by what the loss says they are."""
    loss: Any = recipe.loss
    if isinstance(loss, nn.CrossEntropyLoss) and outputs.ndim > 1:
        return "classes"
    if isinstance(loss, nn.NLLLoss):
        return "log_probabilities"
    if isinstance(loss, nn.BCEWithLogitsLoss | nn.MultiLabelSoftMarginLoss):
        return "logits"
    # What ``predict`` shows for class targets are logits.
    if recipe.predict is not None and not targets.is_floating_point():
        return "classes" if outputs.ndim == targets.ndim + 1 and outputs.shape[1] > 1 else "logits"
    return "outputs"


def averaged(outputs: Tensor, how: Average) -> Tensor:
    """The mean of (k, n, ...) over models, (n, ...), on the scale of one model's output.

    >>> averaged(torch.tensor([[0.0], [2.0]]), "outputs")
    tensor([1.])
    """
    means: dict[Average, Callable[[], Tensor]] = {
        "classes": lambda: _log_mean_exp(outputs.log_softmax(2)),
        "log_probabilities": lambda: _log_mean_exp(outputs),
        # log p - log (1 - p) from the logarithms of both, which stay exact where p is next to 0 or 1.
        "logits": lambda: (
            _log_mean_exp(nn.functional.logsigmoid(outputs)) - _log_mean_exp(nn.functional.logsigmoid(-outputs))
        ),
        "outputs": lambda: outputs.mean(0),
    }
    return means[how]()


def _log_mean_exp(logs: Tensor) -> Tensor:
    return logs.logsumexp(0) - torch.tensor(len(logs), dtype=logs.dtype).log()
