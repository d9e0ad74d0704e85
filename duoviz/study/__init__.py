"""The whole study: `study.py` is the file to read first; `inspection.py` lends its answers to the token inspector."""

from .inspection import Inspection
from .study import (
    CALIBRATION,
    CARRIED,
    OBJECTIVES,
    SHIPPED_RESULTS,
    WITHOUT_LABEL,
    Study,
    results,
)
from .training import train_router, train_small, training_rows

__all__ = [
    "CALIBRATION",
    "CARRIED",
    "OBJECTIVES",
    "SHIPPED_RESULTS",
    "WITHOUT_LABEL",
    "Inspection",
    "Study",
    "results",
    "train_router",
    "train_small",
    "training_rows",
]
