"""The oracle: search for every token's best route, by any objective, method and context; and what its gains consist of."""

from .allocation import sequence_mean
from .cost import estimate, estimate_curve
from .execute import Keep
from .flips import alternatives, flips
from .landscapes import additivity, landscape, landscapes, predict, retraced
from .methods import AUTO_EXHAUSTIVE
from .null import luck
from .objectives import CARRIED, OBJECTIVES, SAMPLED, WITHOUT_LABEL, Objective, sample_targets
from .passes import MAX_FLOPS, WIDTH, Setting, reference_routes
from .search import by_budget, measured_rate, search, survey
from .uniform import fixed, same_for_all, uniform_losses

__all__ = [
    "AUTO_EXHAUSTIVE",
    "CARRIED",
    "MAX_FLOPS",
    "OBJECTIVES",
    "SAMPLED",
    "WIDTH",
    "WITHOUT_LABEL",
    "Keep",
    "Objective",
    "Setting",
    "additivity",
    "alternatives",
    "by_budget",
    "estimate",
    "estimate_curve",
    "fixed",
    "flips",
    "landscape",
    "landscapes",
    "luck",
    "measured_rate",
    "predict",
    "reference_routes",
    "retraced",
    "same_for_all",
    "sample_targets",
    "search",
    "sequence_mean",
    "survey",
    "uniform_losses",
]
