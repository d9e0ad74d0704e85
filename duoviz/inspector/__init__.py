"""The token inspector: look at the routes of each token, change them, see what it costs.

It is given an `Engine`, never a model, so that it works without torch.
"""

from .analysis import Analysis, Cancelled, Engine, Question
from .reading import STATISTICS, Pin
from .views import Inspector

__all__ = ["STATISTICS", "Analysis", "Cancelled", "Engine", "Inspector", "Pin", "Question"]
