"""The first questions of a search, each with a picture: which learning rate, which batch size, how many epochs, which choice."""

from shoal.finders._batch import BatchFinding, find_batch_size
from shoal.finders._compare import Comparison, Pair, compare
from shoal.finders._epochs import EpochsFinding, find_epochs
from shoal.finders._lanes import Curves
from shoal.finders._lr import LrFinding, RangeTest, find_lr

__all__ = [
    "BatchFinding",
    "Comparison",
    "Curves",
    "EpochsFinding",
    "LrFinding",
    "Pair",
    "RangeTest",
    "compare",
    "find_batch_size",
    "find_epochs",
    "find_lr",
]
