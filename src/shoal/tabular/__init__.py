"""From a data file to a tuned model that predicts: reading, splitting, preparing, comparing, and one file that holds it.

It stands on the library's own ``tune``: a table becomes ``define``, three parts of tensors, and options.
"""

from __future__ import annotations

from shoal.tabular._baselines import Comparison
from shoal.tabular._model import TableModel, load_table_model
from shoal.tabular._read import Table, read_table
from shoal.tabular._tune import (
    Prepared,
    TableStudy,
    predict_table,
    prepare_table,
    resume_prepared,
    resume_table,
    seed_of,
    tune_prepared,
    tune_table,
)

__all__ = [
    "Comparison",
    "Prepared",
    "Table",
    "TableModel",
    "TableStudy",
    "load_table_model",
    "predict_table",
    "prepare_table",
    "read_table",
    "resume_prepared",
    "resume_table",
    "seed_of",
    "tune_prepared",
    "tune_table",
]
