"""One function per question: a table in, a plotly figure out. Nothing is computed here and nothing is shown.

Every figure says its unit on each axis and, below the title, how many positions and documents it rests on; bands and bars
are 95 % intervals over documents. Backgrounds are transparent and inks grey, so that figures read in light and dark. Names
and titles are text, never markup. Show a figure with `figure.show(config=figures.CONFIG)`.
"""

from duoviz.style import CONFIG

from .landscapes import candidates_curve, regret_curve
from .policies import budget_curve, gain_curve, gap_closed, intervals, policy_bars, realised_budget
from .routing import route_maps, routing_heatmap
from .tokens import distribution, rank_agreement, token_losses
from .training import training_curves

__all__ = [
    "CONFIG",
    "budget_curve",
    "candidates_curve",
    "distribution",
    "gain_curve",
    "gap_closed",
    "intervals",
    "policy_bars",
    "rank_agreement",
    "realised_budget",
    "regret_curve",
    "route_maps",
    "routing_heatmap",
    "token_losses",
    "training_curves",
]
