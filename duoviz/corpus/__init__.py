"""Text: named sources of documents, their split into train and holdout, and blocks of tokens.

`documents` reads a source; `blocks` cuts token blocks for evaluation; `packed` makes training rows.
"""

from .blocks import blocks, encode, packed
from .sources import SHIPPED, Document, check, documents, holdout_share

__all__ = ["SHIPPED", "Document", "blocks", "check", "documents", "encode", "holdout_share", "packed"]
