"""What is fast and what is not: ratios measured in one run; see `measures.py`."""

from .measures import expanded_seconds, largest_memory, run
from .table import HEADER, MARK, Row, line, machine, ship, table, write

__all__ = [
    "HEADER",
    "MARK",
    "Row",
    "expanded_seconds",
    "largest_memory",
    "line",
    "machine",
    "run",
    "ship",
    "table",
    "write",
]
