"""``Study``: what the user reads of a search once ``tune`` or ``resume`` has run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from torch import Tensor, nn

from shoal.asking import Asker
from shoal.errors import StudyError, UsageError
from shoal.history import History
from shoal.lanes.fleet import Work
from shoal.objectives import broken_in
from shoal.optimism import Optimism, optimism
from shoal.preparing import Prepared
from shoal.recipe import Recipe
from shoal.records import Direction, Json, StudyRecord, TrialRecord, TrialSpec, TrialState
from shoal.replay import Define, replay
from shoal.restoring import opened
from shoal.scores import Score, scores_of
from shoal.weights import WeightStore, trained

if TYPE_CHECKING:
    import optuna
    import pandas as pd

    from shoal.ensembles import Ensemble
    from shoal.export import Exported
    from shoal.extend import Trajectory
    from shoal.refitting import Refit
    from shoal.schedules import Schedule
    from shoal.storage import StudyStore

TrialArgument: TypeAlias = "int | TrialRecord | optuna.trial.FrozenTrial | None"


class Study:
    """What ``tune`` returns: the history of a study, its best trial, and the model that won.

    Attributes:
        record: Everything as plain data (see ``shoal.records``).
        interrupted: Whether the last run was stopped by Ctrl-C or its time limit before all trials had ended.
        timed_out: Whether it was its time limit.
        terminated: Whether it was SIGTERM.
        stop_reason: Which of its limits (total epochs, target, patience) the last run stopped at; "" for none. The study can be
            continued.
    """

    def __init__(
        self,
        history: History,
        *,
        define: Define,
        prepared: Prepared,
        asker: Asker,
        store: StudyStore | None,
        weights: WeightStore,
        work: Work,
    ) -> None:
        self._history, self._define, self._prepared, self._work = history, define, prepared, work
        self._asker, self._store, self.weights = asker, store, weights
        self.interrupted = self.timed_out = self.terminated = False
        self.stop_reason = ""
        self.died: StudyError | None = None  # of a session that goes on in another one

    @property
    def record(self) -> StudyRecord:
        """The study as plain data."""
        return self._history.record

    def _best(self) -> TrialRecord:
        record = self.record
        if len(record.directions) > 1:
            names = ", ".join(record.objectives)
            raise StudyError(
                f"study {self._history.name!r} has {len(record.directions)} objectives ({names}), so no trial is best in all of "
                "them: best_trials has the Pareto front, and best_model(trial), refit(trial=...) and export(folder, trial=...) "
                "take one of its trials."
            )
        best = record.best()
        if best is None:
            counts = ", ".join(f"{s}: {sum(r.state is s for r in self._history.results.values())}" for s in TrialState)
            if n := broken_in(self._history.results.values()):
                raise StudyError(
                    f"each of the {n} trials of study {self._history.name!r} breaks a constraint "
                    f"({', '.join(map(str, cast(list[str], record.meta.get('constraints'))))}); run more trials, or allow more."
                )
            raise StudyError(
                f"no trial of study {self._history.name!r} has finished yet ({counts}); run more trials or epochs."
            )
        return best

    def _chosen(self, trial: TrialArgument) -> TrialRecord:
        """The trial that the user means; None is the best.

        Raises:
            UsageError: It is none of the study's finished trials.
            StudyError: It is None, and there is no best trial.
        """
        if trial is None:
            return self._best()
        number = getattr(trial, "number", trial)
        found = None
        if isinstance(number, int) and not isinstance(number, bool):
            found = next((t for t in self.record.trials if t.spec.number == number), None)
        if found is None or found.state is not TrialState.FINISHED:
            said = "there is none" if found is None else f"trial {number} is {found.state}"
            raise UsageError(
                f"trial= takes the number of a finished trial of study {self._history.name!r}, or the trial itself; got "
                f"{number!r:.40}, and {said}."
            )
        return found

    @property
    def directions(self) -> list[Direction]:
        """Which way is better, one per objective."""
        return list(self.record.directions)

    @property
    def best_trials(self) -> list[TrialRecord]:
        """The Pareto front, by number: the finished trials that break no constraint, and that no other such trial equals in every
        objective and beats in one. With one objective, all trials of the best value."""
        return list(self.record.front())

    @property
    def best_trial(self) -> TrialRecord:
        """The finished trial with the best value.

        Raises:
            StudyError: If none has finished.
        """
        return self._best()

    @property
    def best_params(self) -> dict[str, Any]:
        """Parameters of the best trial."""
        return dict(self._best().spec.params)

    @property
    def best_value(self) -> float:
        """Value of the best trial, in the user's direction."""
        return cast(float, self._best().value)

    @property
    def test_metrics(self) -> dict[str, float]:
        """The winner's metrics on the test split; empty when there was none."""
        found = self._history.meta.get("test")
        return {k: float(cast(float, v)) for k, v in found.items()} if isinstance(found, dict) else {}

    @property
    def optimism(self) -> Optimism:
        """How much of ``best_value`` is the luck of the best of so many trials, as far as folds or a test set can tell.

        Raises:
            StudyError: If no trial has finished.
        """
        self._best()
        found = optimism(self.record)
        assert found is not None
        return found

    def best_model(self, trial: TrialArgument = None) -> nn.Module:
        """The best trial's model with its trained weights, in evaluation mode, on the CPU.

        Of a study with folds it is trained on all folds' rows together, for as many epochs as the trial was judged by; with seeds
        alone, it is the model of the first seed.

        Args:
            trial: Another trial whose weights are kept, as a number or one of ``best_trials``; needed where there are several
                objectives.

        Raises:
            StudyError: If no trial has finished, or there are several objectives and no trial is named.
            UsageError: If there is no such trial, or it has not finished.
            StorageError: If its weights are gone.
        """
        return self._trained(self._chosen(trial)).model

    @property
    def preparation(self) -> Any:
        """What ``tune(prepare=)`` learnt from the winner's training rows, to prepare new inputs with; None without it.

        The fitted object, or, where there are several inputs, such objects by the input's position.
        """
        made = self._prepared.preparation
        return None if made is None else made.objects

    def predict(self, *inputs: Any) -> Tensor:
        """What the winner's model gives for new inputs, prepared as its training rows were.

        Args:
            inputs: One array or tensor (n, ...) per input, as they were in ``train`` before ``prepare``.

        Returns:
            The model's outputs, (n, ...), on the CPU.

        Raises:
            UsageError: If the inputs are not like those of ``train``.
            StudyError: If no trial has finished.
        """
        from shoal.predicting import predicted

        return predicted(self._trained(self._best()), self._prepared, inputs)

    @property
    def test_scores(self) -> dict[str, Score]:
        """The winner's metrics on the test split with confidence intervals; empty when there was none."""
        winner = self._history.meta.get("winner")
        return scores_of(winner.get("test")) if isinstance(winner, dict) else {}

    def refit(self, *, epochs: int | None = None, seed: int | None = None, trial: TrialArgument = None) -> Refit:
        """Train the winner once more, on train + valid (or all folds), for as many epochs as it was judged by.

        Args:
            epochs: To train for, if not as many.
            seed: Of its weights and orders, if not the trial's own.
            trial: Another finished trial than the best, as a number or one of ``best_trials``.

        Returns:
            The model with its test scores (see `shoal.refitting.Refit`).

        Raises:
            UsageError: If an argument is no whole number.
            StudyError: If no trial has finished, or the loss does not stay finite.
        """
        from shoal.refitting import refit

        return refit(self._chosen(trial), self._define, self._work, self._prepared, epochs=epochs, seed=seed)

    def ensemble(self, k: int = 5) -> Ensemble:
        """The best ``k`` trials as one model that averages their predictions.

        Args:
            k: From 1 to the number of trials whose weights are kept, which is 5 at most.

        Returns:
            An ``nn.Module`` on the CPU, in evaluation mode (see `shoal.ensembles.Ensemble`).

        Raises:
            UsageError: If so many are not kept, or their outputs cannot be averaged.
            StudyError: If no trial has finished.
        """
        from shoal.ensembles import Ensemble

        if len(self._history.directions) > 1:
            raise StudyError(
                "an ensemble averages the best trials by one metric, and this study has several objectives; take models out of "
                "best_trials with best_model(trial)."
            )
        self._best()
        kept = self.weights.kept
        if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= len(kept):
            raise UsageError(
                f"ensemble(k) takes a whole number from 1 to {len(kept)}, the trials whose weights are kept; got {k!r}."
            )
        known = {t.spec.number: t.trained for t in self.record.trials}
        return Ensemble({n: trained(known[n], self._again, self.weights) for n in kept[:k]}, self._work)

    def export(
        self,
        folder: str | Path,
        *,
        formats: Sequence[str] = ("script", "weights"),
        check: bool = False,
        trial: TrialArgument = None,
    ) -> Exported:
        """Write the winner into a folder that needs no Shoal.

        Args:
            folder: Where to.
            formats: Any of "script" (``train.py``, which trains it again in plain PyTorch), "weights" (one safetensors file with
                the architecture), "pt2" (``torch.export``) and "onnx" (needs the extra ``onnx``).
            check: Whether to run the script in an interpreter of its own and compare what it measures.
            trial: Another trial than the best, whose weights are kept, as a number or one of ``best_trials``.

        Returns:
            What was written (see `shoal.export.Exported`).

        Raises:
            UsageError: A format is unknown, or ``define`` is not at the top of a Python file.
            StudyError: No trial has finished, or an exported model gives other outputs.
            StorageError: The folder cannot be written.
        """
        from shoal.export import export

        best = self._chosen(trial)
        recipe = self._trained(best)
        fresh = self._again(best.trained)
        mine, facts = self._prepared, (self.record, best, self._define, recipe, fresh)
        return export(*facts, mine.whole, folder, preparation=mine.preparation, formats=formats, check=check)

    def _trained(self, best: TrialRecord) -> Recipe:
        parts = self._prepared.parts
        if parts is not None and parts.folds:  # of an interrupted study, whose end would have done so
            from shoal.refitting import keep_trained

            keep_trained(best, self._define, self._work, self.weights)
        return trained(best.trained, self._again, self.weights)

    def _again(self, spec: TrialSpec) -> Recipe:
        train = self._prepared.whole.train
        return replay(self._define, spec, train.n, train.form)

    def trajectories(self, number: int) -> dict[str, Trajectory]:
        """What the extensions of a trial moved, by name: "lr", "batch_size", ...; empty for a trial without any.

        Raises:
            StudyError: If there is no such trial.
        """
        from shoal.extend import trajectories_of

        if number not in self._history.specs:
            n = len(self._history.specs)
            raise StudyError(f"study {self._history.name!r} has no trial {number}: it has {n}, numbered from 0.")
        return trajectories_of(self._history.rows.get(number, ()))

    @property
    def schedules(self) -> dict[int, Schedule]:
        """The schedules of hyperparameters that "pbt" or "pb2" found, by trial number: which values led to its weights, over the
        trials that it copied. Empty where nothing moved.

        ``tune(define, scheduler=shoal.schedulers.PopulationBasedTrainingReplay(study.schedules[3]), ...)`` trains with one again.
        """
        from shoal.schedules import schedules_of

        return schedules_of(self.record)

    def trials_dataframe(self) -> pd.DataFrame:
        """All trials as a pandas data frame, with Optuna's column names.

        Raises:
            StudyError: If pandas is not installed.
        """
        try:
            import pandas  # noqa: F401  (Optuna needs it)
        except ImportError as error:
            raise StudyError("trials_dataframe() needs pandas: run `pip install pandas`.") from error
        return self.optuna_study.trials_dataframe()

    def note(self, key: str, fact: Json) -> None:
        """Keep a fact about the study, in its file too; the report shows those that it knows, and lists the others.

        Raises:
            StorageError: If the file cannot be written.
        """
        self._history.meta[key] = fact
        if self._store is not None:
            with opened(self._store.place.optuna_url, self._history.directions, self._store.name) as (store, _):
                assert store is not None
                store.set_meta(self._history.meta)

    @property
    def optuna_study(self) -> optuna.Study:
        """The study as Optuna sees it: loaded from where it is stored, or the one in memory."""
        if self._store is None:
            return self._asker.plain_study()
        import optuna

        return optuna.load_study(study_name=self._history.name, storage=self._store.place.optuna_url)

    @property
    def path(self) -> Path | None:
        """The study file, if there is one: None in memory and in a database."""
        return None if self._store is None else self._store.path

    def report(self, path: str | Path) -> Path:
        """Write the report, one HTML file that needs nothing else; returns its path."""
        from shoal.importances import importances
        from shoal.report import write_report

        record, title = self.record, None
        if self._store is not None:
            from shoal.storage import title_of

            title = title_of(self._store.place, self._store.name)
        return write_report(record, path, importances(record), title=title)

    def close(self) -> None:
        """Let go of the study file. Called by ``tune`` itself; a closed study can still be read."""
        if self._store is not None:
            self._store.close()

    def __repr__(self) -> str:
        done = sum(r.state is TrialState.FINISHED for r in self._history.results.values())
        return f"<shoal.Study {self._history.name!r}: {len(self._history.specs)} trials, {done} finished>"
