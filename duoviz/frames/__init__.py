"""Records to tidy tables and back: the only place that names columns, dtypes and units."""

from .inspection import best_routes, inspected, layer_usage, policies, spread
from .landscapes import luck_gains, luck_losses, means, regrets, sampled, searched
from .slices import BY, CLASSES, extremes, looks_like_python, medians, slices, target_classes, token_classes
from .stored import curve, curve_from_frame, found, found_from_frame, positions, tidy, token_losses
from .summaries import curve_summary, difficulty, distribution, gains, gaps, interval_table, luck, rank_agreement, usage
from .trainings import held_losses, measured

__all__ = [
    "BY",
    "CLASSES",
    "best_routes",
    "curve",
    "curve_from_frame",
    "curve_summary",
    "difficulty",
    "distribution",
    "extremes",
    "found",
    "found_from_frame",
    "gains",
    "gaps",
    "held_losses",
    "inspected",
    "interval_table",
    "layer_usage",
    "looks_like_python",
    "luck",
    "luck_gains",
    "luck_losses",
    "means",
    "measured",
    "medians",
    "policies",
    "positions",
    "rank_agreement",
    "regrets",
    "sampled",
    "searched",
    "slices",
    "spread",
    "target_classes",
    "tidy",
    "token_classes",
    "token_losses",
    "usage",
]
