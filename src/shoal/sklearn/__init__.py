"""Perceptrons as scikit-learn estimators, and a search over them whose candidates and folds train together as lanes."""

from __future__ import annotations

from shoal.sklearn._estimators import ShoalClassifier, ShoalRegressor
from shoal.sklearn._search import ShoalSearchCV

__all__ = ["ShoalClassifier", "ShoalRegressor", "ShoalSearchCV"]
