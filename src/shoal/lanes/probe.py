"""Trial runs of a recipe's own forward pass, before it is signed: do its samples see each other, and does padding change anything?

Glossary: ``q`` samples, a few of the training split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.func import functional_call

from shoal.errors import FuseError
from shoal.lanes.criteria import criterion_values, is_known
from shoal.lanes.elsewhere import moved
from shoal.lanes.rng import KeyedRandom
from shoal.lanes.step import Objective, keeps_targets, values_by_name
from shoal.recipe import Recipe


def output_classes(recipe: Recipe, data: Sequence[Tensor]) -> int:
    """How many classes the model tells apart: the second size of what it gives for a few samples."""
    named = {**dict(recipe.model.named_parameters()), **dict(recipe.model.named_buffers())}
    tensors = {name: t.detach().clone() for name, t in named.items()}
    rows = slice(0, min(4, data[0].shape[0]))
    with torch.no_grad(), KeyedRandom(torch.arange(4, dtype=torch.int32, device=data[0].device)[rows]):
        out: Tensor = functional_call(recipe.model, tensors, *recipe.form.inputs([t[rows] for t in data]))
    return out.shape[1]


def probe_samples(recipe: Recipe, data: Sequence[Tensor], n: int) -> bool:
    """Whether samples of a micro-batch are independent: changing one must not change what the others get.

    Runs the template's own forward pass twice, in training mode, under the same keys. Layers that mix samples (batch norm,
    contrastive losses, attention across the batch) and losses that are not sums over samples give False.
    """
    if not is_known(recipe.loss) or n < 3:
        return False
    named = {**dict(recipe.model.named_parameters()), **dict(recipe.model.named_buffers())}
    return (
        _independent(recipe, data, n, named)
        and _independent(recipe, data, n, moved(named))
        and _gradients_add_up(recipe, data, min(8, n))
    )


def _independent(recipe: Recipe, data: Sequence[Tensor], n: int, named: Mapping[str, Tensor]) -> bool:
    q = min(8, n - 1)
    keys = torch.arange(q, dtype=torch.int32, device=data[0].device)
    rows = torch.arange(q, device=data[0].device)
    swapped = rows.clone()
    swapped[0] = q

    def run(idx: Tensor) -> tuple[Tensor, bool]:
        batch = tuple(t[idx] for t in data)
        tensors = {name: t.detach().clone() for name, t in named.items()}
        # Rates may be 0 in this recipe and not in others of its signature: here they are all one half.
        with torch.no_grad(), KeyedRandom(keys[: len(idx)], rate=0.5) as mode:
            out = functional_call(recipe.model, tensors, *recipe.form.inputs(batch))
        return out, mode.whole

    (first, whole), (second, _) = run(rows), run(swapped)
    # With one sample fewer, too: an axis of another kind may by chance be as long as there are samples.
    if q > 2:
        whole |= run(rows[1:])[1]
    if not isinstance(first, Tensor) or whole or first.dim() == 0 or first.shape[0] != q:
        return False
    scale = first.abs().max().clamp(min=1e-12)
    return bool(((first[1:] - second[1:]).abs().max() <= 1e-5 * scale).item())


def _gradients_add_up(recipe: Recipe, data: Sequence[Tensor], q: int) -> bool:
    """Whether the gradient of ``q`` samples is the sum of those of its halves: a backward pass may mix samples where the forward
    pass does not."""
    objective = Objective(recipe.model, recipe)
    trained = {name for name, p in objective.named_parameters() if p.requires_grad}
    start = moved({**dict(objective.named_parameters()), **dict(objective.named_buffers())})
    dtype = next(t.dtype for name, t in start.items() if name in trained)
    values = values_by_name(recipe)
    keys = torch.arange(q, dtype=torch.int32, device=data[0].device)

    def gradients(rows: slice) -> list[Tensor]:
        tensors = {name: t.clone().requires_grad_(name in trained) for name, t in start.items()}
        batch = tuple(t[rows] for t in data)
        weights = torch.ones(len(batch[0]), dtype=dtype, device=data[0].device)
        with KeyedRandom(keys[rows], rate=0.5):
            loss, _ = functional_call(objective, tensors, (batch, weights, values, True))
        own = [tensors[name] for name in sorted(trained)]
        found = torch.autograd.grad(loss, own, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(own, found, strict=True)]

    half = q // 2
    whole, parts = gradients(slice(0, q)), (gradients(slice(0, half)), gradients(slice(half, q)))
    scale = max((float(g.abs().max()) for g in whole if g.numel()), default=0.0)
    return all(
        torch.allclose(g, a + b, rtol=0.0, atol=1e-4 * scale, equal_nan=True)
        for g, a, b in zip(whole, *parts, strict=True)
    )


def probe_transform(recipe: Recipe, data: Sequence[Tensor]) -> bool:
    """Whether a batch may be split before it is transformed: only where each sample is changed by itself, and no target is."""
    if recipe.transform is None:
        return True
    rows = slice(0, min(2, data[0].shape[0]))
    batch = tuple(t[rows] for t in data)
    with KeyedRandom(torch.arange(2, dtype=torch.int32, device=data[0].device)[rows]):
        return keeps_targets(recipe.transform, batch, recipe.transformed(batch))


def probe_padding(recipe: Recipe, data: Sequence[Tensor]) -> None:
    """Make sure that a model which packs sequences does not notice how far they are padded.

    Over lanes, ``pad_packed_sequence`` cannot pad to the longest sequence of a batch, which is another one in each lane. Runs the
    template's own pass as torch does it, and as a lane does with some more padding, under the same keys.

    Raises:
        FuseError: If outputs or loss differ, or packed sequences are used in a way that has no lane form.
    """
    q = min(8, data[0].shape[0])
    batch = tuple(t[:q] for t in data)
    keys = torch.arange(q, dtype=torch.int32, device=data[0].device)
    objective = Objective(recipe.model, recipe)
    named = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    values = criterion_values(recipe.loss) if is_known(recipe.loss) else {}
    dtype = next((t.dtype for t in named.values() if t.is_floating_point()), torch.get_default_dtype())
    weights = torch.ones(q, dtype=dtype, device=data[0].device)

    inputs = (batch, weights, values, True)

    def run(at: Mapping[str, Tensor], mode: KeyedRandom) -> tuple[Tensor, Tensor | None]:
        tensors = {name: t.detach().clone() for name, t in at.items()}
        with torch.no_grad(), mode:
            out: tuple[Tensor, Tensor | None] = functional_call(objective, tensors, inputs)
        return out

    flags = {module: module.training for module in recipe.model.modules()}
    try:
        for start in (named, moved(named)):
            _compare_padding(partial(run, start), keys)
        recipe.model.eval()  # which may well go another way
        _compare_padding(partial(run, named), keys)
    finally:
        for module, training in flags.items():
            module.training = training


def _compare_padding(run: Callable[[KeyedRandom], tuple[Tensor, Tensor | None]], keys: Tensor) -> None:
    plain = KeyedRandom(keys, rate=0.5)
    expected = run(plain)
    if not plain.packed:
        return
    advice = "pass total_length= to pad_packed_sequence, or read outputs at the lengths only"
    try:
        got = run(KeyedRandom(keys, rate=0.5, lanes=True, slack=3))
    except FuseError:
        raise
    except Exception as error:
        raise FuseError(f"it needs sequences padded to the longest of a batch ({error}); {advice}") from error
    for a, b in zip(expected, got, strict=True):
        if isinstance(a, Tensor) and not (isinstance(b, Tensor) and a.shape == b.shape and _close(a, b)):
            raise FuseError(f"what it computes depends on how far sequences are padded; {advice}")


def _close(a: Tensor, b: Tensor) -> bool:
    scale = float(a.abs().max()) if a.numel() else 0.0
    return torch.allclose(a, b, rtol=0.0, atol=1e-4 * max(scale, 1e-12), equal_nan=True)
