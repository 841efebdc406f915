"""Folders of class-named folders: what is read and refused, images and texts as tensors, the model that predicts."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.feature_extraction.text import TfidfVectorizer

import shoal
from shoal.cli import main
from shoal.errors import DataError, StorageError, UsageError
from shoal.folders import prepare_folder
from shoal.folders._files import read_folder
from shoal.folders._images import Images, learn_images
from shoal.folders._texts import learn_texts

QUICK: dict[str, Any] = {"n_trials": 3, "max_epochs": 3, "progress": False, "reproducible": True}


def images(root: Path, n: int = 20, mode: str = "L", size: tuple[int, int] = (8, 6)) -> Path:
    """Two classes that differ in which half is bright."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(("left", "right")):
        (root / name).mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 80, (size[1], size[0]))
            pixels[:, place * size[0] // 2 : (place + 1) * size[0] // 2] += 150
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(root / name / f"{i:03d}.png")
    return root


def texts(root: Path, n: int = 20) -> Path:
    """Two classes with words of their own among common ones."""
    rng = np.random.default_rng(0)
    for name, words in (("sea", ["fish", "wave", "salt"]), ("land", ["tree", "rock", "sand"])):
        (root / name).mkdir(parents=True)
        for i in range(n):
            line = [*rng.choice(words, 3), *rng.choice(["the", "and", "ein", "über"], 9)]
            (root / name / f"{i:03d}.txt").write_text(" ".join(line), encoding="utf-8")
    return root


# -- files ------------------------------------------------------------------------------------------------------------


def test_classes_are_folders_and_what_is_no_image_is_said(tmp_path: Path) -> None:
    root = images(tmp_path / "photos")
    (root / "left" / "deeper").mkdir()
    shutil.copy(root / "left" / "000.png", root / "left" / "deeper" / "x.PNG")
    (root / "left" / "notes.doc").touch()
    (root / "left" / ".hidden.png").touch()
    (root / "empty").mkdir()
    (root / ".git").mkdir()
    folder = read_folder(root)
    assert folder.classes == ("left", "right") and folder.kind == "images"
    assert np.bincount(folder.labels).tolist() == [21, 20]
    assert all(
        file.relative_to(root).parts[0] == folder.classes[k]
        for file, k in zip(folder.files, folder.labels, strict=True)
    )
    assert folder.notes == (
        "class 'empty' is left out: its folder has no images",
        "1 files are left out: they are no images",
    )


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere'"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no folders with images \(\.png"):
        read_folder(tmp_path)
    root = images(tmp_path / "few", n=9)
    with pytest.raises(DataError, match=r"has 18 images; at least 20 are needed"):
        read_folder(root)
    root = images(tmp_path / "one")
    shutil.rmtree(root / "right")
    with pytest.raises(DataError, match=r"must have a folder for each class, at least two; folders with images: left"):
        read_folder(root)
    root = texts(images(tmp_path / "mixed"))
    with pytest.raises(DataError, match=r"has 40 images and 40 texts; keep one kind"):
        read_folder(root)


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "size", "shape"),
    [
        ("L", (8, 6), (1, 6, 8)),
        ("RGB", (8, 6), (3, 6, 8)),
        ("RGBA", (64, 16), (3, 8, 32)),
        ("1", (40, 40), (1, 32, 32)),
        ("P", (4, 4), (3, 4, 4)),
    ],
)
def test_images_have_the_median_size_and_the_training_scale(
    tmp_path: Path, mode: str, size: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    folder = read_folder(images(tmp_path / "photos", mode=mode, size=size))
    learnt = learn_images(folder.files)
    assert learnt.shape == shape
    tensors, bad = learnt.apply(folder.files)
    assert not bad and tensors.shape == (40, *shape)
    assert abs(float(tensors.mean())) < 1e-4 and abs(float(tensors.std()) - 1) < 1e-3
    if mode == "L":
        pixels = np.asarray(Image.open(folder.files[3]), dtype=np.float32) / 255
        assert np.allclose(tensors[3, 0].numpy(), (pixels - learnt.mean) / learnt.std, atol=1e-5)


def test_sixteen_bits_are_not_cut_off(tmp_path: Path) -> None:
    values = np.linspace(0, 60_000, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    learnt = Images(8, 8, 1, 0.0, 1.0)
    found = learnt.apply([tmp_path / "deep.png"])[0][0, 0]
    assert np.allclose(found.numpy(), values / 60_000, atol=1 / 255)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\xff" * 30, b"not an image"])
def test_broken_images_are_left_out_and_said(tmp_path: Path, content: bytes) -> None:
    root = images(tmp_path / "photos")
    (root / "left" / "000.png").write_bytes(content)
    ready = prepare_folder(root)
    assert sum(len(part[1]) for part in (ready.train, ready.valid, ready.test)) == 39
    assert any("1 files cannot be read and are left out, such as" in note for note in ready.notes)


def test_no_image_at_all_is_refused(tmp_path: Path) -> None:
    root = images(tmp_path / "photos")
    for file in root.rglob("*.png"):
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"none of 24 images can be read, such as"):
        prepare_folder(root)


def test_missing_pillow_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.split(".")[0] == "PIL":
            raise ImportError
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"reading images needs Pillow: run `pip install 'shoal\[tabular\]'`"):
        learn_images([tmp_path / "x.png"])


# -- texts ------------------------------------------------------------------------------------------------------------


def test_texts_are_those_of_scikit_learns_tfidf(tmp_path: Path) -> None:
    folder = read_folder(texts(tmp_path / "texts"))
    learnt = learn_texts(folder.files[:30])
    oracle = TfidfVectorizer(max_features=2000).fit([file.read_text("utf-8") for file in folder.files[:30]])
    assert list(learnt.words) == list(oracle.get_feature_names_out())
    want = oracle.transform([file.read_text("utf-8") for file in folder.files]).toarray()
    assert np.allclose(learnt.apply(folder.files)[0].numpy(), want, atol=1e-6)


def test_encodings_of_texts_and_what_is_no_text(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.txt" for i in range(5)]
    for file, content in zip(
        files, ["über".encode(), "über".encode("cp1252"), "über".encode("utf-16"), b"a\0b", b""], strict=True
    ):
        file.write_bytes(content)
    learnt = learn_texts(files)
    found, bad = learnt.apply([*files, tmp_path / "gone.txt"])
    assert learnt.words == ("über",) and found[:, 0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0] and bad == [3, 5]
    with pytest.raises(DataError, match=r"none of 1 texts has a word in it, such as"):
        learn_texts(files[4:])


# -- the study --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of images and one of texts, each with its model."""
    path = tmp_path_factory.mktemp("studies")
    shoal.tune_folder(images(path / "photos"), storage=path / "photos.db", space={"channels": 4}, **QUICK)
    shoal.tune_folder(texts(path / "texts"), storage=path / "texts.db", space={"width": 16, "depth": 1}, **QUICK)
    return path


@pytest.mark.parametrize(("name", "space"), [("photos", {"channels": 4}), ("texts", {"width": 16, "depth": 1})])
def test_the_model_file_predicts_what_the_study_measured(studies: Path, name: str, space: dict[str, Any]) -> None:
    study = shoal.resume_folder(studies / f"{name}.db", studies / name, space=space, progress=False)
    model, ready = shoal.load_folder_model(studies / f"{name}.db"), prepare_folder(studies / name)
    assert study.model is not None and study.model_file == studies / f"{name}.model.safetensors"
    found = model.scores(ready.test[:1])
    assert np.allclose(found, study.model.scores(ready.test[:1]))
    accuracy = float(np.mean(found.argmax(1) == ready.test[1].numpy()))
    assert np.isclose(study.study.test_metrics["accuracy"], accuracy) and study.comparison is not None
    assert set(study.comparison.scores) == {"shoal", "linear model"}
    predicted = shoal.predict_folder(studies / f"{name}.model.safetensors", studies / name)
    assert list(predicted.columns)[:2] == ["file", "class"] and len(predicted) == 40
    assert np.allclose(predicted.iloc[:, 2:].sum(axis=1), 1)


def test_predicting_says_what_it_cannot(studies: Path, tmp_path: Path) -> None:
    model = shoal.load_folder_model(studies / "photos.db")
    shutil.copy(studies / "photos" / "left" / "000.png", tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    found, notes = model.predict_with_notes(tmp_path)
    assert found["file"].tolist() == [str(tmp_path / "a.png")] and "1 files cannot be read" in notes[0]
    assert len(model.predict(tmp_path / "a.png")) == 1
    with pytest.raises(DataError, match=r"none of 1 images can be read"):
        model.predict(tmp_path / "b.png")
    (tmp_path / "only").mkdir()
    with pytest.raises(DataError, match=r"has no images \(known endings: \.png"):
        model.predict(tmp_path / "only")


@pytest.mark.parametrize(
    ("name", "place", "to", "message"),
    [
        ("photos", ("kind",), "sounds", "'sounds' is neither 'images' nor 'texts'"),
        ("photos", ("network", "in_shape"), [1, 2], "the network takes images of shape (1, 2)"),
        ("photos", ("network", "kernel"), 4, "its network cannot be made (cnn(kernel=...) must be odd"),
        ("photos", ("network", "channels"), 10**6, "the network has channels=1000000, not 1 to 4096"),
        ("photos", ("preparation", "height"), 7, "its inputs or classes do not fit its network"),
        ("texts", ("preparation", "words"), ["a"], "its inputs or classes do not fit its network"),
        ("texts", ("network", "n_in"), 3, "its tensors are not those of the network it describes"),
    ],
)
def test_damaged_models_are_refused(
    studies: Path, tmp_path: Path, name: str, place: tuple[str, ...], to: Any, message: str
) -> None:
    with safe_open(studies / f"{name}.model.safetensors", framework="pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        facts = json.loads(file.metadata()["shoal_folder"])
    inner = facts
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = to
    save_file(state, tmp_path / "bad.safetensors", metadata={"shoal_folder": json.dumps(facts)})
    with pytest.raises(StorageError, match=re.escape(message)):
        shoal.load_folder_model(tmp_path / "bad.safetensors")
    with pytest.raises(StorageError, match="holds no model of such data"):
        shoal.load_table_model(studies / f"{name}.db")


def test_wrong_keywords_are_explained(studies: Path) -> None:
    with pytest.raises(UsageError, match=r"tune_folder\(\) has no keyword 'n_trails'. Did you mean 'n_trials'"):
        shoal.tune_folder(studies / "photos", n_trails=3)
    with pytest.raises(UsageError, match=r"resume_folder\(\) has no keyword 'seed'"):
        shoal.resume_folder(studies / "photos.db", studies / "photos", seed=3)


def test_a_folder_without_a_finished_trial_has_no_model(studies: Path) -> None:
    study = shoal.tune_folder(studies / "texts", **{**QUICK, "timeout_s": 1e-9})
    assert study.model is None and study.comparison is None and study.model_file is None


def test_folders_from_the_shell(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(studies / "texts", "texts")
    assert main(["tune", "texts/", "--n-trials", "2", "--max-epochs", "2", "--reproducible", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "study       texts.db" in out and "linear model" in out and "model       texts.model.safetensors" in out
    assert main(["resume", "texts.db", "texts", "--quiet"]) == 0
    assert main(["explain", "texts", "--n-trials", "2"]) == 0
    assert main(["predict", "texts.db", "texts"]) == 0
    assert capsys.readouterr().out.endswith("texts.predictions.csv\n")
    assert pd.read_csv("texts.predictions.csv")["class"].isin(["sea", "land"]).all()
    assert main(["tune", "texts", "--target", "class"]) == 2
    assert "The classes of a folder are its own folders." in capsys.readouterr().err
    Path("nothing").mkdir()
    assert main(["tune", "nothing"]) == 2
    assert "has no folders with images" in capsys.readouterr().err


def test_inputs_are_what_the_builders_take(studies: Path) -> None:
    ready = prepare_folder(studies / "photos")
    assert ready.train[0].shape[1:] == (1, 6, 8) and ready.train[0].dtype is torch.float32
    assert [len(part[1]) for part in (ready.train, ready.valid, ready.test)] == [24, 8, 8]
    assert ready.plan.counts == (12, 12)
