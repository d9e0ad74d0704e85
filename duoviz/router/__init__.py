"""Stage 3: a learned router.

One linear layer per transformer layer maps the FFN's input to logits h over the choices; `softmax(beta * h)` weighs the
outputs of the modules while the router trains, beta rises, and at evaluation the largest logit decides.

Paper: arXiv 2410.10846, section 2, stage 3. Differs: the printed `(e^h / tau) / sum(e^h / tau)` cancels tau, so beta
multiplies h; the budget loss is written for one position and described per sequence, and is taken per sequence here; the
backbone, on which the paper is silent, is frozen unless asked otherwise.
"""

from .calibration import calibrate, realised
from .files import BUDGETS, load, save, standard, trained
from .linear import Mixture, Router
from .training import Stage3, budget_loss, train

__all__ = [
    "BUDGETS",
    "Mixture",
    "Router",
    "Stage3",
    "budget_loss",
    "calibrate",
    "load",
    "realised",
    "save",
    "standard",
    "train",
    "trained",
]
