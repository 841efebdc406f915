"""Trials as lanes of one batched program. Every stacked tensor has ``lanes`` as its first axis."""

# It tells ``rng.KeyedRandom`` what stands for torch's recurrent layers; it must not be used over lanes without.
from shoal.lanes import sequences  # noqa: F401
