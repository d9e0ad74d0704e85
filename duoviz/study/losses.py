"""Every route's loss of every position, as files: others can train routers on them without this package.

A folder holds `schema.json`, `routes.parquet` and a part for each document:

| file | rows | columns |
|---|---|---|
| `routes.parquet` | a route, in the order of the losses | route (its letters, layer 0 first), big (how many layers are) |
| `part-00000.parquet` | a position of document 0 | document, position, token_id, target_id, and a column for each objective |

The column of an objective holds a list in each row, a number for each route: its loss in nats, float32; or, where `schema.json`
names a `step_nats` above 0, the loss in such steps, rounded to a whole number, uint16.
The losses of `nll` are those on the true next token, of `expected` those expected under the prediction of all big, which no
label is needed for. All are of the context that `schema.json` names: under `reference:big` every earlier token is big.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .. import oracle, routes
from ..places import replaced
from ..records import above_zero
from .sweep import Files, Sweep

OBJECTIVES = ("nll", "expected")
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class LossSweep(Sweep):
    """The losses of all routes at all scored positions of a source; a folder that was begun is finished.

    Attributes:
        context: `reference:<route>`.
        objectives: see `duoviz.oracle.objectives`.
        step: nats to which losses are rounded, to take less room; 0 for none.
    """

    context: str = "reference:big"
    objectives: Sequence[str] = OBJECTIVES
    step: float = 0.0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.step:
            above_zero(step=self.step)

    def begin(self) -> Callable[[slice], Files]:
        """Write the schema and the routes; returns what writes the parts.

        Raises:
            ValueError: a folder of other texts, another model or format; what `oracle.landscapes` refuses.
        """
        out = self.study.kept
        self._write_schema()

        def compute(documents: slice) -> Files:
            parts = {number: out / f"part-{number:05}.parquet" for number in range(documents.start, documents.stop)}
            for number, part in parts.items():
                if not part.is_file():
                    replaced(part, partial(_to_parquet, self._part(number), bytewise=self.objectives))
            return [[part] for part in parts.values()]

        return compute

    def merge(self) -> None:
        """The parts stay as they are."""

    def _write_schema(self) -> None:
        study, tokens, space = self.study, self.study.tokens(self.source), self.study.space()
        schema = {
            "format": FORMAT,
            "model": study.model,
            "fingerprint": study.lm.fingerprint,
            "source": tokens.source,
            "text": tokens.fingerprint,
            "documents": len(tokens),
            "length": int(tokens.ids.shape[1]),
            "context": self.context,
            "routes": str(space),
            "objectives": list(self.objectives),
            "unit": "nats",
            "step_nats": self.step,
        }
        out, path = study.kept, study.kept / "schema.json"
        known = json.loads(path.read_text()) if path.is_file() else schema
        if wrong := {name: (known.get(name), asked) for name, asked in schema.items() if known.get(name) != asked}:
            raise ValueError(f"{out} holds other losses, (kept, asked) = {wrong}: give another folder")
        out.mkdir(parents=True, exist_ok=True)
        replaced(path, lambda partial: partial.write_text(json.dumps(schema, indent=1) + "\n"))
        every = space.enumerate()
        table = pd.DataFrame({"route": routes.to_texts(every), "big": (every == routes.BIG).sum(1)})
        replaced(out / "routes.parquet", partial(_to_parquet, table))

    def _part(self, number: int) -> pd.DataFrame:
        """The rows of one document."""
        study, tokens = self.study, self.study.tokens(self.source)[number : number + 1]
        (positions,) = np.nonzero(tokens.scored[0])
        ways: dict[str, Any] = {"context": self.context, "objectives": self.objectives}
        losses = oracle.landscapes(
            study.lm, tokens, study.space(), positions.tolist(), setting=oracle.Setting(quiet=True), **ways
        )
        if self.step:
            if losses.max() > (most := self.step * np.iinfo(np.uint16).max):
                raise ValueError(f"a loss of {losses.max():.2f} nats: with steps of {self.step} the most is {most:.2f}")
            losses = np.rint(losses / self.step).astype(np.uint16)
        return pd.DataFrame(
            {
                "document": tokens.documents[0],
                "position": positions.astype(np.int32),
                "token_id": tokens.ids[0, positions].astype(np.int32),
                "target_id": tokens.ids[0, positions + 1].astype(np.int32),
                **{name: list(losses[place, 0]) for place, name in enumerate(self.objectives)},
            }
        )


def read(folder: Path | str) -> tuple[np.ndarray, pd.DataFrame, dict[str, np.ndarray]]:
    """The routes int8 `[route, layer]`, a row for each position (document, position, token_id, target_id), and for each objective
    the losses float32 `[position, route]` in nats.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a part is missing: the command that writes it was cut off.
    """
    folder = Path(folder)
    schema = json.loads((folder / "schema.json").read_text())
    parts = [folder / f"part-{number:05}.parquet" for number in range(schema["documents"])]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {len(parts)} parts, the first {missing[0]}: repeat the command"
        )
    table = pd.concat([pd.read_parquet(part) for part in parts], ignore_index=True)
    losses = {name: np.stack(table.pop(name).to_list()) for name in schema["objectives"]}
    if step := schema.get("step_nats", 0.0):
        losses = {name: values.astype(np.float32) * np.float32(step) for name, values in losses.items()}
    texts = pd.read_parquet(folder / "routes.parquet")["route"].to_list()
    return routes.parse(texts, layers=len(texts[0])), table, losses


def _to_parquet(table: pd.DataFrame, path: Path, *, bytewise: Sequence[str] = ()) -> None:
    """Numbers of the columns `bytewise` byte by byte, all first bytes before all second ones: a third smaller."""
    ways: Any = {"use_byte_stream_split": [f"{name}.list.element" for name in bytewise], "use_dictionary": not bytewise}
    table.to_parquet(path, compression="zstd", index=False, **ways)
