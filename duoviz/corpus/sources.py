"""Named sources of text, and the split of their documents into train and holdout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from . import python

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("shipped-prose", "shipped-code")
PYTHON = ("python-prose", "python-code")
HOLDOUT_SHARE = 0.04


@dataclass(frozen=True)
class Document:
    """One text with a name that is unique in its source."""

    id: str
    text: str


def check(source: str) -> str:
    """The source's name, if there is such a source.

    Raises:
        ValueError: an unknown source.
    """
    if source not in SHIPPED + PYTHON and source.partition(":")[0] not in ("file", "hf"):
        raise ValueError(
            f"corpus source {source!r} is unknown: give one of {', '.join(SHIPPED + PYTHON)},"
            " file:PATH or hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]"
        )
    return source


def documents(source: str, *, split: str = "holdout", limit: int | None = None) -> list[Document]:
    """The documents of a source, in a fixed order.

    Args:
        source: `shipped-prose`, `shipped-code`, `python-prose`, `python-code`, `file:PATH` (a text file, `.jsonl` or
            `.parquet` with a `text` column) or `hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]` (streamed).
        split: `"holdout"` or `"train"` of the python sources. The shipped texts are never trained on and have no train
            split; your own text is taken whole.
        limit: stop after so many documents.

    Raises:
        ValueError: an unknown source or split, an empty source, a file that is no text.
        FileNotFoundError: a missing file.
    """
    check(source)
    if split not in ("holdout", "train"):
        raise ValueError(f"split {split!r}: allowed are 'holdout' and 'train'")
    kind, _, rest = source.partition(":")
    if source in SHIPPED:
        if split == "train":
            raise ValueError(f"{source} is never trained on: it has no train split")
        found: Iterable[Document] = _shipped(source)
    elif source in PYTHON:
        found = _python(source, split)
    elif kind == "file":
        found = _file(Path(rest))
    else:
        found = _hub(rest)
    listed = [document for document in islice(found, limit) if document.text.strip()]
    if not listed:
        raise ValueError(f"source {source!r} holds no text: at least one document that is not empty is needed")
    return listed


def holdout_share(text: str) -> bool:
    """Whether the hash of a text puts it into the holdout (a share of `HOLDOUT_SHARE`)."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") < HOLDOUT_SHARE * 2**64


def _shipped(source: str) -> Iterator[Document]:
    path = ROOT / "data" / "text" / f"{source.removeprefix('shipped-')}.jsonl"
    for row in _json_lines(path):
        yield Document(row["id"], row["text"])


def _python(source: str, split: str) -> Iterator[Document]:
    rows = python.rows(holdout_share)
    for row in rows[(rows["source"] == source) & (rows["split"] == split)].itertuples():
        yield Document(row.id, row.text)


def _file(path: Path) -> Iterator[Document]:
    if not path.is_file():
        raise FileNotFoundError(f"file source {path}: there is no such file")
    if path.suffix == ".jsonl":
        for number, row in enumerate(_json_lines(path)):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise ValueError(f"{path} line {number + 1}: each line must be an object with a string 'text'")
            yield Document(str(row.get("id", f"{path.stem}-{number}")), row["text"])
    elif path.suffix == ".parquet":
        import pandas

        try:
            frame = pandas.read_parquet(path)
        except Exception as error:
            raise ValueError(f"{path} cannot be read as parquet: {error}") from error
        if "text" not in frame:
            raise ValueError(f"{path} has columns {list(frame.columns)}: a column 'text' is needed")
        for number, text in enumerate(frame["text"]):
            yield Document(f"{path.stem}-{number}", text)
    else:
        try:
            yield Document(path.stem, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _hub(name: str) -> Iterator[Document]:
    from datasets import load_dataset

    dataset, config, split, column = (*name.split(":"), "", "", "")[:4]
    rows = load_dataset(dataset, config or None, split=split or "train", streaming=True)
    column = column or "text"
    for number, row in enumerate(rows):
        if column not in row:
            raise ValueError(f"hf:{name} has columns {sorted(row)}: there is no {column!r}")
        yield Document(f"{dataset}-{number}", row[column])


def _json_lines(path: Path) -> Iterator[dict]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path} line {number + 1} is damaged: {error}") from error
