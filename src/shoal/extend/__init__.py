"""Hyperparameters that move while the model trains: what `Recipe(extensions=[...])` takes, and what comes of it.

Example:
    >>> import shoal
    >>> from torch import nn, optim
    >>> model = nn.Linear(4, 2)
    >>> adam = optim.Adam(model.parameters(), lr=1e-3)
    >>> recipe = shoal.Recipe(model, adam, nn.CrossEntropyLoss(), 8, extensions=[LearningRate(step=0.02)])
"""

from __future__ import annotations

from shoal.extend._activation import Activation
from shoal.extend._base import Extension
from shoal.extend._batch_size import BatchSize
from shoal.extend._by_validation import L1, Dropout, LabelSmoothing, LossWeights, WeightDecay
from shoal.extend._learning_rate import LearningRate
from shoal.extend._shapes import LearnedShape, Shifted, Swish, settle, shapes_of
from shoal.extend._trajectory import Replay, Trajectory, trajectories_of
from shoal.extend._weighted import WeightedSum

__all__ = [
    "L1",
    "Activation",
    "BatchSize",
    "Dropout",
    "Extension",
    "LabelSmoothing",
    "LearnedShape",
    "LearningRate",
    "LossWeights",
    "Replay",
    "Shifted",
    "Swish",
    "Trajectory",
    "WeightDecay",
    "WeightedSum",
    "settle",
    "shapes_of",
    "trajectories_of",
]
