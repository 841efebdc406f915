"""The same grid, folds and epochs: scikit-learn's ``GridSearchCV(MLPClassifier)`` against ``ShoalSearchCV``.

    python benchmarks/scikit_learn.py [--jobs 2] [--epochs 100] [--batch 200] [--data digits]

Both train a ReLU perceptron with Adam on scaled inputs, with the same hidden layers, learning rates, L2 and batch size (200 is
scikit-learn's own), for the same number of epochs: early stopping is off on both sides. Each search runs in a process of its own,
its best candidate is fitted again on all rows, and imports are not counted. Both may use as many cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from typing import Any, Final

SIZES: Final = [(32,), (64,), (64, 64)]
RATES: Final = [3e-4, 1e-3, 3e-3, 1e-2]
DECAYS: Final = [1e-4, 1e-2]


def search(which: str, given: argparse.Namespace) -> dict[str, Any]:
    """One search in this process: seconds, best score, and its standard error over folds."""
    from sklearn import datasets
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.neural_network import MLPClassifier
    from sklearn.preprocessing import StandardScaler

    import shoal.sklearn

    X, y = getattr(datasets, f"load_{given.data}")(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    cv = StratifiedKFold(5, shuffle=True, random_state=given.seed)
    epochs, batch = given.epochs, given.batch
    made: Any
    if which == "scikit-learn":
        network = MLPClassifier(
            batch_size=batch, max_iter=epochs, tol=0.0, n_iter_no_change=epochs, random_state=given.seed
        )
        grid = {"hidden_layer_sizes": SIZES, "learning_rate_init": RATES, "alpha": DECAYS}
        made = GridSearchCV(network, grid, cv=cv, n_jobs=given.jobs)
    else:
        ours = shoal.sklearn.ShoalClassifier(
            batch_size=batch, max_epochs=epochs, optimizer="adam", random_state=given.seed
        )
        # scikit-learn divides alpha by the samples of a batch.
        space = {"hidden_layer_sizes": SIZES, "lr": RATES, "weight_decay": [alpha / batch for alpha in DECAYS]}
        made = shoal.sklearn.ShoalSearchCV(ours, space, cv=cv, n_jobs=given.jobs)
    started, busy = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of every network that has not converged
        made.fit(X, y)
    found = made.cv_results_
    best = made.best_index_
    error = found["std_test_score"][best] / 5**0.5
    seconds = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - busy}
    return {**seconds, "score": found["mean_test_score"][best], "error": error}


def main() -> None:
    """Print one Markdown row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=2, help="processes of scikit-learn, threads of Shoal")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--batch", type=int, default=200, help="samples per update")
    parser.add_argument("--data", default="digits", choices=["digits", "breast_cancer", "wine"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", choices=["scikit-learn", "shoal"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(search(given.one, given)))
        return
    found = {}
    words = [f"--{name}={getattr(given, name)}" for name in ("jobs", "epochs", "batch", "data", "seed")]
    # A study of another setting of this variable would be another benchmark.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    for which in ("scikit-learn", "shoal"):
        command = [sys.executable, __file__, "--one", which, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[which] = json.loads(done.stdout.splitlines()[-1])
    theirs, ours = found["scikit-learn"], found["shoal"]
    print("| data | batch | epochs | jobs | scikit-learn s | shoal s | ratio | scikit-learn's best score | shoal's |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    scores = [f"{one['score']:.4f} ± {one['error']:.4f}" for one in (theirs, ours)]
    times = [f"{theirs['seconds']:.1f}", f"{ours['seconds']:.1f}", f"{theirs['seconds'] / ours['seconds']:.1f}"]
    print("|", " | ".join([given.data, *map(str, (given.batch, given.epochs, given.jobs)), *times, *scores]), "|")


if __name__ == "__main__":
    main()
