"""Long analyses in a thread beside the kernel's event loop, with progress and a way to cancel."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from ..progress import Watch
from .analysis import Analysis, Cancelled


def in_turn(turn: AbstractContextManager[object], work: Callable[..., None]) -> Callable[..., None]:
    """The work, while no other of the same turn is done. JupyterLab has a kernel's messages handled in two threads: a click that
    comes while another control is at work must wait for it.

    Args:
        turn: a lock that a thread may take again.
        work: what to do.
    """

    def run(*given: Any) -> None:
        with turn:
            work(*given)

    return run


class Background:
    """One analysis at a time in a thread of its own. What is said of it is said on the event loop where it was started; where
    none runs, by `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._said: deque[Callable[[], None]] = deque()

    def start(
        self,
        analyse: Callable[[Watch], Analysis],
        done: Callable[[Analysis | None, str], None],
        progressed: Watch,
    ) -> None:
        """Begin.

        Args:
            analyse: what to do; whatever it raises is said, never lost.
            done: told what was found, or None and why.
            progressed: told the share that is done.

        Raises:
            RuntimeError: another analysis is under way.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("an analysis is under way: cancel it first")
        later = self._on_this_loop()
        self._stop.clear()

        def watch(share: float) -> None:
            if self._stop.is_set():
                raise Cancelled
            later(lambda: progressed(share))

        def work() -> None:
            found, said = None, ""
            try:
                found = analyse(watch)
                watch(1.0)
            except Cancelled:
                found = None
                said = "cancelled; nothing has changed"
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
            later(lambda: done(found, said))

        self._thread = threading.Thread(target=work, daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """End the analysis that is under way."""
        self._stop.set()

    def wait(self, seconds: float = 600) -> None:
        """Wait until the analysis is done, and say what was not said on an event loop."""
        if self._thread is not None:
            self._thread.join(seconds)
        while self._said:
            self._said.popleft()()

    def _on_this_loop(self) -> Callable[[Callable[[], None]], object]:
        try:
            return asyncio.get_running_loop().call_soon_threadsafe
        except RuntimeError:
            return self._said.append
