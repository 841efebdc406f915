"""Data sets to tensors: what is taken, what is refused, and how splits are drawn."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from shoal.data import Datasets, Split, load
from shoal.errors import DataError, UsageError
from shoal.stages import telling

X, Y = torch.arange(40.0).reshape(20, 2), torch.arange(20) % 4
XY = (X, Y)


class Items(Dataset[Any]):
    """A map-style data set over a list of items; counts what was fetched."""

    def __init__(self, items: Sequence[object]) -> None:
        self.items = items
        self.fetched = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        self.fetched += 1
        item = self.items[index]
        return item() if callable(item) else item


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[int]:
        yield 0


class NoLength(Dataset[Any]):
    def __getitem__(self, index: int) -> float:
        return 0.0


class Doubled(TensorDataset):
    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        inputs, target = (tensor[index] for tensor in self.tensors)
        return 2 * inputs, target


class Image:
    """What PIL shows of itself to numpy."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self.__array_interface__ = pixels.__array_interface__


class Frame:
    """What pandas shows of itself to us."""

    def __getitem__(self, column: str) -> None: ...

    def to_numpy(self) -> None: ...


def boom() -> object:
    raise OSError("disk on fire")


def whole(source: object) -> Split:
    """The tensors of a source that is not split."""
    return load(source, valid=source).train


@pytest.mark.parametrize(
    "source",
    [
        XY,
        list(XY),
        (X.numpy(), Y.numpy()),
        (X.double().numpy(), Y.to(torch.int16)),
        (X.numpy(), Y.numpy().astype("uint8")),
        (X.numpy()[::-1][::-1], Y.numpy().astype(">i4")),
        Split(XY),
        TensorDataset(*XY),
        Subset(TensorDataset(*XY), range(20)),
        Items([(x, y) for x, y in zip(X, Y, strict=True)]),
        Items([[x.double().numpy(), int(y)] for x, y in zip(X, Y, strict=True)]),
        Items([(Image(x.numpy()), np.int32(y)) for x, y in zip(X, Y, strict=True)]),
        Subset(Items([(x, y) for x, y in zip(X, Y, strict=True)]), range(20)),
        Doubled(X / 2, Y),
    ],
    ids=lambda source: type(source).__name__,
)
def test_every_kind_of_source_gives_the_same_tensors(source: object) -> None:
    split = whole(source)
    assert split.n == 20
    for tensor, want in zip(split.tensors, XY, strict=True):
        assert torch.equal(tensor, want) and tensor.dtype is want.dtype


@pytest.mark.parametrize(
    ("source", "dtypes"),
    [
        (X, [torch.float32]),
        (X.double(), [torch.float64]),
        (X.double().numpy(), [torch.float32]),
        (X.numpy().astype("longdouble"), [torch.float32]),
        (X.numpy().astype("uint8"), [torch.uint8]),
        (X.numpy().astype("uint16"), [torch.int32]),
        ((X.byte(), X.half(), Y.bool()), [torch.uint8, torch.float16, torch.int64]),
        ((X, X.double()), [torch.float32, torch.float64]),
        (Items([0.5, 1.5]), [torch.float32]),
        (Items([(0.5, True), (1.5, False)]), [torch.float32, torch.int64]),
        (Items([(np.float64(0.5), np.float64(1.0))]), [torch.float32, torch.float32]),
    ],
)
def test_dtypes(source: object, dtypes: list[torch.dtype]) -> None:
    assert [tensor.dtype for tensor in whole(source).tensors] == dtypes


def test_numpy_floats_follow_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert whole((X.double().numpy(), X.numpy())).tensors[0].dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_tensors_come_without_gradient_and_contiguous() -> None:
    (tensor,) = whole(torch.zeros(3, 4, requires_grad=True).T).tensors
    assert not tensor.requires_grad and tensor.is_contiguous()


def test_a_tensor_data_set_is_taken_as_it_is() -> None:
    data = load(TensorDataset(*XY), valid=Subset(Subset(TensorDataset(*XY), [5, 3, 1]), [2, 0]))
    assert data.train.tensors[0].data_ptr() == X.data_ptr()
    assert data.valid.tensors[1].tolist() == [1, 1] and data.valid.tensors[0][:, 0].tolist() == [2.0, 10.0]


def test_to_moves_every_tensor() -> None:
    assert [tensor.device.type for tensor in Split(XY).to("meta").tensors] == ["meta", "meta"]


@pytest.mark.parametrize(
    ("valid", "test", "sizes"),
    [
        (None, None, (16, 4, None)),
        (0.5, None, (10, 10, None)),
        (0.3, 0.2, (10, 6, 4)),
        (XY, 0.25, (15, 20, 5)),
        (0.25, XY, (15, 5, 20)),
        (XY, XY, (20, 20, 20)),
        (np.float32(0.5), None, (10, 10, None)),
    ],
)
def test_sizes(valid: object, test: object, sizes: tuple[int, int, int | None]) -> None:
    data = load(XY, valid, test)
    assert (data.train.n, data.valid.n, data.test.n if data.test else None) == sizes


def test_the_default_fraction_may_be_chosen() -> None:
    assert load(XY, valid_default=0.4).valid.n == 8


def rows(split: Split | None) -> list[int]:
    """Which rows of X a split has: X[i, 0] is 2 i."""
    return [] if split is None else (split.tensors[0][:, 0] / 2).int().tolist()


@settings(deadline=None)
@given(
    classes=st.lists(st.integers(0, 5), min_size=6, max_size=80),
    valid=st.floats(0.1, 0.3),
    test=st.floats(0.1, 0.3),
    seed=st.integers(0, 2**32),
)
def test_parts_are_disjoint_complete_and_stratified(classes: list[int], valid: float, test: float, seed: int) -> None:
    target, n = torch.tensor(classes), len(classes)
    data = load((torch.arange(2.0 * n).reshape(n, 2), target), valid, test, seed=seed)
    parts = [rows(data.train), rows(data.valid), rows(data.test)]
    assert sorted(itertools.chain(*parts)) == list(range(n))
    assert [part == sorted(part) for part in parts] == [True] * 3
    assert (len(parts[1]), len(parts[2])) == (round(valid * n), round(test * n))
    counts = target.bincount(minlength=6)
    if bool((counts[counts > 0] >= 2).all()):
        shares = data.test.tensors[1].bincount(minlength=6) if data.test else counts
        assert bool(((shares - counts * len(parts[2]) / n).abs() < 1.0 + 1e-6).all())
        if n - int((counts > 0).sum()) >= len(parts[1]) + len(parts[2]):  # one of every class can stay behind
            assert bool((data.train.tensors[1].bincount(minlength=6)[counts > 0] > 0).all())


def test_a_split_depends_on_the_seed_alone() -> None:
    first, again, other = (load(XY, 0.5, seed=seed) for seed in (1, 1, 2))
    assert rows(first.valid) == rows(again.valid) != rows(other.valid)


def test_the_test_set_does_not_depend_on_the_size_of_valid() -> None:
    assert rows(load(XY, 0.2, 0.25).test) == rows(load(XY, 0.4, 0.25).test)


@pytest.mark.parametrize("target", [torch.arange(20), torch.randn(20), Y[:, None]], ids=["single", "float", "2-d"])
def test_a_target_without_classes_is_split_at_random(target: Tensor) -> None:
    data = load((X, target), 0.5)
    assert sorted(rows(data.train) + rows(data.valid)) == list(range(20))


def test_a_fraction_that_takes_nearly_all_may_take_whole_classes() -> None:
    data = load((X[:4], torch.tensor([0, 0, 1, 1])), 0.75)
    assert (data.train.n, data.valid.n) == (1, 3)


BIG = torch.arange(3 * 2**20, dtype=torch.float32).reshape(-1, 6)  # 12 MiB: only some rows are hashed


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (XY, (X.clone(), Y.clone()), True),
        (XY, TensorDataset(*XY), True),
        (XY, (X, Y.flip(0)), False),
        (XY, (X.double(), Y), False),
        (XY, (X.reshape(20, 1, 2), Y), False),
        (BIG, BIG.clone(), True),
        (BIG.reshape(-1)[1:], BIG.reshape(-1)[1:].clone(), True),
        (BIG, BIG.index_fill(0, torch.tensor([3]), 7.0), False),
        (torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16), True),
        (torch.zeros(3, dtype=torch.bool), torch.tensor([False, True, False]), False),
        (torch.zeros(3, dtype=torch.complex64), torch.zeros(3, dtype=torch.complex64), True),
    ],
)
def test_the_fingerprint_notices_changed_data(one: object, other: object, same: bool) -> None:
    assert (load(one, one).fingerprint == load(other, other).fingerprint) is same


def test_the_fingerprint_covers_every_split() -> None:
    prints = [load(XY, XY), load(XY, XY, XY), load(XY, (X + 1, Y)), load((X + 1, Y), XY), load(XY), load(XY, seed=1)]
    assert len({data.fingerprint for data in prints}) == 6


def hole(value: float) -> Tensor:
    return X.index_fill(0, torch.tensor([7, 9]), value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: load(()), "train is an empty tuple. Pass a map-style torch Dataset"),
        (lambda: load(Items([])), "train is empty: its length is 0"),
        (lambda: load(X[:0]), "train is empty: it has 0 samples"),
        (lambda: load(XY, Subset(TensorDataset(*XY), [])), "valid is empty: it has 0 samples"),
        (lambda: load(X[:, :0]), "train has shape (20, 0): its samples have no elements"),
        (lambda: load(torch.tensor(1.0)), "train is a single number; it must have one row per sample"),
        (lambda: load((X, Y[:5])), "their lengths are [20, 5]"),
        (lambda: load(Items([(X[0], 0), (X[0], 0), (X[:, 0], 0)])), "part 0 of the items of train must all have one "
         "shape: item 0 has (2,), item 2 has (20,)"),
        (lambda: load(Items([X[0], X])), "items of train must all have one shape: item 0 has (2,), item 1 has (20, 2). Pad"),
        (lambda: load(Items([X[0], X[0, :1]])), "item 1 has (1,). If these are sequences of different lengths, wrap all "
         "splits: shoal.Padded(data_set)"),
        (lambda: load(([X[0], X[0, :1]], Y)), "part 0 is of type list. Sequences of different lengths are padded by shoal.Padded"),
        (lambda: load(XY, (X[:, :1], Y)), "in the same way; sequences of different lengths are padded alike by shoal.Padded"),
        (lambda: load(Items([(X[0], 1), X[0]])), "as many parts of the same names: item 0 has 2, item 1 has 1"),
        (lambda: load(Items([0.5, 1])), "must all have one dtype: item 0 has torch.float32, item 1 has torch.int64"),
        (lambda: load(Items([()])), "train[0] is an empty tuple; an item must hold"),
        (lambda: load((hole(float("nan")), Y)), "train[0] must be finite, but 2 of 20 rows have NaN or inf; the first "
         "is row 7 (NaN). Drop these rows"),
        (lambda: load(XY, (X, hole(float("-inf")))), "valid[1] must be finite, but 2 of 20 rows have NaN or inf; the "
         "first is row 7 (inf)"),
        (lambda: load(np.array([[1.0], [1e300]])), "a number too large for torch.float32: scale it"),
        (lambda: load(Items([lambda: torch.rand(2)] * 9)), "train[0] was fetched twice and differed"),
        (lambda: load(XY, Items([lambda: (torch.rand(2), 0)])), "put the random part into Recipe(transform=...)"),
        (lambda: load(Endless()), "train is an IterableDataset, which has no length"),
        (lambda: load(XY, DataLoader(TensorDataset(*XY))), "valid is a DataLoader; Shoal makes its own batches. Pass "
         "loader.dataset instead"),
        (lambda: load(NoLength()), "train is of type NoLength without a length"),
        (lambda: load(Items([(X[0], "cat")])), "train[0][1] is str 'cat'; it must be a tensor, a numpy array or a "
         "number. Encode text as integers"),
        (lambda: load(Items([(X[0], None)])), "train[0][1] is None; it must be a tensor"),
        (lambda: load(Items([{"x": {"y": X[0]}}])), "train[0]['x'] is of type dict; it must be a tensor, a numpy array or "
         "a number. Flatten nested items"),
        (lambda: load(Items([{}])), "train[0] is an empty dict"),
        (lambda: load(Items([{0: X[0]}])), "train[0] is a dict whose keys must be strings; got int 0"),
        (lambda: load(Items([{"x": X[0], "y": 1}, {"x": X[0], "z": 1}])), "as many parts of the same names: item 0 has "
         "['x', 'y'], item 1 has ['x', 'z']"),
        (lambda: load(Items([{"x": X[0]}, {"x": X}])), "part 'x' of the items of train must all have one shape: item 0 has "
         "(2,), item 1 has (20, 2)"),
        (lambda: load({"x": X, "y": Y[:5]}), "their lengths are [20, 5]"),
        (lambda: load({"x": hole(float("nan")), "y": Y}), "train['x'] must be finite"),
        (lambda: load({"x": X, "y": Y - 1}), "train['y'] is an integer target, so it must hold classes"),
        (lambda: load({"x": X, "y": Y.tolist()}), "train is a dict, so each of its parts must be a tensor or a numpy array "
         "with one row per sample; 'y' is of type list"),
        (lambda: load({"x": X, "y": Y}, {"x": X, "z": Y}), "valid must have the same keys as train: train is a dict of "
         "['x', 'y'], valid is a dict of ['x', 'z']"),
        (lambda: load({"x": X, "y": Y}, XY), "train is a dict of ['x', 'y'], valid is no dict"),
        (lambda: load({"x": X, "y": Y}, {"x": X[:, :1], "y": Y}), "valid['x'] must be like train['x']: items of shape (2,)"),
        (lambda: load({}), "train is an empty dict"),
        (lambda: load(Items([(X[0], [1, 2])])), "train[0][1] is of type list; it must be"),
        (lambda: load(Items([boom])), "train[0] could not be fetched: OSError: disk on fire"),
        (lambda: load(np.array(["a", "b"])), "train is a numpy array of dtype <U1; it must hold numbers"),
        (lambda: load((X, np.array([None] * 20))), "train[1] is a numpy array of dtype object; it must hold numbers"),
        (lambda: load((X, [1, 2])), "part 1 is of type list"),
        (lambda: load("data.csv"), "train is str 'data.csv', which is no data set"),
        (lambda: load(None), "train is None, which is no data set"),
        (lambda: load(0.5), "train is float 0.5, which is no data set"),
        (lambda: load(Frame()), "train is of type Frame; pass inputs and targets apart"),
        (lambda: load(X.to_sparse()), "train is a sparse or nested tensor; it must be dense: use .to_dense()"),
        (lambda: load(Items([X[0].to_sparse()])), "train[0] is a sparse or nested tensor"),
        (lambda: load(XY, 0.0), "valid as a number is a fraction of train strictly between 0 and 1; got 0.0"),
        (lambda: load(XY, 1), "valid as a number is a fraction of train strictly between 0 and 1; got 1"),
        (lambda: load(XY, True), "valid as a number is a fraction of train strictly between 0 and 1; got True"),
        (lambda: load(XY, XY, float("nan")), "test as a number is a fraction of train strictly between 0 and 1; got "
         "nan"),
        (lambda: load(XY, 0.01), "splitting 20 samples by valid=0.01 leaves valid with 0"),
        (lambda: load(XY, 0.5, 0.5), "splitting 20 samples by valid=0.5, test=0.5 leaves train with 0"),
        (lambda: load(XY, 0.9, 0.9), "leaves train with 0; every split needs at least one"),
        (lambda: load(XY, X), "valid must have as many tensors as train: train has 2, valid has 1"),
        (lambda: load(XY, XY, (X[:, :1], Y)), "test[0] must be like train[0]: items of shape (2,) and torch.float32; "
         "got (1,) and torch.float32. Prepare all splits in the same way"),
        (lambda: load(XY, (X.double(), Y)), "got (2,) and torch.float64. Prepare all splits in the same way"),
        (lambda: load((X, Y - 1)), "5 rows are negative; the first is row 0 with -1. Renumber the classes from 0"),
    ],
)  # fmt: skip
def test_bad_data_is_refused_with_advice(make: Callable[[], Datasets], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_a_seed_that_is_none_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="seed must be a whole number, 0 or more; got"):
        load(XY, seed=seed)


def test_ignored_targets_are_no_classes_and_no_error() -> None:
    assert whole((X, Y.masked_fill(Y == 0, -100))).tensors[1].min() == -100


def test_a_data_set_is_read_once_beside_the_check_for_randomness() -> None:
    items = Items([torch.zeros(2)] * 1000)
    load(items, valid=0.5)
    assert items.fetched <= 1000 + 2 * 32 + 1


def test_data_frames_are_tables_of_numbers() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": X[:, 0].double(), "b": Y.numpy(), "c": Y.numpy() > 1, "y": Y.numpy()})
    inputs, target = whole((frame.drop(columns="y"), frame["y"])).tensors
    assert inputs.dtype is torch.float32 and target.dtype is torch.int64 and torch.equal(target, Y)
    assert torch.equal(inputs, torch.stack([X[:, 0], Y.float(), (Y > 1).float()], dim=1))
    assert whole((frame[["b", "y"]], frame["y"])).tensors[0].dtype is torch.int64


@pytest.mark.parametrize("column", [["x", "y"], ["2020-01-01", None], [None, 1.5]])
def test_columns_that_are_no_numbers_are_refused_by_name(column: list[object]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"good": [1.0, 2.0], "bad": pandas.Series(column, dtype=object)})
    with pytest.raises(DataError, match=re.escape("column 'bad' of train[0] has dtype object, and must hold numbers")):
        load((frame, frame["good"]))
    with pytest.raises(DataError, match=re.escape("train[1] has dtype object, and must hold numbers without gaps")):
        load((frame[["good"]], frame["bad"]))
    with pytest.raises(DataError, match=re.escape("train[0] is a data frame without columns")):
        load((frame[[]], frame["good"]))


def test_sparse_matrices_are_refused_with_advice() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for source, where in ((sparse.csr_matrix(X), "train"), ((sparse.csr_array(X), Y), "train[0]")):
        with pytest.raises(DataError, match=re.escape(f"{where} is a sparse matrix of scipy") + ".*use .toarray()"):
            load(source)


def test_a_mapped_file_is_not_read_into_memory(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", X.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    tensor = whole((mapped, Y)).tensors[0]
    assert torch.equal(tensor, X) and tensor.data_ptr() == mapped.ctypes.data


def test_dicts_are_read_by_name_and_the_target_is_put_last() -> None:
    data = load(Items([{"label": i % 4, "x": X[i], "ids": torch.tensor(i, dtype=torch.int32)} for i in range(20)]), 0.5)
    assert data.train.names == ("x", "ids", "label") and data.train.form.has_target
    assert [t.dtype for t in data.train.tensors] == [torch.float32, torch.int32, torch.int64]
    assert data.train.target is data.train.tensors[2] and torch.equal(data.train.target, data.train.tensors[1] % 4)
    columns = load(
        {"x": X.half(), "flag": Y > 1, "other": Y.short()}, {"other": Y.short(), "x": X.half(), "flag": Y > 1}
    )
    assert columns.valid.names == columns.train.names == ("x", "flag", "other") and columns.train.target is None
    assert [t.dtype for t in columns.train.tensors] == [torch.float16, torch.bool, torch.int16]
    assert columns.train.to("meta").names == columns.train.names
    assert columns.fingerprint != load({"z": X.half(), "flag": Y > 1, "other": Y.short()}).fingerprint


def test_items_may_name_their_parts_in_any_order() -> None:
    data = whole(Items([{"x": X[0], "y": 1}, {"y": 0, "x": X[1]}]))
    assert data.tensors[1].tolist() == [1, 0] and torch.equal(data.tensors[0], X[:2])


def test_two_names_for_a_target_name_none() -> None:
    assert whole({"x": X, "label": Y, "target": Y}).target is None


def test_data_beyond_the_limit_of_memory_lie_in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal import memory

    mapped: list[int] = []
    plain = torch.from_file

    def seen(*args: Any, **kwargs: Any) -> Any:
        mapped.append(kwargs["size"])
        return plain(*args, **kwargs)

    monkeypatch.setattr(memory, "limit_bytes", lambda: 100)
    monkeypatch.setattr(memory, "_CHUNK_BYTES", 64)
    monkeypatch.setattr(torch, "from_file", seen)
    items = Items([(X[i], Y[i]) for i in range(20)])
    with telling(lambda stage: None):
        data = load(items, 0.25)
    assert mapped == [40, 20, 30, 15] and items.fetched <= 20 + 2 * 32 + 1
    monkeypatch.undo()
    assert data.fingerprint == load(XY, 0.25).fingerprint
