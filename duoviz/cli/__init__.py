"""The shell: `python -m duoviz train|convert|oracle|router|evaluate|report|score|bench`."""

from . import reporting, studying, training
from .command import app

__all__ = ["app", "reporting", "studying", "training"]
