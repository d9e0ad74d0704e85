"""Progress of what can take more than a few seconds: one bar, with the time left.

In a terminal and in JupyterLab it is tqdm's bar; where output goes to a file it is a plain line now and then. It is silent for
the first seconds, in headless notebooks, and where `DUOVIZ_QUIET` is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

QUIET = "DUOVIZ_QUIET"
"""Environment variable that silences every bar when it is set to anything but 0."""
DELAY_SECONDS = 5.0
"""A bar appears after so many: what is quicker needs none."""
LINE_SECONDS = 15.0
"""Between two plain lines."""
FORMAT = "{desc}: {percentage:3.0f}% |{bar:30}| {elapsed} gone, {remaining} left{postfix}"
Watch = Callable[[float], None]
"""Is told the share of the work that is done, 0 to 1; what it raises ends the work."""


def unwatched(share: float) -> None:
    """A `Watch` that does nothing."""


def part(watch: Watch, number: int, of: int) -> Watch:
    """The `Watch` of one of several parts of equal length."""
    return lambda share: watch((number + share) / of)


@contextmanager
def bar(what: str, *, begun: float = 0.0, quiet: bool = False) -> Iterator[Watch]:
    """Show how far some work has come.

    Args:
        what: a few words that name the work.
        begun: the share that was done before, which says nothing about the time left.
        quiet: show nothing.

    Yields:
        The function to tell the share that is done.
    """
    lines = not sys.stderr.isatty() and not _in_a_kernel()
    shown: Any = tqdm(
        total=1.0,
        initial=begun,
        desc=what,
        delay=DELAY_SECONDS,
        mininterval=LINE_SECONDS if lines else 0.2,
        miniters=0,
        file=_Lines() if lines else sys.stderr,
        bar_format=FORMAT.replace("|{bar:30}| ", "") if lines else FORMAT,
        disable=quiet or silent(),
        leave=False,
    )

    def to(share: float) -> None:
        if (more := min(1.0, share) - shown.n) > 0:
            shown.update(more)

    with shown:
        yield to


def duration(seconds: float) -> str:
    """A length of time in words, as exact as an estimate is: `"8 s"`, `"4 min"`, `"2.5 h"`."""
    if seconds < 90:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def silent() -> bool:
    """Whether bars are switched off, or nobody can see one: a notebook's kernel without JupyterLab or VS Code before it."""
    if os.environ.get(QUIET, "0") != "0":
        return True
    # Jupyter's server names its session to the kernels that it starts; papermill, nbconvert and nbval do not
    return _in_a_kernel() and not any(name in os.environ for name in ("JPY_SESSION_NAME", "VSCODE_PID"))


def _in_a_kernel() -> bool:
    kernels = sys.modules.get("ipykernel.kernelapp")
    return kernels is not None and kernels.IPKernelApp.initialized()


class _Lines:
    """Standard error for a bar that cannot overwrite itself: every state on a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"{line}\n")

    def flush(self) -> None:
        sys.stderr.flush()
