"""One function per question: a table in, a plotly figure out. Nothing is computed here and nothing is shown.

Every figure says its unit on each axis and, below the title, how many positions and documents it rests on; bars
are 95 % intervals over documents. Backgrounds are transparent and inks grey, so that figures read in light and dark. Names
and titles are text, never markup. Show a figure with `figure.show(config=figures.CONFIG)`, keep it with
`figures.write`.
"""

from duoviz.style import CONFIG

from .claims import Folded, folded, forest
from .export import drawn, write
from .inspection import landscape, layer_usage
from .landscapes import candidates_curve, luck_curve, regret_curve
from .look import nothing
from .policies import (
    budget_curve,
    gain_curve,
    gap_closed,
    gap_dumbbell,
    intervals,
    policy_bars,
    realised_budget,
)
from .routers import gain_calibration, router_gains, router_gaps
from .routing import around, frame, route_comparison, route_maps, routing_heatmap
from .tokens import agreement, difficulty_against_loss, distribution, ridges, slices, token_losses
from .training import beginnings, equal_flops, training_curves

__all__ = [
    "CONFIG",
    "Folded",
    "agreement",
    "around",
    "beginnings",
    "budget_curve",
    "candidates_curve",
    "difficulty_against_loss",
    "distribution",
    "drawn",
    "equal_flops",
    "folded",
    "forest",
    "frame",
    "gain_calibration",
    "gain_curve",
    "gap_closed",
    "gap_dumbbell",
    "intervals",
    "landscape",
    "layer_usage",
    "luck_curve",
    "nothing",
    "policy_bars",
    "realised_budget",
    "regret_curve",
    "ridges",
    "route_comparison",
    "route_maps",
    "router_gains",
    "router_gaps",
    "routing_heatmap",
    "slices",
    "token_losses",
    "training_curves",
    "write",
]
