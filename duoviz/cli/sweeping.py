"""Subcommands for many documents and many workers: `sweep`, `landscape`, `evaluate`."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import (
    SHIPPED,
    Bos,
    Choices,
    Documents,
    Free,
    Groups,
    Length,
    Lockstep,
    MicroRows,
    Model,
    Nodes,
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
    choices: Choices = None,
    groups: Groups = None,
    free: Free = None,
    context: Context = "reference:big",
    objectives: Annotated[
        str, typer.Option(help="Separated by commas, as in oracle; all that the notebooks draw, if not given.")
    ] = "",
    method: Annotated[str | None, typer.Option(help="As in oracle, with its number; auto if not given.")] = None,
    model: Model = str(SHIPPED),
    batch_size: Lockstep = 8,
    nodes: Nodes = 16_384,
    seed: Seed = 0,
    bos: Bos = "auto",
) -> None:
    """The oracle's search by many workers: processes of this machine, a Ray cluster, or Slurm. Whatever dies, repeat the
    command."""
    import pandas as pd

    from ..study.sweep import SurveySweep

    ways = {"length": length, "seed": seed, "bos": bos_of(bos), "groups": groups, "free": free_of(free)}
    asked = SurveySweep(
        study=_study(model, source, documents, out, **ways),
        source=source,
        objectives=tuple(name.strip() for name in objectives.split(",") if name.strip()),
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
    step: Annotated[float, typer.Option(help="Nats to which losses are rounded, to take less room; 0 for none.")] = 0.0,
    model: Model = str(SHIPPED),
) -> None:
    """Write every route's loss of every token as parquet, for routers that are trained elsewhere (see duoviz.study.losses)."""
    from ..study import losses

    study = _study(model, source, documents, out, length=length, groups=groups)
    asked = losses.LossSweep(study=study, source=source, context=context, step=step, shards=shards)
    _run(asked, on, threads, gpus_per_worker, slurm)
    routes, table, _ = losses.read(out)
    print(f"{len(table):,} positions, each with the losses of {len(routes):,} routes, are in {out}")


@command(
    "with --on, finished shards are kept in {out}: repeat the command to go on; else nothing is kept of an evaluation"
)
def evaluate(
    source: Annotated[str | None, typer.Option(help="Perplexity on this corpus source (see oracle).")] = None,
    tasks: Annotated[str, typer.Option(help="Or tasks of lm-evaluation-harness, separated by commas.")] = "",
    route: Annotated[list[str] | None, typer.Option(help="One letter per layer for all tokens; repeatable.")] = None,
    router: Annotated[list[Path] | None, typer.Option(help="Folder of a router; repeatable.")] = None,
    big: Annotated[list[float] | None, typer.Option(help="Share of big of random choices; repeatable.")] = None,
    small: Annotated[float | None, typer.Option(help="Share of small beside --big; what is left if not given.")] = None,
    skip: Annotated[float | None, typer.Option(help="Share of skips beside --big; 0 if not given.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a window; the context if not given.")] = None,
    stride: Annotated[int | None, typer.Option(help="From window to window; half the length if not given.")] = None,
    documents: Annotated[int | None, typer.Option(help="Stop after so many documents of the source.")] = None,
    limit: Annotated[int | None, typer.Option(help="Documents of each task; all if not given.")] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples before each; the task's number if not given.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with tasks of your own.")] = None,
    model: Model = str(SHIPPED),
    batch_size: MicroRows = 8,
    seed: Seed = 0,
    bos: Bos = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("runs/evaluate"),
    on: Annotated[str | None, typer.Option(help="Divide the documents of --source among workers, as in sweep.")] = None,
    shards: Shards = 512,
    threads: Threads = 1,
    gpus_per_worker: Gpus = 0,
    slurm: Slurm = None,
) -> None:
    """Perplexity with sliding windows, or tasks such as arc_easy, for one or several ways to route the tokens."""
    from pandas import read_parquet

    from .. import evaluation, study
    from ..study.evaluations import EvaluationSweep

    cut = {"--source": source, "--length": length, "--stride": stride, "--documents": documents}
    cut["--bos"] = None if bos == "auto" else bos_of(bos)
    own = {"--limit": limit, "--fewshot": fewshot, "--include-path": include_path}
    if wrong := [name for name, value in (cut if tasks else own).items() if value is not None]:
        raise ValueError(f"{', '.join(wrong)} {'beside' if tasks else 'without'} --tasks says nothing: leave one out")
    if tasks:
        evaluation.check_installed()
    named: dict[str, Any] = {"routes": route or (), "routers": router or (), "bigs": big or (), "seed": seed}
    named |= {"small": small, "skip": skip}
    asked: dict[str, Any] = {name[2:].replace("-", "_"): value for name, value in (own if tasks else cut).items()}
    if not tasks:
        asked |= {"source": source or "shipped-prose", "bos": bos_of(bos)}
    if on is not None:
        if tasks or documents is None:
            raise ValueError(f"--on {on} divides documents: give --documents with it, and no --tasks")
        divided = _study(model, asked["source"], asked.pop("documents"), out)
        named["routers"] = [folder.resolve() for folder in named["routers"]]
        given = EvaluationSweep(**asked, study=divided, ways=named, batch=batch_size, shards=shards)
        _run(given, on, threads, gpus_per_worker, slurm)
        table = read_parquet(out / "perplexity.parquet").drop(columns=["model", "fingerprint"])
    else:
        lm = study.Study(model=model).lm
        ways = evaluation.ways_of(lm, **named)
        if tasks:
            rows = evaluation.tasks(lm, tasks.split(","), ways=ways, batch_size=batch_size, **asked)
        else:
            rows = evaluation.perplexities(lm, ways=ways, batch_size=batch_size, **asked)
        table = evaluation.write(lm, rows, out / ("tasks" if tasks else "perplexity"))
    print(f"{table.to_string(index=False)}\nalso in {out}, as parquet and JSON")


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
