"""Documents to blocks of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt16

from ..records import Tokens
from .sources import Document
from .sources import documents as read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def blocks(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    documents: int | None = 8,
    length: int = 128,
    split: str = "holdout",
    cross: bool = False,
) -> Tokens:
    """One block of tokens from the beginning of each of the first documents that are long enough.

    Args:
        tokenizer: a fast tokenizer of transformers.
        source: as in `documents`.
        documents: number of blocks; None for all.
        length: tokens of a block; at least 2.
        split: as in `documents`.
        cross: join the documents, separated by the end-of-text token, and cut the result; a block may then hold the end
            of one document and the beginning of the next, whose first token is not scored.

    Returns:
        `Tokens` with `.ids` int64 `[documents, length]`.

    Raises:
        ValueError: fewer documents of that length than asked for, a length below 2, an unknown source.
    """
    if length < 2:
        raise ValueError(f"length {length}: a block needs at least 2 tokens, one to read and one to predict")
    if documents is not None and documents < 1:
        raise ValueError(f"documents {documents}: at least 1 is needed")
    found = read(source, split=split)
    if cross:
        return _joined(tokenizer, found, documents, length, source)
    kept: list[tuple[Document, list[int], list[tuple[int, int]]]] = []
    longest = 0
    for document in found:
        coded = tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        longest = max(longest, len(coded["input_ids"]))
        if len(coded["input_ids"]) >= length:
            kept.append((document, coded["input_ids"][:length], coded["offset_mapping"][:length]))
        if len(kept) == documents:
            break
    if not kept or (documents is not None and len(kept) < documents):
        raise ValueError(
            f"{documents or 'all'} documents of {length} tokens asked from {source!r}: it has {len(kept)} so long"
            f" (the longest has {longest} tokens); ask for fewer documents or a shorter length"
        )
    return Tokens(
        ids=np.array([ids for _, ids, _ in kept], np.int64),
        scored=np.ones((len(kept), length - 1), bool),
        text=tuple(document.text[: offsets[-1][1]] for document, _, offsets in kept),
        offsets=np.array([offsets for _, _, offsets in kept], np.int64),
        documents=tuple(document.id for document, _, _ in kept),
        source=source,
    )


def encode(tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str]) -> Tokens:
    """Texts of your own as one block each, padded to the longest.

    Raises:
        ValueError: a text of fewer than two tokens.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    coded = [tokenizer(t, return_offsets_mapping=True, add_special_tokens=False, verbose=False) for t in texts]
    sizes = [len(c["input_ids"]) for c in coded]
    if not sizes or min(sizes) < 2:
        raise ValueError(f"texts of {sizes} tokens: an empty text, or one of a single token, has nothing to predict")
    length = max(sizes)
    ids, offsets = np.zeros((len(texts), length), np.int64), np.zeros((len(texts), length, 2), np.int64)
    for row, (code, size) in enumerate(zip(coded, sizes)):
        ids[row, :size], offsets[row, :size] = code["input_ids"], code["offset_mapping"]
    return Tokens(
        ids=ids,
        scored=np.arange(1, length)[None] < np.array(sizes)[:, None],
        text=tuple(texts),
        offsets=offsets,
        documents=tuple(f"text-{i}" for i in range(len(texts))),
        source="own text",
    )


def packed(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], *, length: int
) -> UInt16[np.ndarray, "block token"]:
    """All documents one after the other, each closed by the end-of-text token, cut into rows of `length` tokens.

    Raises:
        ValueError: a vocabulary over 65,536, or too little text for one row.
    """
    if len(tokenizer) > 2**16:
        raise ValueError(f"a vocabulary of {len(tokenizer)}: packed rows hold at most {2**16} different tokens")
    parts = []
    for start in range(0, len(documents), 256):
        texts = [document.text for document in documents[start : start + 256]]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            parts.append(np.array([*ids, tokenizer.eos_token_id], np.uint16))
    stream = np.concatenate(parts)
    if len(stream) < length:
        raise ValueError(f"{len(stream)} tokens of text: one row needs {length}")
    return stream[: len(stream) // length * length].reshape(-1, length)


def _joined(
    tokenizer: PreTrainedTokenizerBase, found: list[Document], number: int | None, length: int, source: str
) -> Tokens:
    text, ids, offsets, first = "", [], [], []
    names: list[str] = []
    for document in found:
        coded = tokenizer(document.text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        size = len(coded["input_ids"])
        ids += [*coded["input_ids"], tokenizer.eos_token_id]
        offsets += [(a + len(text), b + len(text)) for a, b in coded["offset_mapping"]]
        offsets.append((len(text) + len(document.text),) * 2)
        first += [True] + [False] * size
        names += [document.id] * (size + 1)
        text += document.text
        if number is not None and len(ids) >= number * length:
            break
    rows = len(ids) // length if number is None else number
    if rows < 1 or len(ids) < rows * length:
        raise ValueError(f"{source!r} holds {len(ids)} tokens: {rows or 1} blocks of {length} need more")
    spans = np.array(offsets[: rows * length], np.int64).reshape(rows, length, 2)
    starts = spans[:, :1, :1]
    return Tokens(
        ids=np.array(ids[: rows * length], np.int64).reshape(rows, length),
        scored=~np.array(first[: rows * length]).reshape(rows, length)[:, 1:],
        text=tuple(text[row[0, 0] : row[-1, 1]] for row in spans),
        offsets=spans - starts,
        documents=tuple(names[: rows * length : length]),
        source=source,
    )
