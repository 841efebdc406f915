"""The weights of the best few trials: kept, dropped, and written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from shoal.errors import StorageError
from shoal.weights import KEPT, WeightStore, weights_file


def state(number: int) -> dict[str, Tensor]:
    return {"a.weight": torch.full((2, 3), float(number)).T, "n": torch.tensor(number)}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("on_disk", [True, False])
def test_the_best_few_are_kept(tmp_path: Path, sign: float, on_disk: bool) -> None:
    store = WeightStore(tmp_path / "w" if on_disk else None, sign)
    values = [5.0, 3.0, 9.0, 1.0, 7.0, 3.0, 8.0, 2.0]
    for number, value in enumerate(values):
        store.offer(number, value, lambda number=number: state(number))  # type: ignore[misc]
    best = sorted(range(len(values)), key=lambda n: (sign * values[n], n))
    for place, number in enumerate(best):
        if place < KEPT:
            assert store.load(number)["n"] == number and store.load(number)["a.weight"].shape == (3, 2)
        else:
            with pytest.raises(StorageError, match=f"no weights are kept for trial {number}; kept: "):
                store.load(number)
    if on_disk:
        assert {p.name for p in (tmp_path / "w").iterdir()} == {f"trial_{n:06d}.safetensors" for n in best[:KEPT]}


def test_what_a_killed_process_had_begun_to_write_is_swept_away(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, 1.0)
    store.offer(3, 0.5, lambda: state(3))
    for name in (".tmpBduirb", "trial_000004.part", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    store.sweep()
    assert {p.name for p in tmp_path.iterdir()} == {weights_file(tmp_path, 3).name, "notes.txt"}
    WeightStore(tmp_path / "not there", 1.0).sweep()


def test_a_loser_is_not_even_copied() -> None:
    store = WeightStore(None, 1.0)
    for number in range(KEPT):
        store.offer(number, 0.0, lambda: {})

    def never() -> dict[str, Tensor]:
        raise AssertionError("a loser's weights were asked for")

    store.offer(99, 1.0, never)


def test_files_are_plain_safetensors_and_outlive_the_store(tmp_path: Path) -> None:
    WeightStore(tmp_path, 1.0).offer(3, 0.5, lambda: state(3))
    path = weights_file(tmp_path, 3)
    assert safetensors.torch.load_file(path)["n"] == 3
    again = WeightStore(tmp_path, 1.0, {3: (0.5, str(path))})
    assert again.load(3)["n"] == 3
    for number in range(10, 10 + KEPT):  # better ones push it out, file and all
        again.offer(number, 0.1, lambda: state(0))
    assert not path.exists()


@pytest.mark.parametrize(
    "error", [OSError, safetensors.SafetensorError]
)  # the latter is how safetensors reports the former
def test_a_crash_while_writing_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    store = WeightStore(tmp_path, 1.0)
    store.offer(3, 0.5, lambda: state(3))

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise error("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(StorageError, match=r"cannot write the weights of trial 3 to .*No space left"):
        store.offer(3, 0.4, lambda: state(4))
    assert safetensors.torch.load_file(weights_file(tmp_path, 3))["n"] == 3


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    path = weights_file(tmp_path, 0)
    store = WeightStore(tmp_path, 1.0, {0: (0.5, str(path))})
    with pytest.raises(StorageError, match=r"the weights of trial 0 cannot be read from"):
        store.load(0)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(StorageError, match=r"the weights of trial 0 cannot be read from"):
        store.load(0)


def test_a_changed_bit_in_a_tensor_is_found(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, 1.0)
    store.offer(3, 0.5, lambda: state(3))
    path = weights_file(tmp_path, 3)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(StorageError, match=r"is damaged: the weights of trial 3 are not those that were written"):
        store.load(3)


@pytest.mark.parametrize("values", [(0.5,), (0.5, 7.0)])
def test_weights_of_another_study_are_told_by_what_its_trial_was_judged(
    tmp_path: Path, values: tuple[float, ...]
) -> None:
    signs = (-1.0, 1.0)[: len(values)]
    theirs, ours = WeightStore(tmp_path / "theirs", signs), WeightStore(tmp_path / "ours", signs)
    theirs.offer(3, values, lambda: state(3))
    ours.offer(3, (0.25, *values[1:]), lambda: state(4))
    weights_file(tmp_path / "theirs", 3).replace(weights_file(tmp_path / "ours", 3))
    with pytest.raises(
        StorageError, match=r"of a trial 3 that was judged 0\.5.*, and this study's was judged 0\.25.*another study"
    ):
        ours.load(3)


@pytest.mark.parametrize(
    "facts", ["[]", "{", '{"trial": 3, "values": ["x"]}', '{"values": []}', '{"trial": 3, "values": 7}']
)
def test_what_a_file_says_of_itself_is_checked(tmp_path: Path, facts: str) -> None:
    path = weights_file(tmp_path, 3)
    store = WeightStore(tmp_path, 1.0, {3: (0.5, str(path))})
    safetensors.torch.save_file({}, path, metadata={"shoal": facts})
    with pytest.raises(StorageError, match="the weights of trial 3 cannot be read from"):
        store.load(3)


def test_a_file_of_an_earlier_version_names_its_trial_and_no_more(tmp_path: Path) -> None:
    path = weights_file(tmp_path, 3)
    safetensors.torch.save_file({"n": torch.tensor(3)}, path, metadata={"trial": "3"})
    assert WeightStore(tmp_path, 1.0, {3: (0.5, str(path))}).load(3)["n"] == 3
