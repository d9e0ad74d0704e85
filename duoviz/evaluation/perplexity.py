"""Perplexity on any source of text, with windows that slide over documents longer than the model's context."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

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
    asked = Windows.of(lm, source, way=way, length=length, stride=stride, split=split, bos=bos)
    whole(documents=1 if documents is None else documents)
    return asked.summary(asked.scores(lm, asked.texts(lm, documents), batch_size=batch_size))


Text: TypeAlias = tuple[np.ndarray, int]
"""Token ids of a document, int64 `[token]`, and the bytes of what is predicted of it."""


@dataclass(frozen=True)
class Scores:
    """The losses of some documents.

    Attributes:
        loss_nats: in rows of one width, the last of a document filled up with NaN.
        documents: the number of each row's document in its source.
        bytes: as in `Perplexity`.
        counts: how often each choice was taken.
    """

    loss_nats: Float32[np.ndarray, "row position"]
    documents: Int64[np.ndarray, " row"]
    bytes: int
    counts: Int64[np.ndarray, " choice"]

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """Those of several parts, in their order."""
        return cls(
            np.concatenate([part.loss_nats for part in parts]),
            np.concatenate([part.documents for part in parts]),
            sum(part.bytes for part in parts),
            np.sum([part.counts for part in parts], axis=0),
        )

    def write(self, path: Path) -> None:
        """As a file that `read` reads."""
        with path.open("wb") as file:  # numpy gives a name an ending
            np.savez(file, **vars(self))

    @classmethod
    def read(cls, path: Path) -> Scores:
        """What `write` has written."""
        with np.load(path) as kept:
            return cls(kept["loss_nats"], kept["documents"], int(kept["bytes"]), kept["counts"])


@dataclass(frozen=True)
class Windows:
    """What `perplexity` is asked, checked and with nothing left open; its attributes are those arguments."""

    source: str
    way: Way
    length: int
    stride: int
    split: str = "holdout"
    bos: corpus.Bos = "auto"

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        source: str,
        *,
        way: Way,
        length: int | None = None,
        stride: int | None = None,
        split: str = "holdout",
        bos: corpus.Bos = "auto",
    ) -> Windows:
        """Arguments and errors as in `perplexity`."""
        length = min(lm.context, LONGEST) if length is None else length
        stride = max(1, length // 2) if stride is None else stride
        corpus.present(lm.tokenizer)
        room = length - len(corpus.special_beginning(lm.tokenizer, bos))
        if not 1 <= room <= lm.context:
            raise ValueError(f"length {room}: the model's context is {lm.context}, give 1..{lm.context} tokens")
        if not 1 <= stride <= room:
            raise ValueError(f"stride {stride}: windows of {room} tokens advance by 1..{room}")
        return cls(source, ways_.check(lm, way), length, stride, split, bos)

    def texts(self, lm: LanguageModel, documents: int | None) -> list[Text]:
        """The first documents with something to predict; all if no number is given."""
        first = len(corpus.special_beginning(lm.tokenizer, self.bos))

        def every() -> Iterator[Text]:
            for document in corpus.stream(self.source, split=self.split):
                ids, offsets = corpus.tokenize(lm.tokenizer, document.text, bos=self.bos)
                if len(ids) > max(1, first):
                    start = 0 if first else offsets[0][1]
                    yield np.array(ids, np.int64), len(document.text[start:].encode("utf-8", "surrogatepass"))

        return list(islice(every(), documents))

    def scores(
        self, lm: LanguageModel, texts: Sequence[Text], *, begun: int = 0, batch_size: int = 8, quiet: bool = False
    ) -> Scores:
        """Read some of the documents, `batch_size` windows in a forward pass; errors as in `perplexity`.

        Args:
            lm: the model.
            texts: some of `texts`.
            begun: how many come before them.
            batch_size: as in `perplexity`.
            quiet: show no progress.
        """
        whole(batch_size=batch_size)
        training.warn_of_split(lm.path, self.source)
        first = len(corpus.special_beginning(lm.tokenizer, self.bos))
        total, done, size = sum(len(ids) - max(1, first) for ids, _ in texts), 0, 0
        pieces = _pieces(lm, texts, self.way, self.length - first, self.stride, first)
        rows: list[Float32[np.ndarray, "row position"]] = []
        numbers: list[int] = []
        counts = np.zeros(len(LETTERS), np.int64)
        with progress.bar(f"perplexity of {self.source}, {ways_.describe(self.way)}", quiet=quiet) as watch:
            while batch := list(islice(pieces, batch_size)):
                readings = ways_.read(lm, [piece for *_, piece in batch], self.way)
                for (number, new, piece), reading in zip(batch, readings):
                    rows.append(_rows(reading.loss_nats, self.stride))
                    numbers += [begun + number] * len(rows[-1])
                    counts += np.bincount(reading.routes[-len(piece.targets) :].ravel(), minlength=len(counts))
                    size, done = size + new, done + len(piece.targets)
                watch(done / total)
        losses = np.concatenate([np.empty((0, self.stride), np.float32), *rows])
        return Scores(losses, np.array(numbers, np.int64), size, counts)

    def summary(self, scores: Scores) -> Perplexity:
        """The perplexity of the documents that were read.

        Raises:
            ValueError: there are none.
        """
        if not len(scores.documents):
            raise ValueError(
                f"source {self.source!r} holds no document of two tokens or more: there is nothing to predict"
            )
        return Perplexity(
            source=self.source,
            way=ways_.describe(self.way),
            length=self.length,
            stride=self.stride,
            loss_nats=metrics.mean_interval(scores.loss_nats, [str(number) for number in scores.documents]),
            bytes=scores.bytes,
            share_asked=ways_.share_asked(self.way),
            **ways_.shares(scores.counts),
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


def _pieces(
    lm: LanguageModel, texts: Iterable[Text], way: Way, length: int, stride: int, first: int
) -> Iterator[tuple[int, int, Piece]]:
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
            yield number, 0 if begin else size, Piece.cut(ids, routes, first=first, **places)


def _rows(losses: Float32[np.ndarray, " scored"], width: int) -> Float32[np.ndarray, "row position"]:
    """Losses in rows of one width, the last filled up with NaN."""
    rows = np.full((-(-len(losses) // width), width), np.nan, np.float32)
    rows.reshape(-1)[: len(losses)] = losses
    return rows
