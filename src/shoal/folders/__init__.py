"""From a folder of class-named folders, of images or of texts, to a tuned model that predicts.

It stands on the library's own ``tune`` and on the parts of ``shoal.tabular`` that know targets, splits and model files.
"""

from __future__ import annotations

from shoal.folders._model import FolderModel, is_folder_model, load_folder_model
from shoal.folders._tune import (
    FolderStudy,
    PreparedFolder,
    predict_folder,
    prepare_folder,
    resume_folder,
    resume_prepared_folder,
    tune_folder,
    tune_prepared_folder,
)

__all__ = [
    "FolderModel",
    "FolderStudy",
    "PreparedFolder",
    "is_folder_model",
    "load_folder_model",
    "predict_folder",
    "prepare_folder",
    "resume_folder",
    "resume_prepared_folder",
    "tune_folder",
    "tune_prepared_folder",
]
