"""Trials as lanes of one batched program. Every stacked tensor has ``lanes`` as its first axis."""

# These three tell ``rng.KeyedRandom`` what stands for torch's functions; it must not be used without them.
from shoal.lanes import attention, draws, sequences  # noqa: F401
