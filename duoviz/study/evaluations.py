"""Perplexity as a sweep: one part for each way to route the tokens and each batch of documents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import corpus, evaluation
from ..evaluation.perplexity import Scores, Text, Windows
from ..evaluation.ways import identity
from ..places import replaced
from .sweep import Files, Sweep


@dataclass(frozen=True, kw_only=True)
class EvaluationSweep(Sweep):
    """The perplexity of a source under several ways to route its tokens; the table is that of `evaluation.write`.

    Attributes:
        ways: as `evaluation.ways_of` takes them.
        length, stride, bos: as in `evaluation.perplexity`.
    """

    ways: dict[str, Any] = field(default_factory=dict)
    length: int | None = None
    stride: int | None = None
    bos: corpus.Bos = "auto"

    def begin(self) -> Callable[[slice], Files]:
        asked, texts, lm = *self._asked(), self.study.lm

        def compute(documents: slice) -> Files:
            files: Files = []
            for way in asked.values():
                for batch, part in self._parts(way, texts, documents):
                    if not part.is_file():
                        replaced(part, way.scores(lm, texts[batch], begun=batch.start, quiet=True).write)
                    files.append([part])
            return files

        return compute

    def merge(self) -> None:
        def rows() -> Iterator[dict[str, Any]]:
            asked, texts = self._asked()
            for name, way in asked.items():
                parts = [Scores.read(part) for _, part in self._parts(way, texts, slice(0, self.study.documents))]
                yield {**way.summary(Scores.joined(parts)).row(), "way": name}

        evaluation.write(self.study.lm, rows(), self.study.kept / "perplexity")

    def _asked(self) -> tuple[dict[str, Windows], list[Text]]:
        """What is read in each way, and the documents, which are the same for all."""
        lm, options = self.study.lm, {"length": self.length, "stride": self.stride, "bos": self.bos}
        ways = evaluation.ways_of(lm, **self.ways)
        asked = {name: Windows.of(lm, self.source, way=way, **options) for name, way in ways.items()}  # type: ignore[arg-type]
        return asked, next(iter(asked.values())).texts(lm, self.study.documents)

    def _parts(self, way: Windows, texts: list[Text], documents: slice) -> Iterator[tuple[slice, Path]]:
        """The batches of some documents, and the file of each under one way."""
        folder = self.study.kept / "perplexity.parts"
        folder.mkdir(parents=True, exist_ok=True)
        options = (way.source, way.length, way.stride, way.split, way.bos, identity(way.way), self.study.lm.fingerprint)
        for begin in range(documents.start, documents.stop, self.batch):
            batch = slice(begin, min(begin + self.batch, documents.stop))
            said = repr((*options, batch, [ids.tobytes() for ids, _ in texts[batch]]))
            yield batch, folder / f"{hashlib.sha256(said.encode()).hexdigest()[:16]}.npz"
