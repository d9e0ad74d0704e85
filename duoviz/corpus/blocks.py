"""Documents to blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt16, UInt32

from ..records import Tokens, whole
from .sources import Document, check_text, stream

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bos = bool | Literal["auto"]


def blocks(
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    *,
    documents: int | None = 8,
    length: int = 128,
    split: str = "holdout",
    cross: bool = False,
    bos: Bos = "auto",
) -> Tokens:
    """One block of tokens from the beginning of each of the first documents that are long enough.

    Args:
        tokenizer: a fast tokenizer of transformers.
        source: as in `documents`.
        documents: number of blocks; None for all.
        length: tokens of a block, with the special ones that it begins with; at least 2.
        split: as in `documents`.
        cross: join the documents, separated by the end-of-text token, and cut the result; a block may then hold the end
            of one document and the beginning of the next, whose first token is not scored.
        bos: which special tokens a block begins with, as in `tokenize`.

    Returns:
        `Tokens` with `.ids` int64 `[documents, length]`.

    Raises:
        ValueError: fewer documents of that length than asked for, a length below 2, an unknown source, no fast tokenizer.
    """
    whole(length=length, documents=1 if documents is None else documents)
    if length < 2:
        raise ValueError(f"length {length}: a block needs at least 2 tokens, one to read and one to predict")
    found = stream(source, split=split)
    begin = special_beginning(tokenizer, bos)
    if len(begin) >= length:
        raise ValueError(
            f"length {length}: the {len(begin)} special tokens that a text begins with leave none to predict"
        )
    if cross:
        return _joined(tokenizer, found, documents, length, source, begin)
    longest, kept = _long_enough(tokenizer, found, documents, length, bos)
    if not kept or (documents is not None and len(kept) < documents):
        raise ValueError(
            f"{documents or 'all'} documents of {length} tokens asked from {source!r}: it has {len(kept)} so long"
            f" (the longest has {longest} tokens); ask for fewer documents or a shorter length, or join them (cross=True)"
        )
    special = np.broadcast_to(np.arange(length) < len(begin), (len(kept), length)).copy()
    return Tokens(
        ids=np.array([ids for _, ids, _ in kept], np.int64),
        scored=~special[:, 1:],
        text=tuple(document.text[: offsets[-1][1]] for document, _, offsets in kept),
        offsets=np.array([offsets for _, _, offsets in kept], np.int64),
        documents=tuple(document.id for document, _, _ in kept),
        source=source,
        special=special,
    )


def _long_enough(
    tokenizer: PreTrainedTokenizerBase, found: Iterable[Document], documents: int | None, length: int, bos: Bos
) -> tuple[int, list[tuple[Document, list[int], list[tuple[int, int]]]]]:
    """Tokens of the longest document that was read, and the first documents with `length` tokens, each with these."""
    longest, kept = 0, []
    for document in found:
        ids, offsets = tokenize(tokenizer, document.text, bos=bos)
        longest = max(longest, len(ids))
        if len(ids) >= length:
            kept.append((document, ids[:length], offsets[:length]))
        if len(kept) == documents:
            break
    return longest, kept


def encode(tokenizer: PreTrainedTokenizerBase, texts: str | Sequence[str], *, bos: Bos = "auto") -> Tokens:
    """Texts of your own as one block each, padded to the longest.

    Args:
        tokenizer: a fast tokenizer of transformers.
        texts: one or several.
        bos: which special tokens each begins with, as in `tokenize`.

    Raises:
        ValueError: a text with nothing to predict, no fast tokenizer, no begin-of-text token where one is asked for.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    begin = len(special_beginning(tokenizer, bos))
    coded = [tokenize(tokenizer, text, bos=bos) for text in texts]
    sizes = [len(ids) for ids, _ in coded]
    if not sizes:
        raise ValueError("no texts: give at least one")
    if min(sizes) <= max(1, begin):
        short = texts[int(np.argmin(sizes))]
        raise ValueError(
            f"text {short!r} of {min(sizes)} tokens has nothing to predict: at least {max(1, begin) + 1} are needed"
        )
    length = max(sizes)
    ids, offsets = np.zeros((len(texts), length), np.int64), np.zeros((len(texts), length, 2), np.int64)
    for row, (coded_ids, coded_offsets) in enumerate(coded):
        ids[row, : sizes[row]], offsets[row, : sizes[row]] = coded_ids, coded_offsets
    place = np.arange(length)[None]
    special = np.broadcast_to(place < begin, ids.shape).copy()
    return Tokens(
        ids=ids,
        scored=((place < np.array(sizes)[:, None]) & ~special)[:, 1:],
        text=tuple(texts),
        offsets=offsets,
        documents=tuple(f"text-{i}" for i in range(len(texts))),
        source="own text",
        special=special,
    )


def packed(
    tokenizer: PreTrainedTokenizerBase,
    documents: Iterable[Document],
    *,
    length: int,
    rows: int | None = None,
    bos: Bos = "auto",
) -> UInt16[np.ndarray, "block token"] | UInt32[np.ndarray, "block token"]:
    """All documents one after the other, each closed by the end-of-text token, cut into rows of `length` tokens.

    Args:
        tokenizer: its vocabulary says how wide the numbers are.
        documents: read only as far as they are needed.
        length: tokens of a row, with the special ones that it begins with.
        rows: stop after so many; None for all.
        bos: which special tokens every row begins with, as in `tokenize`: a model that was trained with a begin-of-text
            token reads nothing well without one.

    Raises:
        ValueError: no end-of-text token, or too little text for one row.
    """
    begin = special_beginning(tokenizer, bos)
    length -= len(begin)
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
    if size < length or length < 1:
        raise ValueError(f"{size} tokens of text: one row needs {length}")
    found = min(size // length, rows or size)
    text = np.concatenate(parts)[: found * length].reshape(-1, length)
    return np.hstack([np.tile(np.array(begin, dtype), (found, 1)), text])


def tokenize(
    tokenizer: PreTrainedTokenizerBase, text: str, *, bos: Bos = "auto"
) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids, and the characters (first, past-the-end) of each token; special tokens cover none.

    Args:
        tokenizer: a fast tokenizer of transformers.
        text: read as it is.
        bos: `"auto"`: the text begins with the special tokens that `tokenizer(text)` itself puts there, such as the
            begin-of-text token of Llama and Gemma, and with none where it puts none (GPT-2, Qwen); True: with a begin-of-text
            token in any case; False: with none. A text that already begins with them, such as one made by a chat template,
            gets no second ones.

    Raises:
        ValueError: no fast tokenizer, no begin-of-text token where one is asked for.
    """
    check_text(text, "the text")
    begin = special_beginning(tokenizer, bos)
    coded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    ids, offsets = coded["input_ids"], coded["offset_mapping"]
    if ids[: len(begin)] == begin:
        return ids, offsets
    return begin + ids, [(0, 0)] * len(begin) + offsets


def special_beginning(tokenizer: PreTrainedTokenizerBase, bos: Bos = "auto") -> list[int]:
    """The special tokens that a text begins with; arguments and errors as in `tokenize`."""
    if not getattr(present(tokenizer), "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} cannot say which characters a token covers: give a fast tokenizer"
        )
    if bos is False:
        return []
    # its post-processor decides: many tokenizers name a begin-of-text token and never put it
    coded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    found = coded["input_ids"][: coded["special_tokens_mask"].index(0)]
    if bos is True and not found:
        if tokenizer.bos_token_id is None:
            raise ValueError("bos=True: the tokenizer has no begin-of-text token, give bos=False or 'auto'")
        found = [tokenizer.bos_token_id]
    return found


def present(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    """The tokenizer.

    Raises:
        ValueError: there is none.
    """
    if tokenizer is None:
        raise ValueError("the model came without a tokenizer: put its tokenizer.json into its folder")
    return tokenizer


def _joined(
    tokenizer: PreTrainedTokenizerBase,
    found: Iterator[Document],
    number: int | None,
    length: int,
    source: str,
    begin: list[int],
) -> Tokens:
    """Blocks cut from the documents one after the other; each begins with the special tokens `begin`."""
    text, ids, offsets, first = "", [], [], []
    names: list[str] = []
    length -= len(begin)
    for document in found:
        coded, spans = tokenize(tokenizer, document.text, bos=False)
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
    scored = ~np.array(first[: rows * length]).reshape(rows, length)
    scored[:, 0] |= bool(begin)  # it is predicted from them
    texts = np.array(ids[: rows * length], np.int64).reshape(rows, length)
    wider = ((0, 0), (len(begin), 0))
    return Tokens(
        ids=np.hstack([np.tile(np.array(begin, np.int64), (rows, 1)), texts]),
        scored=np.pad(scored, wider)[:, 1:],
        text=tuple(text[row[0, 0] : row[-1, 1]] for row in places),
        offsets=np.pad(places - places[:, :1, :1], (*wider, (0, 0))),
        documents=tuple(names[: rows * length : length]),
        source=source,
        special=np.pad(np.zeros((rows, length), bool), wider, constant_values=True),
    )
