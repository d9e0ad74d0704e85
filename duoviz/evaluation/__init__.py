"""A Duo model, or a dense one whose layers can be skipped, evaluated the way the field does: perplexity with sliding windows
and the tasks of lm-evaluation-harness, for any way of routing its tokens. And the judge of routers: one table for every kind.

Paper: arXiv 2410.10846, figure 8 (quality against the share of big).
"""

from .perplexity import Perplexity, perplexity, windows
from .routers import CONTROLS, predicted_gains, routers
from .tables import perplexities, write
from .tasks import check_installed, tasks
from .ways import Way, identity, way_of, ways_of

__all__ = [
    "CONTROLS",
    "Perplexity",
    "Way",
    "check_installed",
    "identity",
    "perplexities",
    "perplexity",
    "predicted_gains",
    "routers",
    "tasks",
    "way_of",
    "ways_of",
    "windows",
    "write",
]
