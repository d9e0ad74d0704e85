"""The table of measurements, as text, as JSON and in the README."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from .decoding import SAID, Step, grid


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        measure: what was timed.
        value: how long it took or how much it is, in `unit`.
        unit: of the value.
        ratio: the other side's time over this one's, or this one's over a limit; NaN where there is none.
        against: the other side, or the limit.
    """

    measure: str
    value: float
    unit: str
    ratio: float = np.nan
    against: str = ""


def line(row: Row) -> str:
    """A row of a markdown table."""
    ratio = "" if np.isnan(row.ratio) else f"{row.ratio:.3g}"
    return f"| {row.measure} | {row.value:.3g} {row.unit} | {ratio} | {row.against} |"


def lines(rows: Sequence[Row]) -> list[str]:
    """Rows of a markdown table; what was set against two sides, or measured as a median and as 95 %, is one row."""
    made: list[str] = []
    for row in rows:
        _, _, shown, beside, other, _ = (cell.strip() for cell in line(row).split("|"))
        before = made[-1] if made else ""
        if before.startswith(f"| {row.measure} | {shown} |"):  # the same value against another side
            _, _, _, ratio, against, _ = (cell.strip() for cell in before.split("|"))
            made[-1] = f"| {row.measure} | {shown} | {ratio}; {beside} | {against}; {other} |"
        elif ", 95 % of " in row.measure and before.startswith(
            f"| {row.measure.replace(', 95 % of ', ', median of ')} |"
        ):
            _, measure, value, ratio, against, _ = (cell.strip() for cell in before.split("|"))
            number, _, unit = value.partition(" ")
            both = f"{ratio} ({beside})" if ratio else ""
            value = f"{number} ({row.value:.3g}) {unit}"
            made[-1] = f"| {measure.replace(', median of ', ', median (95 %) of ')} | {value} | {both} | {against} |"
        else:
            made.append(line(row))
    return made


MARK = "<!-- bench -->"
HEADER = "| measure | value | ratio | against |\n|---|---|---|---|"


def machine() -> str:
    """The machine in words."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [text.partition(":")[2].strip() for text in cpuinfo.read_text().splitlines() if "model name" in text]
        name = models[0] if models else name
    cuda = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{cuda}, torch {torch.__version__}"


def write(rows: list[Row], out: Path, steps: list[Step] | None = None, *, of: str = "") -> None:
    """The measurements as JSON; `of` is the model that the steps are of."""
    out.parent.mkdir(parents=True, exist_ok=True)
    cleaned = [{**asdict(row), "ratio": None if np.isnan(row.ratio) else row.ratio} for row in rows]
    found = {"machine": machine(), "rows": cleaned, "of": of, "steps": [asdict(step) for step in steps or []]}
    out.write_text(json.dumps(found, indent=1) + "\n")


def table(path: Path) -> str:
    """What `write` wrote, as text: the machine, and markdown tables.

    Raises:
        FileNotFoundError: nothing was written there.
    """
    found = json.loads(path.read_text())
    rows = [Row(**{**row, "ratio": np.nan if row["ratio"] is None else row["ratio"]}) for row in found["rows"]]
    steps = [Step(**step) for step in found.get("steps", [])]
    said = SAID.format(of=found["of"])
    return "\n".join([found["machine"], "", HEADER, *lines(rows), *(["", said, "", grid(steps)] if steps else [])])


def ship(path: Path, page: Path) -> None:
    """Put the table of `path` between a page's two `<!-- bench -->` marks."""
    before, _, after = page.read_text().split(MARK)
    page.write_text(f"{before}{MARK}\n{table(path)}\n{MARK}{after}")
