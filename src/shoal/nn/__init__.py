"""Sequential models out of a few arguments, initial weights and optimizers by name, and search spaces for them.

What the builders return is plain PyTorch: an ``nn.Module`` that needs nothing of Shoal but the few small classes of
``shoal.nn._blocks``, made of layers that train together in lanes.
"""

from __future__ import annotations

from shoal.nn._cnn import cnn
from shoal.nn._extensions import extensions
from shoal.nn._init import INITIALISATIONS, initialise
from shoal.nn._knobs import Range
from shoal.nn._mlp import mlp
from shoal.nn._names import ACTIVATIONS, LOSSES, OPTIMIZERS, activation, loss, optimizer
from shoal.nn._rnn import rnn
from shoal.nn._spaces import Choice, cnn_space, mlp_space, rnn_space, transformer_space
from shoal.nn._summary import Layer, Summary, summary
from shoal.nn._transformer import transformer

__all__ = [
    "ACTIVATIONS",
    "INITIALISATIONS",
    "LOSSES",
    "OPTIMIZERS",
    "Choice",
    "Layer",
    "Range",
    "Summary",
    "activation",
    "cnn",
    "cnn_space",
    "extensions",
    "initialise",
    "loss",
    "mlp",
    "mlp_space",
    "optimizer",
    "rnn",
    "rnn_space",
    "summary",
    "transformer",
    "transformer_space",
]
