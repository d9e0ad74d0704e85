"""Routes: which FFN each layer runs for one token, and the sets of routes that a search looks through."""

from .budget import Budget, ramp, rest
from .route import BIG, LETTERS, NAMES, SKIP, SMALL, Routes, from_text, parse, to_text, to_texts
from .space import MAX_ENUMERATED, Space, by_big, nearest_big

__all__ = [
    "BIG",
    "LETTERS",
    "MAX_ENUMERATED",
    "NAMES",
    "SKIP",
    "SMALL",
    "Budget",
    "Routes",
    "Space",
    "by_big",
    "from_text",
    "nearest_big",
    "parse",
    "ramp",
    "rest",
    "to_text",
    "to_texts",
]
