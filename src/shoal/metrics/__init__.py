"""Metrics over lanes: scikit-learn's values, computed for all trials of a fleet at once.

Glossary: ``outputs`` is ``(lanes, n, ...)``, one model output per trial and sample; ``targets`` is ``(n, ...)``, the
same for all lanes; ``C`` is the number of classes, ``L`` of labels where a sample may have several; ``m`` is the number
of places that are scored: samples, or samples times pixels.
"""

from shoal.metrics._labels import IGNORE_INDEX
from shoal.metrics._meter import Meter, Metric, Scale
from shoal.metrics._names import further, resolve, standard_metrics

__all__ = ["IGNORE_INDEX", "Meter", "Metric", "Scale", "further", "resolve", "standard_metrics"]
