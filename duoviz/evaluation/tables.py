"""Tables of evaluations: a row for each way to route and each metric, written as soon as it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model import LanguageModel
from .perplexity import perplexity
from .ways import Way

if TYPE_CHECKING:
    import pandas


def perplexities(
    lm: LanguageModel, source: str, *, ways: Mapping[str, Way], **options: Any
) -> Iterator[dict[str, Any]]:
    """A row for each way, under its name; `options` and errors as in `perplexity`."""
    for name, way in ways.items():
        yield {**perplexity(lm, source, way=way, **options).row(), "way": name}


def write(lm: LanguageModel, rows: Iterable[dict[str, Any]], path: Path) -> pandas.DataFrame:
    """The rows as a table, which is kept after each of them as `path` with `.parquet` and with `.json`, there with the columns
    model (its folder) and fingerprint.

    Raises:
        ValueError: no rows; whatever making them raises, what is done is kept.
    """
    import pandas

    done: list[dict[str, Any]] = []
    for row in rows:
        done.append(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pandas.DataFrame(done)
        stored = table.assign(model=lm.path, fingerprint=lm.fingerprint)
        stored.to_parquet(path.with_suffix(".parquet"), index=False)
        stored.to_json(path.with_suffix(".json"), orient="records", indent=1)
    if not done:
        raise ValueError("nothing was measured: there are no ways, or the tasks have no metric")
    return table
