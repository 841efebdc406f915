"""The same grid, folds and epochs: scikit-learn's ``GridSearchCV(MLPClassifier)`` against ``ShoalSearchCV``.

    python benchmarks/scikit_learn.py [--jobs 2] [--epochs 30] [--data digits]

Both train a ReLU perceptron with Adam on scaled inputs, with the same hidden layers, learning rates, L2 and batch size, for the
same number of epochs: early stopping is off on both sides. Each search runs in a process of its own; imports are not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from typing import Any, Final

SIZES: Final = [(32,), (64,), (64, 64)]
RATES: Final = [3e-4, 1e-3, 3e-3, 1e-2]
DECAYS: Final = [1e-4, 1e-2]


def search(which: str, jobs: int, epochs: int, data: str, seed: int) -> dict[str, Any]:
    """One search in this process: seconds, best score, and its standard error over folds."""
    from sklearn import datasets
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    import shoal.sklearn

    X, y = getattr(datasets, f"load_{data}")(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    cv = StratifiedKFold(5, shuffle=True, random_state=seed)
    made: Any
    if which == "scikit-learn":
        network = MLPClassifier(batch_size=32, max_iter=epochs, tol=0.0, n_iter_no_change=epochs, random_state=seed)
        grid = {"hidden_layer_sizes": SIZES, "learning_rate_init": RATES, "alpha": DECAYS}
        made = GridSearchCV(network, grid, cv=cv, n_jobs=jobs, refit=False)
    else:
        ours = shoal.sklearn.ShoalClassifier(batch_size=32, max_epochs=epochs, optimizer="adam", random_state=seed)
        space = {"hidden_layer_sizes": SIZES, "lr": RATES, "weight_decay": DECAYS}
        made = shoal.sklearn.ShoalSearchCV(ours, space, cv=cv, refit=False)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of every network that has not converged
        made.fit(X, y)
    found = made.cv_results_
    best = made.best_index_
    error = found["std_test_score"][best] / 5**0.5
    return {"seconds": time.perf_counter() - started, "score": found["mean_test_score"][best], "error": error}


def main() -> None:
    """Print one Markdown row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=2, help="processes of scikit-learn")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--data", default="digits", choices=["digits", "breast_cancer", "wine"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=["scikit-learn", "shoal"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(search(given.one, given.jobs, given.epochs, given.data, given.seed)))
        return
    found = {}
    for which in ("scikit-learn", "shoal"):
        words = [sys.executable, __file__, "--one", which, "--jobs", str(given.jobs), "--epochs", str(given.epochs)]
        words += ["--data", given.data, "--seed", str(given.seed)]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        found[which] = json.loads(done.stdout.splitlines()[-1])
    theirs, ours = found["scikit-learn"], found["shoal"]
    print("| data | epochs | jobs | scikit-learn s | shoal s | ratio | best score, scikit-learn | best score, shoal |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    scores = [f"{one['score']:.4f} ± {one['error']:.4f}" for one in (theirs, ours)]
    times = [f"{theirs['seconds']:.1f}", f"{ours['seconds']:.1f}", f"{theirs['seconds'] / ours['seconds']:.1f}"]
    print("|", " | ".join([given.data, str(given.epochs), str(given.jobs), *times, *scores]), "|")


if __name__ == "__main__":
    main()
