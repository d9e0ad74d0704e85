"""The shell: `python -m duoviz train|convert|oracle|router|evaluate|sweep|landscape|report|score|bench`."""

from . import reporting, studying, sweeping, training
from .command import app

__all__ = ["app", "reporting", "studying", "sweeping", "training"]
