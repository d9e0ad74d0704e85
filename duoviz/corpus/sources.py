"""Named sources of text, and the split of their documents into train and holdout."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from .. import places
from . import python

SHIPPED = ("shipped-prose", "shipped-code")
PYTHON = ("python-prose", "python-code")
TEXTS = (".txt", ".md", ".rst", ".py", ".jsonl", ".parquet")
SPLITS = ("train", "holdout", "calibration")
HOLDOUT_SHARE = 0.04
CALIBRATION_SHARE = 0.25
"""Of the documents kept out of training, those on which routes and thresholds are chosen and nothing is scored."""


@dataclass(frozen=True)
class Document:
    """One text with a name that is unique in its source.

    Raises:
        ValueError: half of a surrogate pair, which JSON can hold and no tokenizer reads.
    """

    id: str
    text: str

    def __post_init__(self) -> None:
        check_text(self.text, f"document {self.id}")


def check_text(text: str, what: str) -> None:
    """Refuse what is no text: half of a surrogate pair.

    Raises:
        ValueError: with its place.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds {text[error.start]!a} at character {error.start}, half of a surrogate pair, which is no text:"
            " repair it, for example with text.encode('utf-8', 'replace').decode()"
        ) from None


def check(source: str) -> str:
    """The source's name, if there is such a source.

    Raises:
        ValueError: an unknown source.
        FileNotFoundError: a missing file.
    """
    kind, _, rest = source.partition(":")
    if source not in SHIPPED + PYTHON and (kind not in ("file", "hf") or not rest):
        raise ValueError(
            f"corpus source {source!r} is unknown: give one of {', '.join(SHIPPED + PYTHON)},"
            " file:PATH or hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]"
        )
    if kind == "file" and not Path(rest).exists():
        raise FileNotFoundError(f"file source {rest}: there is no such file or folder")
    return source


def documents(source: str, *, split: str = "holdout", limit: int | None = None) -> list[Document]:
    """The documents of a source that hold text, in a fixed order.

    Args:
        source: `shipped-prose`, `shipped-code`, `python-prose`, `python-code`, `file:PATH` (a text file, which is one
            document, `.jsonl` or `.parquet` with a `text` column; or a folder, for every file in it that ends as in
            `TEXTS`) or `hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]` (streamed; a Hub id, a folder of data files, or one that
            `save_to_disk` wrote).
        split: `"train"`, `"holdout"` (scored) or `"calibration"` (chosen on) of the python sources; the last two in an
            order fixed by hash, so that the first few are of all kinds. The shipped texts are never trained on; your own text
            is taken whole.
        limit: stop after so many documents.

    Raises:
        ValueError: an unknown source or split, an empty source, a file that is no text.
        FileNotFoundError: a missing file.
    """
    listed = list(islice(stream(source, split=split), limit))
    if not listed:
        raise ValueError(f"source {source!r} holds no text: at least one document that is not empty is needed")
    return listed


def stream(source: str, *, split: str = "holdout") -> Iterator[Document]:
    """`documents` one at a time: a large dataset is read only as far as it is needed. An empty source gives none.

    Raises:
        ValueError: an unknown source or split; while reading, a file that is no text.
        FileNotFoundError: a missing file.
    """
    check(source)
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: allowed are {', '.join(SPLITS)}")
    if source in SHIPPED and split == "train":
        raise ValueError(f"{source} is never trained on: it has no train split")
    kind, _, rest = source.partition(":")
    if source in SHIPPED:
        found = _shipped(source, split)
    elif source in PYTHON:
        found = _python(source, split)
    elif kind == "file":
        found = _files(Path(rest)) if Path(rest).is_dir() else _file(Path(rest), Path(rest).stem)
    else:
        found = _hub(rest)
    return (document for document in found if document.text.strip())


def holdout_share(name: str) -> bool:
    """Whether the hash of a document's name puts it into the holdout (a share of `HOLDOUT_SHARE`).

    The name (package and file), not the text: all versions of a document fall on the same side, so that a model trained
    with one set of packages is evaluated with another without meeting a document it has read in an earlier version.
    """
    return _place(name)[0] < HOLDOUT_SHARE


def _place(name: str) -> tuple[float, float]:
    """Two numbers in [0, 1) from the hash of a document's name: one splits train from the rest, one orders and splits the
    rest."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64, int.from_bytes(digest[8:16], "big") / 2**64


def _shipped(source: str, split: str) -> Iterator[Document]:
    path = places.SHIPPED / "data" / "text" / f"{source.removeprefix('shipped-')}.jsonl"
    for row in _json_lines(path):
        if row.get("split", "holdout") == split:
            yield Document(row["id"], row["text"])


def _python(source: str, split: str) -> Iterator[Document]:
    rows = python.rows(holdout_share)
    rows = rows[(rows["source"] == source) & (rows["split"] == ("train" if split == "train" else "holdout"))]
    if split == "train":
        yield from (Document(row.id, row.text) for row in rows.itertuples())
        return
    for place, name, text in sorted((_place(row.id)[1], row.id, row.text) for row in rows.itertuples()):
        if (place < CALIBRATION_SHARE) == (split == "calibration"):
            yield Document(name, text)


def _files(folder: Path) -> Iterator[Document]:
    for path in sorted(path for path in folder.rglob("*") if path.suffix in TEXTS and path.is_file()):
        yield from _file(path, path.relative_to(folder).as_posix())


def _file(path: Path, name: str) -> Iterator[Document]:
    if path.suffix == ".jsonl":
        for number, row in enumerate(_json_lines(path)):
            if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                raise ValueError(f"{path} document {number + 1}: each line must be an object with a string 'text'")
            yield Document(str(row.get("id", f"{name}-{number}")), row["text"])
    elif path.suffix == ".parquet":
        yield from _parquet(path, name)
    else:
        try:
            yield Document(name, path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error}") from error


def _parquet(path: Path, name: str) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise ValueError(f"{path} has columns {file.schema_arrow.names}: a column 'text' is needed")
        texts = file.read(["text"])["text"].to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged or no parquet file: {error}") from error
    for number, text in enumerate(texts):
        yield Document(f"{name}-{number}", _string(text, f"{path} row {number}"))


def _hub(name: str) -> Iterator[Document]:
    parts = name.split(":")
    if len(parts) > 4 or any(Path(":".join(parts[:end])).exists() for end in range(2, len(parts) + 1)):
        raise ValueError(
            f"hf:{name}: give hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]], with no colon in a folder's path: rename it, or link to it"
        )
    dataset, config, split, column = (*parts, "", "", "")[:4]
    column = column or "text"
    rows = iter(_open_dataset(name, dataset, config, split))
    for number in count():
        try:
            row = next(rows, None)
        except (ValueError, OSError) as error:  # ValueError: what pyarrow and json raise
            raise ValueError(f"hf:{name} row {number} cannot be read: {error}") from error
        if row is None:
            return
        if column not in row:
            raise ValueError(f"hf:{name} has columns {sorted(row)}: there is no {column!r}")
        yield Document(f"{dataset}-{number}", _string(row[column], f"hf:{name} row {number}"))


def _open_dataset(name: str, dataset: str, config: str, split: str) -> Iterable[dict[str, Any]]:
    """The rows of a folder of files, of one that `save_to_disk` wrote, or of a dataset of the Hub, none of them read yet.

    Raises:
        ValueError: no such configuration or split, or a folder without data.
        FileNotFoundError: no such folder or dataset; ConnectionError: the Hub cannot be reached.
    """
    import datasets

    folder = Path(dataset)
    if not folder.is_dir():
        _find_on_the_hub(name, dataset)
    try:
        if any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(dataset)
            splits = saved if isinstance(saved, dict) else {str(saved.split or split or "train"): saved}
            if config or (split or "train") not in splits:
                raise ValueError(f"it was saved with splits {sorted(splits)} and without configurations")
            return splits[split or "train"]
        return datasets.load_dataset(dataset, config or None, split=split or "train", streaming=True)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"hf:{name} cannot be opened: {error}; give hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]") from error


def _find_on_the_hub(name: str, dataset: str) -> None:
    """Check that the Hub has the dataset: asked once, as reading it would be tried again and again where there is no connection.

    Raises:
        FileNotFoundError: it has not, or the name is that of a folder; ConnectionError: it cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError

    if Path(dataset).is_absolute() or dataset.startswith(".") or dataset.count("/") > 1:
        raise FileNotFoundError(f"hf:{name}: there is no folder {dataset}, and it is not a Hub id like 'owner/name'")
    try:
        HfApi().dataset_info(dataset, timeout=20)
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"hf:{name}: there is no folder {dataset}, and no dataset on the Hub that you may read"
        ) from error
    except (HTTPError, OSError) as error:
        why = str(error).partition("\n")[0]
        raise ConnectionError(
            f"hf:{name}: there is no folder {dataset}, and the Hub cannot be reached ({why})"
        ) from error


def _string(text: object, where: str) -> str:
    """The text; a missing one is empty.

    Raises:
        ValueError: no text at all.
    """
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{where} holds a {type(text).__name__}: the column must hold text")
    return text


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except (
                ValueError,
                RecursionError,
            ) as error:  # also bytes that are not UTF-8, and lists in lists without end
                raise ValueError(f"{path} line {number + 1} is damaged: {error}") from error
