"""``examples/cifar10_cnn.py`` on small archives of the standard format."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import cifar10_cnn as example  # noqa: E402


def archive(n: int = 8) -> dict[str, bytes]:
    """Six files of n records: label, then red, green and blue planes, row by row."""
    drawn = np.random.default_rng(0)
    out = {}
    for name in (*example.TRAIN_FILES, example.TEST_FILE):
        rows = drawn.integers(0, 256, (n, example.RECORD_BYTES), dtype=np.uint8)
        rows[:, 0] = np.arange(n) % 10
        out[name] = rows.tobytes()
    return out


def unpacked(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)


def packed(folder: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, raw in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))


@pytest.mark.parametrize("kind", ["files", "folder", "archive"])
def test_it_reads_the_standard_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    files = archive()
    if kind == "archive":
        packed(tmp_path, files)
    else:
        unpacked(tmp_path if kind == "files" else tmp_path / "cifar-10-batches-bin", files)
    monkeypatch.setenv("CIFAR10", str(tmp_path))
    train, valid, test = example.data()
    assert [len(y) for _, y in (train, valid, test)] == [36, 4, 8]
    first = np.frombuffer(files["data_batch_1.bin"], dtype=np.uint8)
    assert train[0].shape == (36, 3, 32, 32) and train[0].min() >= -1 and train[0].max() <= 1
    # The second byte of a record is the red of the first pixel, the last one the blue of the last pixel.
    assert train[0][0, 0, 0, 0].item() == pytest.approx(first[1] / 127.5 - 1, abs=1e-6)
    assert train[0][0, 2, 31, 31].item() == pytest.approx(first[3072] / 127.5 - 1, abs=1e-6)
    assert torch.equal(test[1], torch.arange(8))


def test_it_trains_on_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    packed(tmp_path, archive(32))
    monkeypatch.setenv("CIFAR10", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["tune", str(EXAMPLES / "cifar10_cnn.py"), "--n-trials", "2", "--max-epochs", "1", "--json"]
    assert main([*words, "--reproducible"]) == 0  # nothing is timed and nothing compiled
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["event"] == "result" and result["test"]


def test_what_it_cannot_read_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFAR10", raising=False)
    with pytest.raises(FileNotFoundError, match="name the folder"):
        example.data()
    with pytest.raises(FileNotFoundError, match=r"holds neither cifar-10-binary.tar.gz nor"):
        example.read(tmp_path)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(FileNotFoundError, match=r"Python version of CIFAR-10, which is pickle and is not loaded"):
        example.read(tmp_path)
    files = archive()
    del files[example.TEST_FILE]
    packed(tmp_path, files)
    with pytest.raises(
        FileNotFoundError,
        match=r"tar.gz' has no cifar-10-batches-bin/test_batch.bin; download it again",
    ):
        example.read(tmp_path)
    with pytest.raises(ValueError, match=r"x.bin has 3072 bytes, which is no multiple of 3073"):
        example.records(b"\0" * 3072, "x.bin")
    with pytest.raises(ValueError, match=r"x.bin has a label of 11"):
        example.records(b"\x0b" + b"\0" * 3072, "x.bin")
