"""Text: named sources of documents, their split into train and holdout, and blocks of tokens.

`documents` reads a source and `stream` reads it as far as needed; `blocks` cuts token blocks for evaluation; `encode` takes
texts of your own; `packed` makes training rows.
"""

from .blocks import blocks, encode, packed, present, tokenize
from .sources import HOLDOUT_SHARE, PYTHON, SHIPPED, Document, check, documents, holdout_share, stream

__all__ = [
    "HOLDOUT_SHARE",
    "PYTHON",
    "SHIPPED",
    "Document",
    "blocks",
    "check",
    "documents",
    "encode",
    "holdout_share",
    "packed",
    "present",
    "stream",
    "tokenize",
]
