"""Loggers: what a study records, also in TensorBoard, MLflow or Weights & Biases, while it runs.

``shoal.tune(..., loggers=[shoal.loggers.TensorBoard("runs")])``. Each trial is a run with its parameters and a point per
epoch. A logger sees frozen rows and never a model, on a thread of its own, so that no server can hold a study up.
"""

from __future__ import annotations

from shoal.loggers._base import Logger
from shoal.loggers._mlflow import MLflow
from shoal.loggers._tensorboard import TensorBoard
from shoal.loggers._wandb import Wandb

__all__ = ["Logger", "MLflow", "TensorBoard", "Wandb"]
