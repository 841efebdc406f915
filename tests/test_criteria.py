"""Known criteria, taken apart into sums over samples, against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lanes_helpers import made
from shoal.lanes.criteria import criterion_key, criterion_values, denominators, is_known, numerators, used

WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.5], dtype=torch.float64)
N = 12


def classes(*rest: int) -> Tensor:
    return torch.randint(0, 5, (N, *rest), generator=torch.Generator().manual_seed(2))


def some_ignored(*rest: int, index: int = -100) -> Tensor:
    y = classes(*rest)
    y.view(-1)[::3] = index
    return y


def probabilities(*rest: int) -> Tensor:
    return made(N, 5, *rest, seed=4).softmax(1)


CASES: dict[str, tuple[Callable[[str], nn.Module], Tensor, Tensor]] = {
    "mse": (lambda r: nn.MSELoss(reduction=r), made(N), made(N, seed=1)),
    "mse 3d": (lambda r: nn.MSELoss(reduction=r), made(N, 3, 2), made(N, 3, 2, seed=1)),
    "l1": (lambda r: nn.L1Loss(reduction=r), made(N, 3), made(N, 3, seed=1)),
    "smooth l1": (lambda r: nn.SmoothL1Loss(reduction=r, beta=0.3), made(N, 3), made(N, 3, seed=1)),
    "huber": (lambda r: nn.HuberLoss(reduction=r, delta=0.4), made(N, 3), made(N, 3, seed=1)),
    "bce": (lambda r: nn.BCELoss(reduction=r), made(N, 2).sigmoid(), (made(N, 2, seed=1) > 0).double()),
    "bce logits": (lambda r: nn.BCEWithLogitsLoss(reduction=r), made(N, 1), (made(N, 1, seed=1) > 0).double()),
    "ce": (lambda r: nn.CrossEntropyLoss(reduction=r), made(N, 5), classes()),
    "ce weight": (lambda r: nn.CrossEntropyLoss(WEIGHT, reduction=r), made(N, 5), classes()),
    "ce ignored": (lambda r: nn.CrossEntropyLoss(reduction=r), made(N, 5), some_ignored()),
    "ce ignore a class": (lambda r: nn.CrossEntropyLoss(reduction=r, ignore_index=1), made(N, 5), classes()),
    "ce ignore 255, weight": (
        lambda r: nn.CrossEntropyLoss(WEIGHT, reduction=r, ignore_index=255),
        made(N, 5),
        some_ignored(index=255),
    ),
    "ce smoothing": (lambda r: nn.CrossEntropyLoss(reduction=r, label_smoothing=0.2), made(N, 5), classes()),
    "ce all": (
        lambda r: nn.CrossEntropyLoss(WEIGHT, reduction=r, label_smoothing=0.2, ignore_index=3),
        made(N, 5),
        classes(),
    ),
    "ce images": (lambda r: nn.CrossEntropyLoss(reduction=r), made(N, 5, 3, 2), classes(3, 2)),
    "ce images all": (
        lambda r: nn.CrossEntropyLoss(WEIGHT, reduction=r, label_smoothing=0.1),
        made(N, 5, 4),
        some_ignored(4),
    ),
    "ce probabilities": (lambda r: nn.CrossEntropyLoss(reduction=r), made(N, 5), probabilities()),
    "ce probabilities all": (
        lambda r: nn.CrossEntropyLoss(WEIGHT, reduction=r, label_smoothing=0.3),
        made(N, 5),
        probabilities(),
    ),
    "ce probabilities, images": (lambda r: nn.CrossEntropyLoss(reduction=r), made(N, 5, 3), probabilities(3)),
    "bce weight": (
        lambda r: nn.BCELoss(reduction=r, weight=WEIGHT),
        made(N, 5).sigmoid(),
        (made(N, 5, seed=1) > 0).double(),
    ),
    "bce logits weights": (
        lambda r: nn.BCEWithLogitsLoss(reduction=r, weight=WEIGHT, pos_weight=WEIGHT.flip(0)),
        made(N, 5),
        (made(N, 5, seed=1) > 0).double(),
    ),
    "bce logits, one weight": (
        lambda r: nn.BCEWithLogitsLoss(reduction=r, weight=torch.tensor([0.3])),
        made(N),
        (made(N, seed=1) > 0).double(),
    ),
    "smooth l1, beta 0": (lambda r: nn.SmoothL1Loss(reduction=r, beta=0.0), made(N, 3), made(N, 3, seed=1)),
    "poisson": (lambda r: nn.PoissonNLLLoss(reduction=r), made(N, 2), made(N, 2, seed=1).abs().round()),
    "poisson full": (
        lambda r: nn.PoissonNLLLoss(reduction=r, log_input=False, full=True),
        made(N, 2).exp(),
        made(N, 2, seed=1).abs().mul(3).round(),
    ),
    "kl": (lambda r: nn.KLDivLoss(reduction=r), made(N, 5).log_softmax(1), probabilities()),
    "kl log": (lambda r: nn.KLDivLoss(reduction=r, log_target=True), made(N, 5).log_softmax(1), probabilities().log()),
    "kl batchmean": (
        lambda r: nn.KLDivLoss(reduction="batchmean" if r == "mean" else r),
        made(N, 5).log_softmax(1),
        probabilities(),
    ),
    "soft margin": (lambda r: nn.SoftMarginLoss(reduction=r), made(N, 3), made(N, 3, seed=1).sign()),
    "hinge embedding": (
        lambda r: nn.HingeEmbeddingLoss(reduction=r, margin=0.7),
        made(N, 3),
        made(N, 3, seed=1).sign(),
    ),
    "multi-label soft margin": (
        lambda r: nn.MultiLabelSoftMarginLoss(WEIGHT, reduction=r),
        made(N, 5),
        (made(N, 5, seed=1) > 0).double(),
    ),
    "multi-label soft margin, pixels": (
        lambda r: nn.MultiLabelSoftMarginLoss(reduction=r),
        made(N, 2, 5),
        (made(N, 2, 5, seed=1) > 0).double(),
    ),
    "multi margin": (lambda r: nn.MultiMarginLoss(reduction=r, margin=0.8), made(N, 5), classes()),
    "multi margin squared": (
        lambda r: nn.MultiMarginLoss(2, weight=WEIGHT, reduction=r),
        made(N, 5),
        classes(),
    ),
    "nll": (lambda r: nn.NLLLoss(reduction=r), made(N, 5).log_softmax(1), classes()),
    "nll weight": (lambda r: nn.NLLLoss(WEIGHT, reduction=r, ignore_index=2), made(N, 5, 2).log_softmax(1), classes(2)),
}


@pytest.mark.filterwarnings(
    "ignore:reduction. 'mean' divides the total loss:UserWarning"
)  # what KLDivLoss says of itself
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_sums_over_samples_give_torchs_value_and_gradient(name: str, reduction: str) -> None:
    make, out, target = CASES[name]
    criterion = make(reduction)
    assert is_known(criterion)
    a, b = out.clone().requires_grad_(), out.clone().requires_grad_()
    expected: Tensor = criterion(a, target)
    expected.backward()  # type: ignore[no-untyped-call]
    total = denominators(criterion, target).sum().item() if reduction == "mean" else 1.0
    assert total > 0
    # In three parts, as micro-batches come.
    values = criterion_values(criterion)
    for part in torch.split(torch.arange(N), [5, 4, 3]):
        per_sample = numerators(criterion, b[part], target[part], values)
        assert per_sample.shape == (len(part),)
        (per_sample / total).sum().backward()  # type: ignore[no-untyped-call]
    sums = numerators(criterion, out, target, values).sum() / total
    torch.testing.assert_close(sums, expected.detach(), rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(b.grad, a.grad, rtol=1e-12, atol=1e-15)


class Own(nn.CrossEntropyLoss):
    pass


@pytest.mark.parametrize(
    "criterion",
    [
        Own(),
        nn.CrossEntropyLoss(reduction="none"),
        nn.KLDivLoss(reduction="none"),
        nn.MSELoss(reduction="batchmean"),
        nn.TripletMarginLoss(),
        nn.GaussianNLLLoss(),
        nn.CosineEmbeddingLoss(),
    ],
    ids=lambda c: type(c).__name__,
)
def test_other_criteria_are_left_whole(criterion: nn.Module) -> None:
    assert not is_known(criterion)


def test_a_criterion_with_code_of_its_own_is_left_whole() -> None:
    hooked, patched = nn.MSELoss(), nn.MSELoss()
    hooked.register_forward_hook(lambda module, args, out: out * 2)
    patched.forward = lambda input, target: (input - target).abs().sum()  # type: ignore[method-assign]
    early = nn.MSELoss()
    early.register_forward_pre_hook(lambda module, args: None)
    assert (
        not is_known(early) and not is_known(hooked) and not is_known(patched) and not is_known(nn.functional.mse_loss)
    )


def test_shapes_that_torch_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"MSELoss got outputs of shape \(4, 1\) and targets of shape \(4,\)"):
        numerators(nn.MSELoss(), made(4, 1), made(4), {})


def test_an_ignored_sample_weighs_nothing() -> None:
    assert denominators(nn.CrossEntropyLoss(ignore_index=1), torch.tensor([0, 1, 2])).tolist() == [1.0, 0.0, 1.0]


def test_a_weight_per_sample_of_a_batch_is_refused() -> None:
    criterion = nn.BCEWithLogitsLoss(weight=torch.ones(4))
    with pytest.raises(ValueError, match=r"BCEWithLogitsLoss has a weight of shape \(4,\) for outputs of shape \(4,\)"):
        numerators(criterion, made(4), (made(4) > 0).double(), criterion_values(criterion))


DISTANCES: list[nn.Module] = [
    nn.MSELoss(),
    nn.L1Loss(),
    nn.SmoothL1Loss(beta=0.3),
    nn.SmoothL1Loss(beta=0.0),
    nn.HuberLoss(delta=0.4),
    nn.HuberLoss(delta=2.0),
]


def test_losses_of_a_difference_are_computed_side_by_side() -> None:
    out, target = made(N, 3), made(N, 3, seed=1)
    out[0] = target[0]  # a difference of nothing, and a large one
    out[1] = 1e30
    assert len({repr(criterion_key(criterion)) for criterion in DISTANCES}) == 1
    lanes = {
        name: torch.stack([criterion_values(criterion)[name] for criterion in DISTANCES])
        for name in criterion_values(DISTANCES[0])
    }
    uses = used(DISTANCES[0], lanes)
    assert uses == {"loss.kind 0", "loss.kind 1", "loss.kind 2", "loss.kind 3"}
    for k, criterion in enumerate(DISTANCES):
        a, b = out.clone().requires_grad_(), out.clone().requires_grad_()
        own = {name: value[k] for name, value in lanes.items()}
        (numerators(DISTANCES[0], a, target, own, uses).sum() / out.numel()).backward()  # type: ignore[no-untyped-call]
        criterion(b, target).backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-13, atol=0.0)


@pytest.mark.parametrize(
    ("criteria", "uses"),
    [
        ([nn.CrossEntropyLoss(), nn.CrossEntropyLoss()], set()),
        ([nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)], {"loss.label_smoothing"}),
        ([nn.CrossEntropyLoss(), nn.CrossEntropyLoss(WEIGHT)], {"loss.weight"}),
        ([nn.NLLLoss(torch.ones(5)), nn.NLLLoss()], set()),
        ([nn.HuberLoss(delta=2.0), nn.HuberLoss(delta=2.0)], set()),
        ([nn.HuberLoss(delta=2.0), nn.HuberLoss(delta=1.0)], {"loss.kind 3"}),
        ([nn.MSELoss(), nn.L1Loss()], {"loss.kind 0", "loss.kind 1"}),
        ([nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss()], set()),
        ([nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))], {"loss.pos_weight"}),
    ],
)
def test_only_what_some_lane_uses_is_computed(criteria: list[nn.Module], uses: set[str]) -> None:
    assert len({repr(criterion_key(criterion)) for criterion in criteria}) == 1
    found = [criterion_values(criterion) for criterion in criteria]
    lanes = {
        name: torch.stack([v[name].expand(5 if name == "loss.weight" else v[name].shape) for v in found])
        for name in found[0]
    }
    assert used(criteria[0], lanes) == uses


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.MSELoss(), nn.MSELoss(reduction="sum")),
        (nn.CrossEntropyLoss(), nn.NLLLoss()),
        (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(ignore_index=0)),
        (nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss(pos_weight=torch.ones(2))),
        (nn.PoissonNLLLoss(), nn.PoissonNLLLoss(full=True)),
        (nn.MSELoss(), nn.PoissonNLLLoss()),
    ],
)
def test_what_is_no_lane_value_tells_criteria_apart(one: nn.Module, other: nn.Module) -> None:
    assert criterion_key(one) != criterion_key(other)
