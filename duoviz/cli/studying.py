"""Subcommands that look at a model as it is: `score`, `oracle`, `specimen`."""

from __future__ import annotations

import sys
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
    Model,
    Nodes,
    Seed,
    Source,
    bos_of,
    command,
    free_of,
)

Method = Annotated[
    str,
    typer.Option(
        help="exhaustive, random-K, descent, beam, mcts, surrogate, paths, or auto (see duoviz.oracle.methods)."
    ),
]
Width = Annotated[
    int | None, typer.Option(help="The method's number: width of a beam, simulations, samples, restarts.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what the search would take on this machine, and stop.")]


@command("nothing was written; repeat the command")
def score(
    text: Annotated[str, typer.Option(help="The text to score.")],
    route: Annotated[
        str,
        typer.Option(help="One letter per layer, layer 0 first: - skip, S small, B big; or all-big, all-small, ..."),
    ] = "all-big",
    model: Model = str(SHIPPED),
    bos: Bos = "auto",
    out: Annotated[Path | None, typer.Option(help="Write the losses as parquet.")] = None,
) -> None:
    """Loss of every token of a text under one route."""
    from .. import corpus, frames, study

    lm = study.Study(model=model).lm
    tokens = corpus.encode(lm.tokenizer, text, bos=bos_of(bos))
    table = frames.token_losses(tokens, {"loss": lm.score(tokens, route)})
    print(table[["position", "target", "loss_nats"]].to_string(index=False))
    print(f"mean loss {table['loss_nats'].mean():.4f} nats over {len(table)} tokens")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(out)


@command("finished batches of texts are kept in {out}; repeat the command to go on from there")
def oracle(
    source: Source = "shipped-prose",
    documents: Documents = 8,
    length: Length = 128,
    choices: Choices = None,
    groups: Groups = None,
    free: Free = None,
    context: Annotated[str, typer.Option(help="committed, reference:big, reference:<route> or uniform.")] = "committed",
    objective: Annotated[
        str, typer.Option(help="nll, expected, expected:mean, null, sampled, agree_big or entropy.")
    ] = "nll",
    method: Method = "exhaustive",
    width: Width = None,
    model: Model = str(SHIPPED),
    batch_size: Lockstep = 8,
    nodes: Nodes = 16_384,
    max_flops: Annotated[float, typer.Option(help="Refuse a search that would cost more.")] = 1e15,
    seed: Seed = 0,
    fresh: Annotated[bool, typer.Option(help="Search again even if the result is stored.")] = False,
    bos: Bos = "auto",
    dry_run: DryRun = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/oracle"),
) -> None:
    """The best route of every token for every budget of big layers; `--out` gets them as a table, one row a token and budget."""
    from .. import frames, progress, study
    from .. import oracle as oracles

    texts: dict[str, Any] = {"sources": (source,), "documents": documents, "length": length, "bos": bos_of(bos)}
    ties: dict[str, Any] = {"groups": groups, "free": free_of(free)}
    session = study.Study(model=model, seed=seed, results=out, fresh=fresh, **texts, **ties)
    tokens, space = session.tokens(source), session.space(choices)
    ways: dict[str, Any] = {"context": context, "method": method if width is None else f"{method}-{width}"}
    setting = oracles.Setting(batch_size=batch_size, width=nodes, max_flops=max_flops)

    def say_cost() -> None:
        flops = oracles.estimate_curve(session.lm, tokens, choices=space, **ways)
        rate = oracles.measured_rate(session.lm, tokens, choices=space, objective=objective, setting=setting, **ways)
        size = f"{len(tokens)} documents, {int(tokens.scored.sum()):,} positions"
        print(f"{size}: {flops:.2g} FLOPs, about {progress.duration(flops / rate)} on this machine", file=sys.stderr)

    if dry_run:
        say_cost()
        return
    found = session.survey(source, (objective,), choices=choices, setting=setting, before=say_cost, **ways)
    curve = found[objective]
    for place in session.store.found:
        print(f"found in {place}", file=sys.stderr)
    table = frames.tidy(frames.curve(curve, tokens), tokens)
    out.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out / "routes.parquet", index=False)
    print(frames.curve_summary([curve], tokens).to_string(index=False))
    away = " (there the earlier tokens take their routes too, not the reference)" if context.startswith("ref") else ""
    print(f"replay: at most {curve.replay_error.max():.1e} nats from one ordinary forward pass{away}")
    print(f"{len(table):,} routes with their tokens: {out / 'routes.parquet'}")


@command("finished results are kept in runs/results; repeat the command to go on from there")
def specimen(
    model: Model = "data/smollm2-duo",
    groups: Annotated[int, typer.Option(help="Runs of layers that choose together.")] = 10,
    documents: Annotated[
        int, typer.Option(help="Documents of each source; every position is searched in 48 of them.")
    ] = 88,
    positions: Annotated[int, typer.Option(help="Positions of each document, evenly spaced.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder of the tables; notebook 7 reads data/specimen.")] = Path(
        "runs/specimen"
    ),
) -> None:
    """Measure on a real model what notebooks 3 and 7 find on the small one (two hours on two cores)."""
    from ..study import specimen as real

    real.write(real.measured(model, groups=groups, documents=documents, positions=positions), out)
    print(f"the tables are in {out}")
