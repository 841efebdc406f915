"""Sequences of different lengths: padded once, their lengths beside them, and read in lanes as alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn, optim
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import shoal
from lanes_helpers import assert_same_trail, sign, specs_of, train_fused, train_solo, work_of
from shoal import Padded
from shoal.data import Datasets, load
from shoal.errors import DataError, UsageError
from shoal.recipe import Recipe

LENGTHS = [3, 1, 5, 2, 4, 4]
TEXTS = [torch.arange(1, n + 1) * 10 + k for k, n in enumerate(LENGTHS)]
Y = torch.tensor([0, 1, 0, 1, 0, 1])
ITEMS = list(zip(TEXTS, Y.tolist(), strict=True))


def whole(source: Any) -> Any:
    return load(source, source).train


@pytest.mark.parametrize("source", [ITEMS, (TEXTS, Y), ([t.tolist() for t in TEXTS], Y.numpy())])
def test_items_and_columns_are_padded_as_torch_pads(source: Any) -> None:
    words, lengths, target = whole(Padded(source, value=7)).tensors
    assert torch.equal(words, pad_sequence(TEXTS, batch_first=True, padding_value=7))
    assert lengths.tolist() == LENGTHS and lengths.dtype is torch.int64 and torch.equal(target, Y)


def test_all_splits_are_padded_to_the_longest_of_them() -> None:
    data = load(Padded(ITEMS[:2]), Padded(ITEMS[2:3]), Padded(ITEMS[3:]))
    assert data.test is not None
    assert [s.tensors[0].shape[1] for s in (data.train, data.valid, data.test)] == [5, 5, 5]
    drawn = load(Padded(ITEMS), 0.5, seed=1)
    assert drawn.train.tensors[0].shape == drawn.valid.tensors[0].shape == (3, 5)


def test_what_is_longer_than_asked_for_is_cut() -> None:
    words, lengths, _ = whole(Padded(ITEMS, length=2)).tensors
    assert words[2].tolist() == TEXTS[2][:2].tolist() and lengths.tolist() == [2, 1, 2, 2, 2, 2]
    assert whole(Padded(ITEMS, length=9)).tensors[0].shape == (6, 9)


def test_dicts_name_their_lengths_and_tags_are_ignored_beyond_them() -> None:
    items = [{"label": t % 3, "word": t, "pixels": torch.ones(len(t), 2), "age": 3.0} for t in TEXTS]
    split = whole(Padded(items))
    assert split.names == ("word", "word_lengths", "pixels", "pixels_lengths", "age", "label")
    assert [tuple(t.shape) for t in split.tensors] == [(6, 5), (6,), (6, 5, 2), (6,), (6,), (6, 5)]
    assert split.target[1].tolist() == [(11 % 3), -100, -100, -100, -100]
    assert whole(Padded((TEXTS, [t % 3 for t in TEXTS]))).tensors[-1][1, 1] == -100
    assert whole(Padded(items, lengths=False)).names == ("word", "pixels", "age", "label")
    assert len(whole(Padded(items, parts=("word", "pixels", "label"), length=5)).tensors) == 6


def test_one_part_alone_is_a_sequence_without_a_target() -> None:
    split = whole(Padded([(t,) for t in TEXTS]))
    assert [tuple(t.shape) for t in split.tensors] == [(6, 5), (6,)]


class Reader(nn.Module):
    """Embeds words and judges by the state after the last of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(60, 4), nn.Linear(6, 2)
        self.layer: nn.Module = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](4, 6, batch_first=True)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.words(words), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, state = self.layer(packed)
        last: Tensor = state[0] if isinstance(self.layer, nn.LSTM) else state
        out: Tensor = self.head(last[0])
        return out


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_packed_sequences_train_in_lanes_as_alone(kind: str) -> None:
    def define(trial: Any) -> Recipe:
        model = Reader(kind).double()
        return Recipe(model, optim.Adam(model.parameters(), lr=trial.params["lr"]), nn.CrossEntropyLoss(), 4)

    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 60, (1 + 7 * k % 9,), generator=generator) for k in range(26)]
    source = Padded((texts, torch.arange(26) % 2))
    work = work_of(load(source, 0.3), "accuracy")
    specs = specs_of([{"lr": 0.01}, {"lr": 0.05}])
    assert len({sign(define, spec, work).key for spec in specs}) == 1
    fused = train_fused(define, specs, work, 2)
    for spec in specs:
        assert_same_trail(fused[spec.number], train_solo(define, spec, work, 2), 1e-10)


def test_a_tagger_tunes_on_dicts_of_sequences() -> None:
    def define(trial: Any) -> Recipe:
        class Tagger(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.words, self.head = nn.Embedding(60, 4), nn.Linear(4, 3)

            def forward(self, word: Tensor, word_lengths: Tensor) -> Tensor:
                out: Tensor = self.head(self.words(word)).transpose(1, 2)  # (q, classes, steps)
                return out

        model = Tagger()
        optimizer = optim.Adam(model.parameters(), lr=trial.suggest_float("lr", 1e-3, 1e-1))
        return Recipe(model, optimizer, nn.CrossEntropyLoss(), 2)

    items = [{"word": t, "label": t % 3} for t in TEXTS]
    study = shoal.tune(
        define,
        train=Padded(items),
        valid=Padded(items),
        metric="accuracy",
        n_trials=2,
        max_epochs=1,
        reproducible=True,
        progress=False,
    )
    assert not any(event.kind == "solo" for event in study.record.events)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: whole(Padded((torch.ones(4, 2), Y[:4]))), "all items of train, valid have one length, so that there is nothing "
         "to pad. Leave Padded out, or say which parts are sequences"),
        (lambda: load(Padded(ITEMS), ITEMS), "train is Padded, and valid is not. Wrap all splits in shoal.Padded(...)"),
        (lambda: load(Padded(ITEMS), Padded(ITEMS, value=1)), "valid must be Padded as train is: with the same value"),
        (lambda: whole(Padded([*ITEMS, (torch.tensor([]).long(), 1)])), "item 6 of train[0] is a sequence of no steps"),
        (lambda: whole(Padded(ITEMS, parts=(1,))), "train[1] is a single number and no sequence; leave it out of parts"),
        (lambda: whole(Padded([])), "train is empty: its length is 0"),
        (lambda: whole(Padded([(torch.ones(2, 3), 0), (torch.ones(3, 4), 0)])), "part 0 of the items of train must all have one "
         "shape: item 0 has (2, 3), item 1 has (3, 4). Pad, crop or resize them"),
        (lambda: whole(Padded((TEXTS, Y[:2]))), "the columns of train must have one row per sample, but their lengths are [6, 2]"),
        (lambda: whole(Padded((TEXTS, 3))), "train[1] is int 3; it must be a list of sequences, a tensor or an array"),
        (lambda: whole(Padded("texts.csv")), "train is Padded(str 'texts.csv'), which has no items to pad"),
        (lambda: whole(Padded(([[[1], [1, 2]], [[3]]], Y[:2]))), "train[0][0] is a list whose rows differ in length"),
        (lambda: whole(Padded((["a b", "c"], Y[:2]))), "train[0][0] is str 'a b'; it must be a tensor"),
    ],
)  # fmt: skip
def test_what_cannot_be_padded_is_said(make: Callable[[], Datasets], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Padded(ITEMS, value="0"), "Padded(value=...) must be a number, not '0'"),  # type: ignore[arg-type]
        (lambda: Padded(ITEMS, length=0), "Padded(length=...) must be a whole number of at least 1, or None; got 0"),
        (lambda: Padded(ITEMS, parts="words"), "Padded(parts=...) must be positions or names of parts"),
        (
            lambda: whole(Padded(ITEMS, parts=("words",))),
            "Padded(parts=...) names 'words', but the parts of an item are [0, 1]",
        ),
        (lambda: whole(Padded(ITEMS, value=0.5)), "Padded(value=0.5) cannot pad sequences of torch.int64"),
    ],
)
def test_padding_that_makes_no_sense_is_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make()
