"""Trials as lanes of one batched program. Every stacked tensor has ``lanes`` as its first axis."""
