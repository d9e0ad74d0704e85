"""Subcommands about the whole suite: `report`, `bench`, `init`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from .command import SHIPPED, Model, command, named_value


@command("finished pages are in {out}, and what they computed is kept; repeat the command to go on from there")
def report(
    only: Annotated[str, typer.Option(help="Numbers or names of notebooks, separated by commas.")] = "",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value for the notebooks; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="The same as -p model=...")] = "",
    fresh: Annotated[bool, typer.Option(help="Compute every stored result again (not the weights).")] = False,
    ship: Annotated[
        bool,
        typer.Option(
            help="Put the results that are shown in data/results; executed notebooks of an adapter in data/reports."
        ),
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/report"),
) -> None:
    """Run the notebooks headlessly and write a report that opens offline."""
    from .. import places, store
    from .. import report as reports
    from ..model import is_adapter

    given = dict(named_value(text) for text in parameter or [])
    if model:
        given["model"] = model
    adapter = bool(model) and is_adapter(places.found(model))
    if ship and ((not adapter and (only or given)) or not places.REPOSITORY):
        raise ValueError(
            "--ship is for the results of all notebooks with their own parameters, or of an adapter, in the repository"
        )
    pages = reports.build(out, only=[part for part in only.split(",") if part], parameters=given, fresh=fresh)
    print(f"report: {out / 'index.html'}")
    if any(page.error for page in pages):
        raise typer.Exit(1)
    if ship:
        used = sorted(set((out / reports.USED).read_text().split()))
        store.results(places.runs() / "results").ship(used, some=bool(only))
        print(f"shipped: {', '.join(used)}")
        if adapter:
            executed = [out / f"{page.name}.ipynb" for page in pages if not page.absent]
            print(f"executed notebooks: {reports.keep(executed, model)}")


@command("nothing is kept of a benchmark; repeat the command")
def bench(
    model: Model = str(SHIPPED),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    rounds: Annotated[int, typer.Option(help="How often both sides of a comparison are timed.")] = 3,
    specimen: Annotated[
        str, typer.Option(help="A real model for deep searches and steps of generate, such as data/smollm2-duo.")
    ] = "",
    accelerator: Annotated[
        bool, typer.Option("--accelerator", help="Instead, what a GPU is for: large models with random weights.")
    ] = False,
    out: Annotated[Path, typer.Option(help="The table as JSON.")] = Path("runs/bench.json"),
    ship: Annotated[bool, typer.Option(help="Also put the table in data/bench.json and the README.")] = False,
    ship_gpu: Annotated[
        Path | None,
        typer.Option(
            help="Measure nothing: put a table of make gpu in data/bench-gpu.json and the guide to many machines."
        ),
    ] = None,
) -> None:
    """Measure what is fast and what is not, as ratios in one run."""
    from .. import places
    from ..bench import accelerator as gpus
    from ..bench import table

    if (ship or ship_gpu) and not places.REPOSITORY:
        raise ValueError("a table is shipped with the repository, and this package was installed without one")
    data, guides = places.SHIPPED / "data", places.SHIPPED / "notebooks" / "guides"
    if ship_gpu:
        table.ship(Path(shutil.copy(ship_gpu, data / "bench-gpu.json")), guides / "many-machines.md")
        return
    print(f"{table.machine()}\n\n{table.HEADER}")
    if accelerator:
        sizes = gpus.TOY if device == "cpu" else gpus.LARGE
        gpus.run(out, device="cuda" if device == "auto" else device, sizes=sizes)
        print(f"\nalso in {out}")
        return
    from ..bench import measures

    rows, steps = measures.run(model, device=device, rounds=rounds, specimen=specimen or None)
    shipped = data / "bench.json"
    for path in [out, *([shipped] if ship else [])]:
        table.write(rows, path, steps, of=specimen)
    print(f"\nalso in {out}")
    if places.REPOSITORY and ship:
        table.ship(shipped, places.REPOSITORY / "README.md")


@command("the notebooks copied so far are in {folder}")
def init(
    folder: Annotated[Path, typer.Argument(help="A folder; it is made if there is none.")] = Path("duoviz-notebooks"),
) -> None:
    """Copy the notebooks into a folder of yours, to be edited and run there."""
    from .. import places

    copies = places.copy_notebooks(folder)
    print(f"{len(copies)} notebooks in {folder}: jupyter lab {copies[0]}")
