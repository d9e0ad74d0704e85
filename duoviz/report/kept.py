"""Pages of a model that is not here: its notebooks as they were executed where it was, which are shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from .. import places
from ..model import is_adapter, place_of_base

KEPT = places.SHIPPED / "data" / "reports"
"""Of each model a folder of its name, with executed notebooks."""


def instead(parameters: Mapping[str, Any], chosen: Sequence[Path]) -> tuple[dict[Path, Path], str]:
    """Executed notebooks by the notebook that they are of, and why they are shown: the model is an adapter whose base is not
    here. Else none.

    Args:
        parameters: as they were asked for.
        chosen: notebooks.

    Raises:
        FileNotFoundError: nothing was kept, or something else is asked for than what was.
    """
    model = places.found(str(parameters.get("model", "")))
    if not is_adapter(model):
        return {}, ""
    try:
        place_of_base(model)
    except FileNotFoundError as error:
        there = {path: KEPT / Path(model).name / path.name for path in chosen}
        there = {path: kept for path, kept in there.items() if kept.is_file()}
        if not there or set(parameters) - {"model"}:
            raise
        return there, f"{error}. These pages were made where it was"
    return {}, ""


def keep(executed: Sequence[Path], model: str) -> Path:
    """Ship executed notebooks of a model; returns their folder. Paths of this machine become those of the repository."""
    folder = KEPT / Path(model).name
    folder.mkdir(parents=True, exist_ok=True)
    for path in executed:
        text = path.read_text(encoding="utf-8").replace(f"{places.SHIPPED}/", "").replace(str(path), path.name)
        (folder / path.name).write_text(text, encoding="utf-8")
    return folder


def about(notebook: nbformat.NotebookNode) -> tuple[float, dict[str, Any]]:
    """How many seconds an executed notebook took, and the parameters that it was given."""
    ran = notebook.metadata["papermill"]
    return float(ran["duration"]), dict(ran["parameters"])
