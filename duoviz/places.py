"""Where the suite's own files are, and where it writes.

In the repository both are its top folder. An installed package brings its notebooks, models, texts and results along in
`duoviz/shipped`, is never written to, and writes below the working directory or the folder in the environment variable
DUOVIZ_HOME.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

_PACKAGE = Path(__file__).resolve().parent
REPOSITORY = _PACKAGE.parent if (_PACKAGE.parent / "pyproject.toml").is_file() else None
"""The top folder of a checkout; None if the package is installed without one."""
SHIPPED = REPOSITORY or _PACKAGE / "shipped"
"""The folder that holds `data` and `notebooks`."""
HOME = "DUOVIZ_HOME"
"""Name of the environment variable that holds the folder in which `runs` is written."""


def runs() -> Path:
    """The folder of results and caches."""
    return Path(os.environ.get(HOME) or REPOSITORY or Path.cwd()) / "runs"


def found(path: Path | str) -> str:
    """A path as it is if something is there, else that of a shipped file or folder of this name (`data/duo-tiny`), if there
    is one."""
    shipped = SHIPPED / path
    return str(shipped if not Path(path).exists() and shipped.exists() else path)


def replaced(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is there whole or not at all, whoever else writes it, on this machine or another."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        write(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def copy_notebooks(folder: Path) -> list[Path]:
    """Copy the notebooks into a folder, to be edited there; returns the copies.

    Raises:
        FileExistsError: a notebook of this name is there already; nothing is copied.
        OSError: the folder cannot be written to.
    """
    notebooks = sorted((SHIPPED / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        if (folder / notebook.name).exists():
            raise FileExistsError(f"{folder / notebook.name} is there already: give another folder, or move it away")
    folder.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(notebook, folder / notebook.name)) for notebook in notebooks]
