"""Records to tidy tables and back: the only place that names columns, dtypes and units."""

from .landscapes import means, regrets, sampled
from .stored import curve, curve_from_frame, found, found_from_frame, positions, tidy, token_losses
from .summaries import curve_summary, difficulty, distribution, gains, gaps, interval_table, luck, rank_agreement, usage

__all__ = [
    "curve",
    "curve_from_frame",
    "curve_summary",
    "difficulty",
    "distribution",
    "found",
    "found_from_frame",
    "gains",
    "gaps",
    "interval_table",
    "luck",
    "means",
    "positions",
    "rank_agreement",
    "regrets",
    "sampled",
    "tidy",
    "token_losses",
    "usage",
]
