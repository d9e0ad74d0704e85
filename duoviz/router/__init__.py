"""Stage 3: learned routers of several kinds, with one interface.

One small network per transformer layer (a linear map, or one with a hidden layer) maps the FFN's input to logits h over the
choices; at evaluation the largest decides, after offsets that meet the budget. Kinds differ in how the networks are trained:

| kind | learns from | the budget is held by |
|---|---|---|
| `budget` | the loss of a soft mixture, `softmax(beta * h)` of the modules' outputs, with beta rising (the paper's) | a loss |
| `straight-through` | the loss of drawn choices, with the gradient of their probabilities | a loss and multipliers |
| `policy` | how much better drawn routes are than other draws on the same text | the same |
| `distil` | what each choice of a layer would lose along the router's own routes (`oracle.flips`) | offsets alone |
| `pairwise` | losses of drawn routes, as sums over pairs of layers; it plans whole routes at once | exactly |
| `threshold` | nothing: a token's rarity, change or entropy is compared with an offset | offsets alone |

Paper: arXiv 2410.10846, section 2, stage 3. Differs: the printed `(e^h / tau) / sum(e^h / tau)` cancels tau, so beta
multiplies h; the budget loss is written for one position and described per sequence, and is taken per sequence here; the
backbone, on which the paper is silent, is frozen unless asked otherwise.
"""

from .budget import budget_loss
from .calibration import calibrate, realised
from .files import BUDGETS, load, save, standard, trained
from .linear import READS, Mixture, Router
from .pairwise import Pairwise
from .processes import together
from .threshold import NUMBERS
from .training import KINDS, Stage3, train

__all__ = [
    "BUDGETS",
    "KINDS",
    "NUMBERS",
    "READS",
    "Mixture",
    "Pairwise",
    "Router",
    "Stage3",
    "budget_loss",
    "calibrate",
    "load",
    "realised",
    "save",
    "standard",
    "together",
    "train",
    "trained",
]
