"""Documents to blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt16, UInt32

from ..records import Tokens
from .sources import Document, stream

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
        ValueError: fewer documents of that length than asked for, a length below 2, an unknown source, no fast tokenizer.
    """
    if length < 2:
        raise ValueError(f"length {length}: a block needs at least 2 tokens, one to read and one to predict")
    if documents is not None and documents < 1:
        raise ValueError(f"documents {documents}: at least 1 is needed")
    found = stream(source, split=split)
    if cross:
        return _joined(tokenizer, found, documents, length, source)
    kept: list[tuple[Document, list[int], list[tuple[int, int]]]] = []
    longest = 0
    for document in found:
        ids, offsets = tokenize(tokenizer, document.text)
        longest = max(longest, len(ids))
        if len(ids) >= length:
            kept.append((document, ids[:length], offsets[:length]))
        if len(kept) == documents:
            break
    if not kept or (documents is not None and len(kept) < documents):
        raise ValueError(
            f"{documents or 'all'} documents of {length} tokens asked from {source!r}: it has {len(kept)} so long"
            f" (the longest has {longest} tokens); ask for fewer documents or a shorter length, or join them (cross=True)"
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
    """Texts of your own as one block each, padded to the longest; as in `blocks`, no special tokens are added.

    Raises:
        ValueError: a text of fewer than two tokens, no fast tokenizer.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    coded = [tokenize(tokenizer, text) for text in texts]
    sizes = [len(ids) for ids, _ in coded]
    if not sizes:
        raise ValueError("no texts: give at least one")
    if min(sizes) < 2:
        short = texts[int(np.argmin(sizes))]
        raise ValueError(f"text {short!r} of {min(sizes)} tokens has nothing to predict: at least 2 tokens are needed")
    length = max(sizes)
    ids, offsets = np.zeros((len(texts), length), np.int64), np.zeros((len(texts), length, 2), np.int64)
    for row, (coded_ids, coded_offsets) in enumerate(coded):
        ids[row, : sizes[row]], offsets[row, : sizes[row]] = coded_ids, coded_offsets
    return Tokens(
        ids=ids,
        scored=np.arange(1, length)[None] < np.array(sizes)[:, None],
        text=tuple(texts),
        offsets=offsets,
        documents=tuple(f"text-{i}" for i in range(len(texts))),
        source="own text",
    )


def packed(
    tokenizer: PreTrainedTokenizerBase, documents: Iterable[Document], *, length: int, rows: int | None = None
) -> UInt16[np.ndarray, "block token"] | UInt32[np.ndarray, "block token"]:
    """All documents one after the other, each closed by the end-of-text token, cut into rows of `length` tokens.

    Args:
        tokenizer: its vocabulary says how wide the numbers are.
        documents: read only as far as they are needed.
        length: tokens of a row.
        rows: stop after so many; None for all.

    Raises:
        ValueError: no end-of-text token, or too little text for one row.
    """
    end = present(tokenizer).eos_token_id
    if end is None:
        raise ValueError("the tokenizer has no end-of-text token to put between documents: set its eos_token")
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    parts, size, waiting = [np.zeros(0, dtype)], 0, iter(documents)
    while (rows is None or size < rows * length) and (batch := list(islice(waiting, 256))):
        texts = [document.text for document in batch]
        for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            parts.append(np.array([*ids, end], dtype))
            size += len(parts[-1])
    if size < length:
        raise ValueError(f"{size} tokens of text: one row needs {length}")
    found = min(size // length, rows or size)
    return np.concatenate(parts)[: found * length].reshape(-1, length)


def tokenize(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids and the characters (first, past-the-end) of each token, without special tokens.

    Raises:
        ValueError: no fast tokenizer.
    """
    if not getattr(present(tokenizer), "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} cannot say which characters a token covers: give a fast tokenizer"
        )
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    return coded["input_ids"], coded["offset_mapping"]


def present(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer.

    Raises:
        ValueError: there is none.
    """
    if tokenizer is None:
        raise ValueError("the model came without a tokenizer: put its tokenizer.json into its folder")
    return tokenizer


def _joined(
    tokenizer: PreTrainedTokenizerBase, found: Iterator[Document], number: int | None, length: int, source: str
) -> Tokens:
    text, ids, offsets, first = "", [], [], []
    names: list[str] = []
    for document in found:
        coded, spans = tokenize(tokenizer, document.text)
        size = len(coded)
        ids += [*coded, tokenizer.eos_token_id]
        offsets += [(a + len(text), b + len(text)) for a, b in spans]
        offsets.append((len(text) + len(document.text),) * 2)
        first += [True] + [False] * size
        names += [document.id] * (size + 1)
        text += document.text
        if number is not None and len(ids) >= number * length:
            break
    rows = len(ids) // length if number is None else number
    if rows < 1 or len(ids) < rows * length:
        raise ValueError(f"{source!r} holds {len(ids)} tokens: {rows or 1} blocks of {length} need more")
    places = np.array(offsets[: rows * length], np.int64).reshape(rows, length, 2)
    return Tokens(
        ids=np.array(ids[: rows * length], np.int64).reshape(rows, length),
        scored=~np.array(first[: rows * length]).reshape(rows, length)[:, 1:],
        text=tuple(text[row[0, 0] : row[-1, 1]] for row in places),
        offsets=places - places[:, :1, :1],
        documents=tuple(names[: rows * length : length]),
        source=source,
    )
