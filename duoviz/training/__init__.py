"""Stage 1: a Duo model trained with random routes, from nothing or from a dense model that was given small FFNs.

Every token takes, at every layer, the big or the small FFN (or neither) at random, so that both learn without the bias a
learned router would bring. `Trainer` of transformers does the work; a killed run resumes where its last checkpoint is.

Paper: arXiv 2410.10846, section 2, stage 1, and section 3.1 (preset `paper`).
"""

from .card import card
from .plan import Stage1
from .preset import PRESETS, ROW, Preset
from .record import CONVERSION, RECORD, warn_of_split
from .run import DuoTrainer, divergence, holdout_losses, last_checkpoint, train
from .text import Rows, apart, held_out, new_tokenizer, rows_of, tokenizer_of

__all__ = [
    "CONVERSION",
    "PRESETS",
    "RECORD",
    "ROW",
    "DuoTrainer",
    "Preset",
    "Rows",
    "Stage1",
    "apart",
    "card",
    "divergence",
    "held_out",
    "holdout_losses",
    "last_checkpoint",
    "new_tokenizer",
    "rows_of",
    "tokenizer_of",
    "train",
    "warn_of_split",
]
