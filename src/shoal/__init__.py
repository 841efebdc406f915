"""Shoal: hyperparameter tuning that trains many PyTorch trials together, as lanes of one batched program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from shoal import extend as extend
    from shoal import loggers as loggers
    from shoal import nn as nn
    from shoal import optim as optim
    from shoal.errors import DataError, RecipeError, ReplayError, ShoalError, StorageError, StudyError, UsageError
    from shoal.explaining import Explanation, explain
    from shoal.finders import (
        BatchFinding,
        Comparison,
        EpochsFinding,
        LrFinding,
        compare,
        find_batch_size,
        find_epochs,
        find_lr,
    )
    from shoal.folders import FolderModel, FolderStudy, load_folder_model, predict_folder, resume_folder, tune_folder
    from shoal.nesting import Nested, nested
    from shoal.optimism import Optimism
    from shoal.padding import Padded
    from shoal.recipe import Recipe
    from shoal.records import StudyRecord
    from shoal.refine import GradientRefine
    from shoal.replay import steps_per_epoch
    from shoal.study import Study
    from shoal.tabular import TableModel, TableStudy, load_table_model, predict_table, resume_table, tune_table
    from shoal.tuning import resume, tune

# Loaded on first use: Optuna, SQLAlchemy and torch's tracer together take longer to import than many a study to run.
_HOME = {
    "BatchFinding": "finders",
    "Comparison": "finders",
    "DataError": "errors",
    "EpochsFinding": "finders",
    "Explanation": "explaining",
    "FolderModel": "folders",
    "FolderStudy": "folders",
    "GradientRefine": "refine",
    "LrFinding": "finders",
    "Nested": "nesting",
    "Optimism": "optimism",
    "Padded": "padding",
    "Recipe": "recipe",
    "RecipeError": "errors",
    "ReplayError": "errors",
    "ShoalError": "errors",
    "StorageError": "errors",
    "Study": "study",
    "StudyError": "errors",
    "StudyRecord": "records",
    "TableModel": "tabular",
    "TableStudy": "tabular",
    "UsageError": "errors",
    "compare": "finders",
    "explain": "explaining",
    "find_batch_size": "finders",
    "find_epochs": "finders",
    "find_lr": "finders",
    "load_folder_model": "folders",
    "load_table_model": "tabular",
    "nested": "nesting",
    "predict_folder": "folders",
    "predict_table": "tabular",
    "resume": "tuning",
    "resume_folder": "folders",
    "resume_table": "tabular",
    "steps_per_epoch": "replay",
    "tune": "tuning",
    "tune_folder": "folders",
    "tune_table": "tabular",
}

__all__ = [
    "BatchFinding",
    "Comparison",
    "DataError",
    "EpochsFinding",
    "Explanation",
    "FolderModel",
    "FolderStudy",
    "GradientRefine",
    "LrFinding",
    "Nested",
    "Optimism",
    "Padded",
    "Recipe",
    "RecipeError",
    "ReplayError",
    "ShoalError",
    "StorageError",
    "Study",
    "StudyError",
    "StudyRecord",
    "TableModel",
    "TableStudy",
    "UsageError",
    "__version__",
    "compare",
    "explain",
    "extend",
    "find_batch_size",
    "find_epochs",
    "find_lr",
    "load_folder_model",
    "load_table_model",
    "loggers",
    "nested",
    "nn",
    "optim",
    "predict_folder",
    "predict_table",
    "resume",
    "resume_folder",
    "resume_table",
    "steps_per_epoch",
    "tune",
    "tune_folder",
    "tune_table",
]


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("extend", "loggers", "nn", "optim"):
        return importlib.import_module(f"shoal.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    module = importlib.import_module(f"shoal.{_HOME[name]}")
    globals()[name] = getattr(module, name)
    return globals()[name]
