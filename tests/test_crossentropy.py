"""Cross-entropy as one operator, against torch's own, under the transforms that a trace goes through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from lanes_helpers import made
from shoal.lanes.crossentropy import class_loss


@pytest.mark.parametrize("ignore", [-100, 3])
@pytest.mark.parametrize("smoothing", [None, 0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_over_lanes_is_torchs(weighted: bool, smoothing: float | None, ignore: int) -> None:
    lanes, q, classes = 4, 9, 7
    scores = made(lanes, q, classes).requires_grad_()
    target = torch.arange(lanes * q).view(lanes, q) % classes
    if ignore < 0:
        target[0, 2] = ignore
    share = made(lanes, q, seed=2)
    extra: list[Tensor] = [made(lanes, classes, seed=3).abs()] if weighted else []
    if smoothing is not None:
        extra.append(torch.full((lanes,), smoothing, dtype=torch.float64))

    def total(s: Tensor, y: Tensor, by: Tensor, *rest: Tensor) -> Tensor:
        w = rest[0] if weighted else None
        return (class_loss(s, y, w, None if smoothing is None else rest[-1], ignore) * by).sum()

    fused: Any = vmap(grad(total))(scores.detach(), target, share, *extra)
    values: Any = vmap(total)(scores.detach(), target, share, *extra)
    for lane in range(lanes):
        alone = nn.CrossEntropyLoss(
            extra[0][lane] if weighted else None,
            ignore_index=ignore,
            reduction="none",
            label_smoothing=smoothing or 0.0,
        )
        expected = (alone(scores[lane], target[lane]) * share[lane]).sum()
        torch.testing.assert_close(values[lane], expected.detach(), rtol=1e-12, atol=1e-12)
        expected.backward()
    assert scores.grad is not None
    torch.testing.assert_close(fused, scores.grad, rtol=1e-12, atol=1e-12)


def test_targets_shared_by_all_lanes() -> None:
    scores, target = made(3, 5, 4), torch.tensor([0, 1, 2, 3, 0])

    def total(s: Tensor) -> Tensor:
        return class_loss(s, target, None, None, -100).sum()

    fused: Any = vmap(grad(total))(scores)
    for lane in range(3):
        s = scores[lane].clone().requires_grad_()
        nn.functional.cross_entropy(s, target, reduction="sum").backward()  # type: ignore[no-untyped-call]
        assert s.grad is not None
        torch.testing.assert_close(fused[lane], s.grad, rtol=1e-12, atol=1e-12)


def test_an_impossible_class_makes_no_nan() -> None:
    scores = torch.tensor([[0.0, float("-inf"), 1.0]], dtype=torch.float64)
    assert class_loss(scores, torch.tensor([2]), None, None, -100).isfinite().all()
    assert class_loss(scores, torch.tensor([1]), None, None, -100).isinf().all()
