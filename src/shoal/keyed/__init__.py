"""Random numbers of a trial in plain PyTorch: orders of samples, and draws that belong to a sample.

Nothing here knows of lanes or of the rest of Shoal: an exported training script brings this package along as it is.
"""

# These tell ``KeyedRandom`` what stands for torch's functions; it must not be used without them.
from . import _attention, _checkpoint, _draws, _sequences  # noqa: F401
from ._random import KeyedRandom, derive, handles, mask_of, mix, permutation, sample_keys, weighted_order

__all__ = ["KeyedRandom", "derive", "handles", "mask_of", "mix", "permutation", "sample_keys", "weighted_order"]
