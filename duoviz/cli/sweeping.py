"""Subcommands for many documents and many workers: `sweep`, `landscape`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import (
    SHIPPED,
    Bos,
    Documents,
    Free,
    Groups,
    Length,
    Model,
    Seed,
    Source,
    bos_of,
    command,
    free_of,
    named_value,
)

Out = Annotated[Path, typer.Option(help="Folder of the results, which all workers see.")]
Shards = Annotated[int, typer.Option(help="Into how many the documents are divided; at most one a batch.")]
On = Annotated[str, typer.Option(help="local, ray or slurm, with a number of workers if you like: local:2.")]
Threads = Annotated[int, typer.Option(help="CPU threads of a worker; another number rounds differently.")]
Gpus = Annotated[float, typer.Option(help="GPUs of a worker, for ray and slurm.")]
Slurm = Annotated[list[str] | None, typer.Option(help="Options of Slurm, such as partition=gpu; repeatable.")]
Context = Annotated[str, typer.Option(help="How earlier tokens are routed, as in oracle.")]


@command("finished shards are kept in {out}; repeat the command to go on from there")
def sweep(
    out: Out,
    source: Source = "shipped-prose",
    documents: Documents = 8,
    length: Length = 128,
    shards: Shards = 512,
    on: On = "local",
    threads: Threads = 1,
    gpus_per_worker: Gpus = 0,
    slurm: Slurm = None,
    choices: Annotated[str | None, typer.Option(help="Allowed choices, as in oracle.")] = None,
    groups: Groups = None,
    free: Free = None,
    context: Context = "reference:big",
    objectives: Annotated[
        str, typer.Option(help="Separated by commas, as in oracle; all that the notebooks draw, if not given.")
    ] = "",
    method: Annotated[str | None, typer.Option(help="As in oracle, with its number; auto if not given.")] = None,
    model: Model = str(SHIPPED),
    batch_size: Annotated[int, typer.Option(help="Documents searched in lockstep.")] = 8,
    nodes: Annotated[int, typer.Option(help="Nodes of the trie held at a time: bounds the memory.")] = 16_384,
    seed: Seed = 0,
    bos: Bos = "auto",
) -> None:
    """The oracle's search by many workers: processes of this machine, a Ray cluster, or Slurm. Whatever dies, repeat the
    command."""
    import pandas as pd

    from .. import oracle as oracles
    from ..study.sweep import SurveySweep

    ways = {"length": length, "seed": seed, "bos": bos_of(bos), "groups": groups, "free": free_of(free)}
    every = oracles.OBJECTIVES if context == "committed" else oracles.CARRIED
    asked = SurveySweep(
        study=_study(model, source, documents, out, **ways),
        source=source,
        objectives=tuple(name.strip() for name in objectives.split(",") if name.strip()) or every,
        ways={"context": context, "method": method, "choices": choices},
        batch=batch_size,
        width=nodes,
        shards=shards,
    )
    _run(asked, on, threads, gpus_per_worker, slurm)
    print(pd.read_csv(out / "summary.csv").to_string(index=False))
    print(f"every token's routes are in {out / 'routes.parquet'}")


@command("finished documents are kept in {out}; repeat the command to go on from there")
def landscape(
    out: Out,
    source: Source = "shipped-prose",
    documents: Documents = 8,
    length: Length = 128,
    shards: Shards = 512,
    on: On = "local",
    threads: Threads = 1,
    gpus_per_worker: Gpus = 0,
    slurm: Slurm = None,
    groups: Groups = None,
    context: Context = "reference:big",
    model: Model = str(SHIPPED),
) -> None:
    """Write every route's loss of every token as parquet, for routers that are trained elsewhere (see duoviz.study.losses)."""
    from ..study import losses

    study = _study(model, source, documents, out, length=length, groups=groups)
    asked = losses.LossSweep(study=study, source=source, context=context, shards=shards)
    _run(asked, on, threads, gpus_per_worker, slurm)
    routes, table, _ = losses.read(out)
    print(f"{len(table):,} positions, each with the losses of {len(routes):,} routes, are in {out}")


def _study(model: str, source: str, documents: int, out: Path, **ways: Any) -> Any:
    """The study of a sweep, which other machines and folders open too."""
    from .. import places, study

    folder = Path(places.found(model))
    place = str(folder.resolve()) if folder.exists() else model
    return study.Study(model=place, sources=(source,), documents=documents, results=out.resolve(), **ways)


def _run(asked: Any, on: str, threads: int, gpus: float, slurm: list[str] | None) -> None:
    from ..study import engines
    from ..study import sweep as sweeps

    options = dict(named_value(text) for text in slurm or [])
    resources = engines.Resources(threads=threads, gpus=gpus, options=options)
    sweeps.run(asked, on, resources, say=partial(print, file=sys.stderr))
