"""Files hold data and never code, and whatever a file holds, reading it ends well or in a clear error."""

from __future__ import annotations

import ast
import gzip
import json
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fuzz
from shoal.errors import DataError, StorageError
from shoal.lanes.native._build import _is_signed
from shoal.storage import StudyStore, load_study
from shoal.tabular import _read, load_table_model, read_table
from shoal.weights import WeightStore, weights_file

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for name in ("src", "examples", "benchmarks") for path in (ROOT / name).rglob("*.py"))

# Modules that run, or may run, what they load; and the one place for each that may import it, with the reason.
RUNS = ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle", "yaml")
ALLOWED_IMPORTS = {
    # Whether an exception can cross the pipe between a process and its own fork, which multiprocessing pickles.
    ("src/shoal/lanes/workers.py", "pickle"),
}
ALLOWED_CALLS = {
    ("src/shoal/lanes/graph.py", "exec"),  # functions that are written out of a traced graph, in this process
    ("src/shoal/lanes/graph.py", "compile"),
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_that_is_loaded_can_run(path: Path) -> None:
    here = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            for name in names:
                assert name.split(".")[0] not in RUNS or (here, name) in ALLOWED_IMPORTS, (
                    f"{here}:{node.lineno}: {name}"
                )
        if isinstance(node, ast.Call):
            check_call(here, node)


def check_call(here: str, node: ast.Call) -> None:
    keywords = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
    name = ast.unparse(node.func)
    where = f"{here}:{node.lineno}: {name}"
    if isinstance(node.func, ast.Name) and name in ("eval", "exec", "compile"):
        assert (here, name) in ALLOWED_CALLS, where
    if name == "torch.load":
        assert keywords.get("weights_only") is True, f"{where} without weights_only=True"
    if name in ("torch.save", "torch.jit.load", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle"):
        raise AssertionError(where)
    if name in ("np.load", "numpy.load"):
        assert keywords.get("allow_pickle") is False, f"{where} without allow_pickle=False"
    if name.rpartition(".")[2] in ("extractall", "unpack_archive"):
        raise AssertionError(f"{where} writes to where an archive says")
    assert keywords.get("shell") is not True, f"{where} with a shell"


@pytest.mark.parametrize(
    "code",
    ["torch.load(path)", "np.load(path)", "eval(text)", "archive.extractall()", "subprocess.run(words, shell=True)"],
)
def test_that_test_would_notice(code: str) -> None:
    call = ast.parse(code).body[0]
    assert isinstance(call, ast.Expr) and isinstance(call.value, ast.Call)
    with pytest.raises(AssertionError):
        check_call("src/shoal/cli.py", call.value)


@pytest.fixture(scope="module")
def fuzz_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_damaged_files_end_in_a_clear_error(name: str, fuzz_folder: Path) -> None:
    came = list(fuzz.fuzz(name, fuzz_folder / name.replace(" ", "-"), seconds=3.0, at_least=8))  # a minute in all
    assert [str(finding) for finding in came if isinstance(finding, fuzz.Finding)] == []
    # Pictures that cannot be read are left out and said so; everything else is refused, often enough to have been tried.
    assert name in ("png", "jpeg") or sum(found is True for found in came) >= len(came) / 20


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM trials; END", "trigger"),
        ("CREATE VIEW v AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x FROM r) SELECT x FROM r", "view"),
        ("CREATE VIRTUAL TABLE x USING fts5(y)", "virtual table"),
    ],
    ids=["trigger", "view", "virtual table"],
)
def test_a_study_file_with_sql_of_its_own_is_not_opened(tmp_path: Path, sql: str, kind: str) -> None:
    path = tmp_path / "study.db"
    StudyStore.open(str(path), name="shoal", direction="minimize").close()
    connection = sqlite3.connect(path)
    connection.execute(sql)
    connection.commit()
    connection.close()
    with pytest.raises(StorageError, match=rf"holds a {kind}, '\w+', which no study has: it is not opened"):
        load_study(str(path))
    with pytest.raises(StorageError, match=f"holds a {kind}"):
        StudyStore.open(str(path), name="shoal", direction="minimize")


@pytest.mark.parametrize(
    ("sql", "part"),
    [
        ("UPDATE shoal_trial SET spec = '{}' WHERE number = 1", "trial 1"),
        ("UPDATE shoal_trial SET state = 'happy' WHERE number = 1", r"trial 1 cannot be read \(ValueError: 'happy'"),
        ("UPDATE shoal_trial SET epoch = 'x' WHERE number = 1", "trial 1"),
        ("""UPDATE shoal_trial SET spec = replace(spec, 'low', 'hi') WHERE number = 1""", "trial 1"),
        ("""UPDATE shoal_trial SET spec = replace(spec, 'Float', 'Sharp') WHERE number = 1""", "trial 1"),
        ("""UPDATE shoal_trial SET spec = replace(spec, 'Categorical', 'Float') WHERE number = 1""", "trial 1"),
        ("""UPDATE shoal_trial SET spec = replace(spec, '1e-05', '-1') WHERE number = 1""", "trial 1"),
        ("""UPDATE shoal_trial SET spec = replace(spec, 'choices', 'chosen') WHERE number = 1""", "trial 1"),
        ("""UPDATE shoal_trial SET spec = replace(spec, '"relu"', '[7]') WHERE number = 0""", "trial 0"),
        ("UPDATE shoal_epoch SET metrics = '[]' WHERE trial = 1", "an epoch"),
        ("UPDATE shoal_epoch SET epoch = 'x' WHERE trial = 1 AND epoch = 1", "an epoch"),
        ("UPDATE shoal_epoch SET value = 'x' WHERE trial = 1", "an epoch"),
        ("UPDATE shoal_event SET data = '[]' WHERE seq = 0", "an event"),
        ("UPDATE shoal_event SET lane = 'x' WHERE seq = 1", "an event"),
        ("UPDATE shoal_event SET tick = 'x' WHERE seq = 1", "an event"),
        ("UPDATE shoal_meta SET json = '[[[' WHERE key = 'metric'", "what it says about itself"),
        (f"UPDATE shoal_meta SET json = '{'[' * 100_000}' WHERE key = 'metric'", "what it says about itself"),
    ],
)
def test_a_study_file_with_wrong_cells_says_which(tmp_path: Path, sql: str, part: str) -> None:
    path = tmp_path / "study.db"
    fuzz.make_study(path, 0)
    connection = sqlite3.connect(path)
    assert connection.execute(sql).rowcount > 0
    connection.commit()
    connection.close()
    with pytest.raises(
        StorageError, match=f"(?s)study.db is damaged: {part}.*Restore a copy or choose another storage"
    ):
        load_study(str(path))


def test_weights_of_another_trial_or_model_are_refused(tmp_path: Path) -> None:
    store = WeightStore(tmp_path, 1.0)
    small, large = nn.Linear(2, 3), nn.Linear(2, 4)
    store.offer(1, 0.5, small.state_dict)
    store.offer(2, 0.4, large.state_dict)
    store.load_into(small, 1)
    with pytest.raises(StorageError, match=r"another model: its '(weight|bias)' is \(\d.*\), not \("):
        store.load_into(large, 1)
    with pytest.raises(StorageError, match=r"another model: it lacks '0.weight'"):
        store.load_into(nn.Sequential(nn.Linear(2, 3)), 1)
    with pytest.raises(StorageError, match=r"another model: it has 'bias'"):
        store.load_into(nn.Linear(2, 3, bias=False), 1)
    weights_file(tmp_path, 2).replace(weights_file(tmp_path, 1))
    with pytest.raises(StorageError, match=r"holds the weights of trial 2, not of trial 1"):
        store.load_into(small, 1)


def test_a_header_that_claims_more_than_there_is(tmp_path: Path) -> None:
    """A length of 2^63, a tensor of a terabyte, and one that lies outside the file."""
    path = weights_file(tmp_path, 3)
    for size in (2**63 - 1, 10**8 + 1):
        path.write_bytes(struct.pack("<Q", size) + b"{}")
        with pytest.raises(StorageError, match="the weights of trial 3 cannot be read"):
            WeightStore(tmp_path, 1.0, {3: (0.5, str(path))}).load(3)
    for shape, ends in (([1 << 38], [0, 1 << 40]), ([4], [-16, 0]), ([1 << 62, 1 << 62], [0, 16])):
        header = {"__metadata__": {"trial": "3"}, "weight": {"dtype": "F32", "shape": shape, "data_offsets": ends}}
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)
        with pytest.raises(StorageError, match="the weights of trial 3 cannot be read"):
            WeightStore(tmp_path, 1.0, {3: (0.5, str(path))}).load_into(nn.Linear(2, 2), 3)


def test_swapped_files_are_told_apart(tmp_path: Path) -> None:
    """Each kind of file under the name of each other."""
    study, weights = tmp_path / "a.db", tmp_path / "b.safetensors"
    fuzz.make_study(study, 0)
    fuzz.make_weights(weights, 0)
    with pytest.raises(StorageError, match="is not an SQLite file"):
        load_study(str(weights.rename(tmp_path / "c.db")))
    with pytest.raises(StorageError, match="the weights of trial 3 cannot be read"):
        fuzz.read_weights(study)
    fuzz.make_weights(weights, 1)
    with pytest.raises(StorageError, match="holds no model of such data"):
        load_table_model(weights)


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_read, "_MAX_UNPACKED", 10_000)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 100_000))
    with pytest.raises(DataError, match=r"unpacks to more than 10,000 bytes: unpack it yourself"):
        read_table(path)


def test_a_damaged_library_is_built_again_and_not_loaded(tmp_path: Path) -> None:
    code = """
from shoal.lanes.native import library
build = library()
build.start()
path = build.wait()
print(path)
"""
    import os

    env = {**os.environ, "SHOAL_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}

    def built() -> str:
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if (name := built()) == "None":
        pytest.skip("no C++ compiler here")
    library = Path(name)
    whole = library.read_bytes()
    assert _is_signed(whole) and torch.ops is not None
    for damaged in (whole[: len(whole) // 2], whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:], b""):
        assert not _is_signed(damaged)
    library.write_bytes(whole[: len(whole) // 2])
    assert built() == name and _is_signed(library.read_bytes())
