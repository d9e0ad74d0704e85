"""Perplexity on any source of text, with windows that slide over documents longer than the model's context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64

from .. import corpus, metrics, progress, training
from ..metrics import Interval
from ..model import LanguageModel
from ..records import whole
from ..routes import LETTERS
from . import ways as ways_
from .ways import Piece, Way

LONGEST = 2048
"""Tokens of a window if none are asked for and the model's context is longer."""


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts a source when its tokens are routed in one way.

    Attributes:
        source: the corpus source.
        way: as `ways.describe` says it.
        length: tokens of a window.
        stride: tokens from one window to the next.
        loss_nats: mean over scored tokens, with its interval over documents, and how many there are of both.
        bytes: UTF-8 bytes of the documents, those of their first tokens left out, as these are not scored.
        share_asked: share of big asked for.
        share_big, share_small, share_skip: realised, over the tokens read and all layers; a token in several windows
            counts once.
    """

    source: str
    way: str
    length: int
    stride: int
    loss_nats: Interval
    bytes: int
    share_asked: float
    share_big: float
    share_small: float
    share_skip: float

    @property
    def perplexity(self) -> float:
        """exp of the mean loss."""
        return metrics.perplexity(self.loss_nats.mean)

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return self.loss_nats.positions

    @property
    def bits_per_byte(self) -> float:
        """The sum of the losses in bits over the bytes of the text: comparable between tokenizers."""
        return float(self.loss_nats.mean * self.tokens / (np.log(2) * self.bytes))

    def row(self) -> dict[str, Any]:
        """A row of a table: the attributes, the interval as `<name>_low` and `<name>_high`."""
        mean, low, high = self.loss_nats.mean, self.loss_nats.low, self.loss_nats.high
        fields = {name: value for name, value in asdict(self).items() if name != "loss_nats"}
        return {
            **fields,
            "perplexity": self.perplexity,
            "perplexity_low": metrics.perplexity(low),
            "perplexity_high": metrics.perplexity(high),
            "loss_nats": mean,
            "loss_nats_low": low,
            "loss_nats_high": high,
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.tokens,
            "documents": self.loss_nats.documents,
        }


def perplexity(
    lm: LanguageModel,
    source: str,
    *,
    way: Way,
    length: int | None = None,
    stride: int | None = None,
    documents: int | None = None,
    batch_size: int = 8,
    split: str = "holdout",
    bos: corpus.Bos = "auto",
) -> Perplexity:
    """Perplexity of a source: every token but a document's first is scored once.

    A document is read in windows of `length` tokens that advance by `stride`; of each window after the first only the last
    `stride` predictions count, so each is made with at least `length - stride + 1` tokens of context, or all there are.
    With `stride=length` the windows are disjoint. Every window begins with the special tokens that the tokenizer puts before a
    text; then the document's first token is predicted from them and scored too.

    Source: the Transformers guide on perplexity of fixed-length models. Differs: the last token of a window is read too, to
    predict the one after it, so that disjoint windows lose no token; the guide's `max_length` is `length + 1` here.

    Args:
        lm: the model.
        source: as in `corpus.documents`; read only as far as it is needed.
        way: how each token is routed.
        length: tokens of a window; if None the model's context, at most `LONGEST`.
        stride: tokens from one window to the next; half the length if None.
        documents: stop after so many that hold two tokens or more; None for all.
        batch_size: windows in one forward pass; it changes nothing but speed and memory.
        split: as in `corpus.documents`.
        bos: which special tokens a window begins with, as in `corpus.tokenize`.

    Raises:
        ValueError: before anything is computed: no tokenizer, a length outside the context, a stride below 1 or above the
            length, documents or batch_size below 1, an unknown source or split, a source without text, a way that the model
            cannot take; NaN among the losses.
        FileNotFoundError: a missing file.
    """
    length = min(lm.context, LONGEST) if length is None else length
    stride = max(1, length // 2) if stride is None else stride
    first = len(corpus.special_beginning(lm.tokenizer, bos))
    _check(lm, length - first, stride, documents, batch_size)
    way = ways_.check(lm, way)
    training.warn_of_split(lm.path, source)
    texts = list(islice(_texts(lm, source, split, bos), documents))
    total, done = sum(len(ids) - max(1, first) for ids, _ in texts), 0
    pieces = _pieces(lm, texts, way, length - first, stride, first)
    rows: list[Float32[np.ndarray, "row position"]] = []
    names: list[str] = []
    counts, size = np.zeros(len(LETTERS), np.int64), 0
    with progress.bar(f"perplexity of {source}, {ways_.describe(way)}") as watch:
        while batch := list(islice(pieces, batch_size)):
            for (document, new, piece), reading in zip(batch, ways_.read(lm, [piece for *_, piece in batch], way)):
                rows.append(_rows(reading.loss_nats, stride))
                names += [document] * len(rows[-1])
                counts += np.bincount(reading.routes[-len(piece.targets) :].ravel(), minlength=len(counts))
                size += new
                done += len(piece.targets)
            watch(done / total)
    if not rows:
        raise ValueError(f"source {source!r} holds no document of two tokens or more: there is nothing to predict")
    return Perplexity(
        source=source,
        way=ways_.describe(way),
        length=length,
        stride=stride,
        loss_nats=metrics.mean_interval(np.concatenate(rows), names),
        bytes=size,
        share_asked=ways_.share_asked(way),
        **ways_.shares(counts),
    )


def windows(tokens: int, *, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """The windows over so many tokens that are read: begin, end (not included), and the first whose prediction counts."""
    scored = 0
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        yield begin, end, scored
        if end == tokens:
            return
        scored = end


def _check(lm: LanguageModel, length: int, stride: int, documents: int | None, batch_size: int) -> None:
    corpus.present(lm.tokenizer)
    if not 1 <= length <= lm.context:
        raise ValueError(f"length {length}: the model's context is {lm.context}, give 1..{lm.context} tokens")
    if not 1 <= stride <= length:
        raise ValueError(f"stride {stride}: windows of {length} tokens advance by 1..{length}")
    whole(documents=1 if documents is None else documents, batch_size=batch_size)


def _texts(
    lm: LanguageModel, source: str, split: str, bos: corpus.Bos
) -> Iterator[tuple[Int64[np.ndarray, " token"], int]]:
    """Token ids of each document with something to predict, and the bytes of what is predicted of it."""
    first = len(corpus.special_beginning(lm.tokenizer, bos))
    for document in corpus.stream(source, split=split):
        ids, offsets = corpus.tokenize(lm.tokenizer, document.text, bos=bos)
        if len(ids) > max(1, first):
            start = 0 if first else offsets[0][1]
            yield np.array(ids, np.int64), len(document.text[start:].encode("utf-8", "surrogatepass"))


def _pieces(
    lm: LanguageModel, texts: Iterable[tuple[np.ndarray, int]], way: Way, length: int, stride: int, first: int
) -> Iterator[tuple[str, int, Piece]]:
    """Every window of every document: the document's number, its bytes (once, else 0) and what is read.

    Args:
        lm, texts, way, stride: as in `perplexity`.
        length: tokens of a window after the special ones.
        first: special tokens that a document, and so every window, begins with.
    """
    for number, (ids, size) in enumerate(texts):
        routes = ways_.drawn(way, ids, tokens=len(ids) - 1, layers=lm.layers)
        text = max(
            1, len(ids) - 1 - first
        )  # tokens that are read; one that follows only special ones is predicted alone
        for begin, end, scored in windows(text, length=length, stride=stride):
            places = {"begin": begin + first, "end": min(end + first, len(ids) - 1), "scored": scored + first}
            if begin == 0:
                places |= {"begin": 0, "scored": max(0, first - 1)}
            yield str(number), 0 if begin else size, Piece.cut(ids, routes, first=first, **places)


def _rows(losses: Float32[np.ndarray, " scored"], width: int) -> Float32[np.ndarray, "row position"]:
    """Losses in rows of one width, the last filled up with NaN."""
    rows = np.full((-(-len(losses) // width), width), np.nan, np.float32)
    rows.reshape(-1)[: len(losses)] = losses
    return rows
