"""How much each hyperparameter had to do with being among the best trials, by Optuna's own evaluator.

PED-ANOVA (Watanabe, Bansal and Hutter, IJCAI 2023; with conditional parameters, KDD 2026) compares where the best tenth
of the trials lies with where all of them lie. It needs only their order, so trials that early stopping ended count too,
with their last value: that they were not among the best is known.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Final

from shoal.records import StudyRecord, TrialRecord, TrialState

if TYPE_CHECKING:
    import optuna

# Below this, the best tenth is one or two trials and says nothing.
MIN_TRIALS: Final = 20
# Beyond this, more trials change the shares in the third digit and cost seconds.
MAX_TRIALS: Final = 2000


def importances(record: StudyRecord) -> dict[str, float]:
    """Each hyperparameter's share in reaching the best tenth, largest first; the shares add up to 1.

    Args:
        record: The study, running or finished.

    Returns:
        Parameter name -> share; empty for a study with fewer than 20 judged trials, or whose parameters never varied.
    """
    trials = [
        t
        for t in record.trials
        if t.state in (TrialState.FINISHED, TrialState.STOPPED) and t.value is not None and math.isfinite(t.value)
    ]
    if len(trials) < MIN_TRIALS:
        return {}
    stride = len(trials) / min(len(trials), MAX_TRIALS)
    some = [trials[int(i * stride)] for i in range(min(len(trials), MAX_TRIALS))]

    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about rare conditional parameters; the shares say as much
            study = optuna.create_study(direction=record.direction)
            study.add_trials([_frozen(t) for t in some])
            shares = optuna.importance.get_param_importances(study)
    finally:
        optuna.logging.set_verbosity(before)
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()} if total > 0 else {}


def _frozen(trial: TrialRecord) -> optuna.trial.FrozenTrial:
    import optuna

    distributions = {
        name: optuna.distributions.json_to_distribution(trial.spec.distributions[name])
        for name in trial.spec.params
        if name in trial.spec.distributions
    }
    return optuna.trial.create_trial(
        params={name: trial.spec.params[name] for name in distributions},
        distributions=distributions,
        value=trial.value,
    )
