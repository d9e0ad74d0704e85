"""The whole study: `study.py` is the file to read first; `inspection.py` lends its answers to the token inspector."""

from .inspection import Inspection
from .study import Study
from .training import train_router, train_small, training_rows

__all__ = ["Inspection", "Study", "train_router", "train_small", "training_rows"]
