"""`python-prose` and `python-code`: text that every installation already has.

Prose: the docstrings of each module, joined, and the language reference of `pydoc_data.topics`. Code: the sources. Read
from the standard library and from the packages that the suite runs on, with what those need; nothing of it is
redistributed. A document of one split that shares half of its word shingles with one of the other is left out of train.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import os
import re
import sys
import sysconfig
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import places, progress

if TYPE_CHECKING:
    import pandas

# fmt: off
PACKAGES = (
    "torch", "transformers", "accelerate", "tokenizers", "safetensors", "datasets", "jupyterlab", "plotly", "ipywidgets",
    "anywidget", "papermill", "nbclient", "nbconvert", "nbval", "pandas", "pyarrow", "typer", "playwright",
)
# fmt: on
"""Read with everything they need. The list is its own, not `requirements.txt`, so that a new tool changes no split."""
CODE_PER_PACKAGE = 2_500_000
PROSE_PER_PACKAGE = 4_000_000
SHORTEST = 400
LONGEST_FILE = 400_000
SHINGLE = 8
VERSION = 2
SPLIT = "name"
"""What decides on which side a document falls: its name (package and file), the same in all versions of a package."""


def rows(in_holdout: Callable[[str], bool]) -> pandas.DataFrame:
    """All documents of both sources: columns source, id, text, split ("train", "holdout" or "dropped").

    The first call takes a minute or two; the result is kept under `runs/corpus` for this set of installed versions.
    """
    import pandas

    packages = _packages()
    key = hashlib.sha256(repr((VERSION, sys.version_info[:3], sorted(packages.items()))).encode()).hexdigest()[:12]
    path = places.runs() / "corpus" / f"python-{key}.parquet"
    if path.is_file():
        return pandas.read_parquet(path)
    names, found = ["", *sorted(packages)], []
    with ProcessPoolExecutor() as pool, progress.bar("reading the installed Python packages, once") as watch:
        for number, part in enumerate(pool.map(_package, names), 1):
            found += part
            watch(number / len(names))
    frame = pandas.DataFrame([*_topics(), *found], columns=["source", "id", "text"])
    frame = frame.drop_duplicates("text", ignore_index=True)
    frame["split"] = _split(frame["text"].tolist(), [in_holdout(name) for name in frame["id"]])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    frame.to_parquet(temporary)
    temporary.replace(path)
    return frame


def _packages() -> dict[str, str]:
    """Name and version of every installed distribution that the requirements need."""
    waiting = list(PACKAGES)
    found: dict[str, str] = {}
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if not name or name in found:
            continue
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found[name] = distribution.version
        needs = [need for need in distribution.requires or [] if "extra ==" not in need]
        waiting += re.findall(r"^[A-Za-z0-9_.-]+", "\n".join(needs), re.MULTILINE)
    return found


def _files(package: str) -> Iterator[tuple[str, Path]]:
    """Name and path of the Python files of one package ("" is the standard library), in an order fixed by hash."""
    if package:
        distribution = importlib.metadata.distribution(package)
        listed = [
            (str(f), Path(str(distribution.locate_file(f)))) for f in distribution.files or [] if f.suffix == ".py"
        ]
    else:
        root = Path(sysconfig.get_paths()["stdlib"])
        listed = [(str(f.relative_to(root)), f) for f in root.rglob("*.py")]
        listed = [(name, f) for name, f in listed if "site-packages" not in name and "pydoc_data" not in name]
    yield from sorted(listed, key=lambda item: hashlib.sha256(item[0].encode()).digest())


def _package(package: str) -> list[tuple[str, str, str]]:
    found, prose_left, code_left = [], PROSE_PER_PACKAGE, CODE_PER_PACKAGE
    for name, path in _files(package):
        if prose_left <= 0 and code_left <= 0:
            break
        try:
            code = path.read_text(encoding="utf-8")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(code)
        except (OSError, UnicodeDecodeError, SyntaxError, ValueError, RecursionError):
            continue  # test data that is broken on purpose
        prose = _docstrings(tree)
        label = f"{package or 'python'}/{name}"
        if len(prose) >= SHORTEST and prose_left > 0:
            found.append(("python-prose", label, prose))
            prose_left -= len(prose)
        if SHORTEST <= len(code) <= LONGEST_FILE and code_left > 0:
            found.append(("python-code", label, code))
            code_left -= len(code)
    return found


def _docstrings(tree: ast.Module) -> str:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(dict.fromkeys(text.strip() for text in texts if text and len(text) > 40))


def _topics() -> list[tuple[str, str, str]]:
    from pydoc_data.topics import topics

    return [("python-prose", f"topics/{name}", text.strip()) for name, text in topics.items() if len(text) >= SHORTEST]


def _split(texts: list[str], held: list[bool]) -> list[str]:
    """The split of each text, given which are held out; a train text too near to a holdout text is "dropped"."""
    where: dict[int, list[int]] = defaultdict(list)
    sizes: dict[int, int] = {}
    words: dict[str, int] = {}
    for index, text in enumerate(texts):
        if held[index]:
            shingles = _shingles(text, words)
            sizes[index] = len(shingles)
            for shingle in shingles:
                where[shingle].append(index)
    splits = []
    for index, text in enumerate(texts):
        if held[index]:
            splits.append("holdout")
            continue
        shingles = _shingles(text, words)
        shared = Counter(other for shingle in shingles for other in where.get(shingle, ()))
        near = any(hits >= 0.5 * max(1, min(len(shingles), sizes[other])) for other, hits in shared.items())
        splits.append("dropped" if near else "train")
    return splits


def _shingles(text: str, words: dict[str, int]) -> list[int]:
    """A fixed quarter of the hashes of all runs of `SHINGLE` words."""
    ids = []
    for word in text.split():
        if word not in words:
            words[word] = zlib.crc32(word.encode("utf-8", "surrogatepass"))
        ids.append(words[word])
    if len(ids) < SHINGLE:
        return []
    runs = np.lib.stride_tricks.sliding_window_view(np.array(ids, np.uint64), SHINGLE)
    factors = np.uint64(0x9E3779B97F4A7C15) ** np.arange(1, SHINGLE + 1, dtype=np.uint64)
    hashes = (runs * factors).sum(1, dtype=np.uint64)
    hashes ^= hashes >> np.uint64(29)
    return np.unique(hashes[hashes % np.uint64(4) == 0]).tolist()
