"""The inspector to click through: ipywidgets, plotly, and one small script for the tokens."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import ipywidgets as ipw
import plotly.graph_objects as go

from .. import figures, frames, style
from ..routes import LETTERS
from . import static
from .analysis import Analysis, Question
from .background import Background, in_turn
from .layout import laid_out
from .parts import Box, Chips, Plot
from .reading import STATISTICS
from .state import State

CONTEXTS = ("committed", "reference:big", "reference:small")
SCOPES = (("FFN only", "ffn"), ("whole block", "block"))
"""What a skip leaves out."""
NAMED = {"SB": "small or big", "-B": "skip or big"}
"""Choices that are searched, in words."""
USES = {"use oracle": "oracle", "use router": "router", "all big": "big", "all small": "small"}
FOLLOWED = ("router", "budget", "statistic", "left", "right", "by", "against_pin")
"""Traits of the inspector that a control of the same name sets."""
TEXT = {"analysis", "document"}
ROUTES = TEXT | {"budget", "router", "pinned"}


class View:
    """Controls that call the inspector's methods, and what they show.

    Attributes:
        box: the widget.
        controls: by name.
    """

    def __init__(self, inspector: State) -> None:
        self.inspector = inspector
        self._changed: set[str] | None = None
        self._turn = threading.RLock()
        self.work, self.busy = Background(), False
        self.chips, self.status = Chips(), ipw.HTML()
        self.token, self.effect, self.best, self.python = ipw.HTML(), ipw.HTML(), ipw.HTML(), ipw.HTML()
        self.progress = ipw.FloatProgress(0, min=0, max=1, layout={"width": "160px", "display": "none"})
        self.controls = self._make_controls()
        self._connect()
        self.layers = self._make_layers()
        self.plots: dict[str, Plot] = {}
        self._refreshers: list[tuple[set[str], Callable[[], None]]] = [
            (TEXT | {"pinned", *FOLLOWED}, self._show_choices),
            ({"analysis"}, lambda: setattr(self.controls["text"], "value", inspector.question.text)),
            (TEXT, self._show_text),
            (ROUTES | {"drawn", "statistic", "against_pin"}, self._show_colours),
            (ROUTES | {"drawn", "left", "right"}, lambda: self._draw("routes", inspector.routes_figure())),
            (ROUTES | {"edits", "token"}, self._show_token),
            (ROUTES | {"edits", "token", "layer"}, self._show_layers),
            (ROUTES | {"drawn", "statistic", "by"}, lambda: self._draw("slices", inspector.slices_figure())),
            (ROUTES | {"drawn", "left", "right"}, lambda: self._draw("usage", inspector.usage_figure())),
        ]
        self._refreshers.append((set().union(*(names for names, _ in self._refreshers)), self._show_python))
        self._changed = set()
        self.refresh({name for names, _ in self._refreshers for name in names})
        self._changed = None
        self.plots["routes"].on_msg(self._guarded(lambda widget, message, buffers: self._clicked(message)))
        inspector.observe(in_turn(self._turn, self._noticed))
        self.box = Box(inspector, laid_out(self))

    # what is there

    def _make_controls(self) -> dict[str, Any]:
        inspector, wide = self.inspector, {"width": "auto", "max_width": "190px"}
        narrow = {"description_width": "initial"}

        def dropdown(name: str, options: Any, value: Any) -> ipw.Dropdown:
            return ipw.Dropdown(options=options, value=value, description=name, layout=wide, style=narrow)

        question, layers = inspector.question, inspector.layers
        choices = [pair for pair in ("SB", "-B") if set(pair) <= set(inspector.engine.choices)]
        routers = [("none", ""), *((name, name) for name in inspector.engine.routers)]
        made: dict[str, Any] = {
            "text": ipw.Textarea(placeholder="your own text; empty: the texts of the source", layout={"width": "60%"}),
            "analyse": self._button("analyse", self._analyse, "look at this text"),
            "cancel": self._button("cancel", self.work.cancel, "end the analysis"),
            "next": self._button(
                "next part", self._next_part, "analyse the next part of a text longer than the context"
            ),
            "document": dropdown("text", [question.source], question.source),
            "router": dropdown("router", routers, inspector.router),
            "budget": ipw.IntSlider(
                inspector.budget, 0, layers, description="budget", style=narrow, layout={"width": "200px"}
            ),
            "context": dropdown("context", list(dict.fromkeys([*CONTEXTS, question.context])), question.context),
            "searched": dropdown("choices", [(NAMED[pair], pair) for pair in choices], question.choices),
            "scope": dropdown("skip", SCOPES, question.skip_scope),
            "statistic": dropdown("colour", list(STATISTICS), inspector.statistic),
            "most": self._button("go to the largest", inspector.most, "select the token of the largest value"),
            "pin": self._button("pin A", inspector.pin, "keep this view to compare with"),
            "unpin": self._button("unpin", inspector.unpin, "compare with nothing"),
            "against_pin": ipw.Checkbox(False, description="difference to A", indent=False, layout={"width": "130px"}),
            "left": dropdown("compare", inspector.panels, inspector.left),
            "right": dropdown("with", inspector.panels, inspector.right),
            "by": dropdown("slices by", frames.BY, inspector.by),
            "everywhere": ipw.Checkbox(False, description="at every token", indent=False, layout={"width": "130px"}),
            "best": self._button("best single change", inspector.best_change, "change the layer that helps most"),
            "undo": self._button("undo", inspector.undo, "take the last change back"),
        }
        for name, policy in USES.items():  # "all small" is "all skip" where no small FFN is searched
            made[f"use {policy}"] = self._button(name, partial(self._use, policy), f"take the route of {policy}")
        made["cancel"].disabled = True
        return made

    def _connect(self) -> None:
        """Have the choices that are made followed."""
        for name in FOLLOWED:
            self.controls[name].observe(self._guarded(partial(self._follow, name)), "value")
        select = self._guarded(lambda change: self.inspector.select(document=change["new"]))
        self.controls["document"].observe(select, "value")
        for name in ("context", "searched", "scope"):
            self.controls[name].observe(self._guarded(lambda change: self._analyse()), "value")
        self.chips.on_msg(self._guarded(lambda widget, message, buffers: self.inspector.obey(message)))

    def _button(self, name: str, work: Callable[[], None], tip: str) -> ipw.Button:
        button = ipw.Button(description=name, tooltip=tip, layout={"width": "auto"})
        button.on_click(self._guarded(lambda _: work()))
        return button

    def _make_layers(self) -> list[ipw.Button]:
        made = []
        for layer in range(self.inspector.layers):
            button = ipw.Button(layout={"width": "34px", "padding": "0", "margin": "1px"})
            button.on_click(self._guarded(lambda _, layer=layer: self.inspector.cycle(layer)))
            made.append(button)
        return made

    # what happens

    def _guarded(self, work: Callable[..., None]) -> Callable[..., None]:
        """The work of a control: what it changes is shown once, when it is done; what it raises stands in the status line."""

        def run(*given: Any) -> None:
            if self._changed is not None:  # a control that was set by a refresh
                return
            began, self._changed, self.inspector.status = time.perf_counter(), set(), ""
            for part in (lambda: work(*given), lambda: self.refresh(self._changed or set())):
                try:
                    part()
                except Exception as error:  # nothing vanishes: whatever it is, the person reads it
                    self.inspector.status = f"{type(error).__name__}: {error}"
            self._changed = None
            if not self.inspector.status:
                self.inspector.status = f"ready, {1e3 * (time.perf_counter() - began):.0f} ms"

        return in_turn(self._turn, run)

    def _noticed(self, change: Any) -> None:
        if change["name"] == "status":
            self._show_status()
        elif self._changed is None:
            self._guarded(lambda: self.refresh({change["name"]}))()
        else:
            self._changed.add(change["name"])

    def refresh(self, changed: set[str]) -> None:
        """Show again what depends on some of the inspector's traits; figures that do not show your routes need not follow
        their changes."""
        if "edits" in changed and self.inspector.shows_yours:
            changed = changed | {"drawn"}
        failed = []
        for names, show in self._refreshers:
            if names & changed:
                try:
                    show()
                except Exception as error:  # the other views follow all the same
                    failed.append(error)
        if failed:
            raise failed[0]

    def _follow(self, name: str, change: dict[str, Any]) -> None:
        setattr(self.inspector, name, change["new"])

    def _use(self, policy: str) -> None:
        policy = self.inspector.cheapest if policy == "small" else policy
        self.inspector.use(policy, everywhere=self.controls["everywhere"].value)

    def _next_part(self) -> None:
        inspector = self.inspector
        self.start(inspector.ask(part=(inspector.question.part + 1) % inspector.parts))

    def _analyse(self) -> None:
        control = self.controls
        asked = self.inspector.ask(
            text=control["text"].value,
            context=control["context"].value,
            choices=control["searched"].value,
            skip_scope=control["scope"].value,
            part=0,
        )
        self.start(asked)

    def start(self, question: Question) -> None:
        """Analyse in the background; `work.cancel` ends it, `work.wait` waits for it."""
        inspector = self.inspector

        def done(found: Analysis | None, said: str) -> None:
            self._busy(False)
            self._guarded(lambda: self._end(found, said))()

        self.work.start(partial(inspector.engine.analyse, question), done, self._progressed)
        self._busy(True)
        inspector.status = f"analysing {question} ..."

    def _end(self, found: Analysis | None, said: str) -> None:
        """Show what was found, or say why nothing was."""
        if found is None:
            self.inspector.status = said
        else:
            self.inspector.show(found)
        self._show_choices()
        self._show_layers()

    def _progressed(self, share: float) -> None:
        self.progress.value = share

    def _busy(self, busy: bool) -> None:
        self.busy = busy
        for name, control in self.controls.items():
            control.disabled = busy != (name == "cancel")
        for button in self.layers:
            button.disabled = busy
        self.progress.value = 0
        self.progress.layout.display = None if busy else "none"

    # what is shown

    def _show_choices(self) -> None:
        """The controls say what the inspector says."""
        inspector, control = self.inspector, self.controls
        texts = [(f"{n}: {name}", n) for n, name in enumerate(inspector.documents)]
        control["document"].options = texts
        for name in ("left", "right"):
            control[name].options = inspector.panels
        for name in ("document", *FOLLOWED):
            control[name].value = getattr(inspector, name)
        question = inspector.question
        for name, value in (
            ("context", question.context),
            ("searched", question.choices),
            ("scope", question.skip_scope),
        ):
            control[name].value = value
        control["next"].disabled = inspector.parts == 1
        control["unpin"].disabled = control["against_pin"].disabled = inspector.pinned is None
        control["use small"].description = f"all {inspector.cheapest}"
        control["use router"].disabled = not inspector.router

    def _show_text(self) -> None:
        chips = self.inspector.chips()
        with self.chips.hold_sync():
            self.chips.breaks = [n for n, (text, _) in enumerate(chips) if "\n" in text]
            self.chips.tokens = [list(tokens) for _, tokens in chips]
            self.chips.pieces = [style.visible(text) if text else style.BEGIN for text, _ in chips]
            self.chips.styles, self.chips.labels = [], []  # those of another text

    def _show_colours(self) -> None:
        chips = self.inspector.chips()
        sums = style.chip_values(chips, self.inspector.values())
        title, unit = static.meaning(self.inspector)
        with self.chips.hold_sync():
            self.chips.meaning = f"{title} ({unit}): "
            self.chips.legend = [list(step) for step in style.chip_legend(sums)]
            self.chips.labels = static.labels(self.inspector)
            self.chips.styles = style.chip_styles(chips, sums)

    def _clicked(self, message: dict[str, Any]) -> None:
        self.inspector.select(token=int(message["x"]) + 1, layer=int(message["y"]))

    def _show_token(self) -> None:
        inspector = self.inspector
        self.chips.selected = -1 if inspector.token is None else inspector.token
        self.plots["routes"].moved = inspector.framed()
        if inspector.token is None:
            self.token.value = self.effect.value = self.best.value = ""
            self._draw("landscape", figures.nothing(title="Routes of the selected token", note="select a token"))
            return
        table, land = inspector.choices(), inspector.landscape()
        self.token.value = static.heading(inspector) + static.policies(table)
        self.effect.value = static.effect(inspector)
        self.best.value = static.best(frames.best_routes(land))
        self._draw("landscape", inspector.landscape_figure())

    def _show_layers(self) -> None:
        inspector = self.inspector
        route = None if inspector.token is None else inspector.routes("yours")[inspector.position]
        for layer, button in enumerate(self.layers):
            button.disabled = route is None or self.busy
            button.description = "" if route is None else LETTERS[route[layer]]
            button.style.button_color = None if route is None else style.CHOICE_COLOURS[route[layer]]
            button.style.text_color = None if route is None else "white"
            button.tooltip = f"layer {layer}"
            button.layout.border = (
                f"2px solid {style.POLICY_COLOURS['user']}" if layer == inspector.layer else "2px solid transparent"
            )

    def _show_python(self) -> None:
        said = style.escape(self.inspector.python())
        self.python.value = f'<pre style="white-space:pre-wrap;user-select:all;margin:.6em 0">{said}</pre>'

    def _show_status(self) -> None:
        said = self.inspector.status
        colour = f";color:{style.WRONG}" if re.match(r"\w+Error: ", said) else ""
        self.status.value = f'<div style="font:13px sans-serif{colour}">{style.escape(said)}</div>'

    def _draw(self, name: str, figure: go.Figure) -> None:
        if name in self.plots:
            self.plots[name].figure = figure.to_json()
        else:
            self.plots[name] = Plot(figure)
