"""An inspector: the state with its two views."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .state import State

if TYPE_CHECKING:
    from ipywidgets import Widget

    from .static import Static


class Inspector(State):
    """A state that can be looked at; arguments as of `State`."""

    def static(self) -> Static:
        """This view without a kernel: text, numbers and routes as HTML, to be kept in a notebook and printed."""
        from .static import Static

        return Static(self)

    def widget(self) -> Widget:
        """This view to click through, in a notebook."""
        from .widget import View

        return View(self).box
