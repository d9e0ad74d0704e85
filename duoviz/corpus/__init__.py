"""Text: named sources of documents, their split into train and holdout, and blocks of tokens.

`documents` reads a source and `stream` reads it as far as needed; `blocks` cuts token blocks for evaluation; `encode` takes
texts of your own; `packed` makes training rows.
"""

from .blocks import Bos, blocks, encode, packed, present, special_beginning, tokenize
from .python import SPLIT
from .sources import HOLDOUT_SHARE, PYTHON, SHIPPED, Document, check, documents, holdout_share, stream

__all__ = [
    "HOLDOUT_SHARE",
    "PYTHON",
    "SHIPPED",
    "SPLIT",
    "Bos",
    "Document",
    "blocks",
    "check",
    "documents",
    "encode",
    "holdout_share",
    "packed",
    "present",
    "special_beginning",
    "stream",
    "tokenize",
]
