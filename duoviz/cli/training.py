"""Subcommands that train: `router`, `routers`, `train`, `convert`, `figure8`."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from .command import SHIPPED, Distil, Documents, Groups, Length, MicroRows, Model, Seed, Sources, command, numbers_of

Start = Annotated[
    Path | None, typer.Option(help="Start from this Duo folder or adapter; the learning rate is warmed up again.")
]
EvaluateEvery = Annotated[
    int | None, typer.Option(help="Steps between losses on the holdout; a tenth of the run, at most 250, if not given.")
]
AnyShare = Annotated[
    bool, typer.Option("--any-share", help="Draw the probability of big for every text anew, from 0 to 1.")
]
Shard = Annotated[bool, typer.Option("--shard", help="Divide the weights among the processes of torchrun (FSDP2).")]
Bf16 = Annotated[bool, typer.Option("--bf16", help="Matrix products in bfloat16: faster where the processor has them.")]


@command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def router(
    out: Annotated[Path, typer.Option(help="Folder of the router.")],
    big: Annotated[float, typer.Option(help="Share of big layers asked for.")] = 4 / 12,
    skip: Annotated[float, typer.Option(help="Share of skipped layers asked for.")] = 0.0,
    small: Annotated[float | None, typer.Option(help="Share of small layers; what is left if not given.")] = None,
    tokens: Annotated[int, typer.Option(help="Training tokens.")] = 1_000_000,
    kind: Annotated[
        str, typer.Option(help="budget (the paper's), straight-through, policy, distil, pairwise or threshold.")
    ] = "budget",
    units: Annotated[int, typer.Option(help="Of a hidden layer in each router; 0 for a linear one.")] = 0,
    reads: Annotated[
        str,
        typer.Option(
            help="ffn (its input); spent (and the token's running budget); token or position; frequency, change or entropy."
        ),
    ] = "ffn",
    objective: Annotated[
        str, typer.Option(help="What distil learns from: expected (no label is seen) or nll.")
    ] = "expected",
    shuffled: Annotated[
        bool, typer.Option("--shuffled", help="A control: learn from the losses of other tokens (distil, pairwise).")
    ] = False,
    learning_rate: Annotated[float | None, typer.Option(help="Of the router; that of its kind if not given.")] = None,
    bf16: Bf16 = False,
    sources: Sources = "python-prose,python-code",
    model: Model = str(SHIPPED),
    seed: Seed = 0,
) -> None:
    """Train a router for a mixture of big, small and skip (stage 3); it is calibrated and saved with what it realises."""
    from .. import router as routers
    from .. import study
    from ..routes import rest

    mixture = routers.Mixture(big=big, small=rest(big, skip) if small is None else small, skip=skip)
    ways: dict[str, Any] = {"kind": kind, "units": units, "reads": reads, "objective": objective, "shuffled": shuffled}
    ways |= {"learning_rate": learning_rate, "bf16": bf16}
    made, log = study.train_router(
        model, out, mixture=mixture, tokens=tokens, sources=sources.split(","), seed=seed, **ways
    )
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun the first speaks
        return
    print(log.iloc[[0, -1]].to_string(index=False))
    print(json.dumps({"asked": made.facts["mixture"], "realised on calibration text": made.facts["calibrated"]}))
    print(f"the router is in {out}")


@command("finished routers are kept in {out}; repeat the command to go on from there")
def routers(
    out: Annotated[Path, typer.Option(help="Folder of the routers and of the tables.")] = Path("runs/routers"),
    model: Model = str(SHIPPED),
    kinds: Annotated[str, typer.Option(help="Separated by commas; all, and controls, if not given.")] = "",
    budgets: Annotated[str, typer.Option(help="Big layers of a token, separated by commas.")] = "1,2,4,6",
    at: Annotated[str, typer.Option(help="Budgets at which they are compared.")] = "1,2,3,4,6,8",
    seeds: Annotated[int, typer.Option(help="Routers of each kind and budget.")] = 5,
    tokens: Annotated[int | None, typer.Option(help="Training tokens of each; those of its kind if not given.")] = None,
    bf16: Bf16 = False,
    sources: Sources = "python-prose,python-code",
    judge: Annotated[
        str, typer.Option(help="Sources of the texts on which they are compared, separated by commas.")
    ] = "shipped-prose,shipped-code,python-prose,python-code",
    documents: Documents = 96,
    searched: Annotated[
        int, typer.Option(help="Documents of each on which oracle and label-free policy are searched.")
    ] = 48,
    length: Length = 128,
    groups: Groups = None,
    context: Annotated[str, typer.Option(help="Of the oracle and the label-free policy, as in oracle.")] = "committed",
    keep: Annotated[
        Path | None, typer.Option(help="Copy the best of each kind and budget, and the tables, into this folder.")
    ] = None,
) -> None:
    """Train routers of every kind, with several seeds, and compare them on the same texts (hours on two cores)."""
    from .. import store, study
    from ..study import routers as contest

    asked = [name.strip() for name in kinds.split(",") if name.strip()] or [*contest.KINDS]
    if unknown := [name for name in asked if name not in contest.KINDS]:
        raise ValueError(f"kinds {unknown}: allowed are {', '.join(contest.KINDS)}")
    ways: dict[str, Any] = {"seeds": seeds, "tokens": tokens, "bf16": bf16, "sources": sources.split(",")}
    numbers, compared = (
        numbers_of(text, name=name, what="big layers") for name, text in (("budgets", budgets), ("at", at))
    )
    own = study.Study(model=model, sources=tuple(judge.split(",")), documents=documents, length=length, groups=groups)
    contest.check(own, (*numbers, *compared), tokens=tokens, searched=searched)
    contest.train(model, out, budgets=numbers, kinds={name: contest.KINDS[name] for name in asked}, **ways)
    made = contest.trained(out, layers=own.lm.layers, budgets=compared)
    tables = contest.judged(own, made, searched=searched, context=context)
    store.write_tables(tables, out / "tables")
    columns = [
        "source",
        "name",
        "asked_big",
        "realised_big",
        "control",
        "seed",
        "over_fixed_nats",
        "label_free_gap_closed",
    ]
    print(tables["judged"][columns].to_string(index=False))
    for folder in contest.keep(own, out, tables, keep) if keep else ():
        print(f"kept {folder}")
    print(f"the tables are in {out / 'tables'}")


@command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was cut off goes on from there.")],
    preset: Annotated[
        str | None,
        typer.Option(help="tiny (the shipped model), tiny-opt, wide or paper (1.4 B); else that of --start."),
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width of the big FFN; the preset's if not given.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens; the preset's if not given.")] = None,
    sources: Sources = "python-prose,python-code",
    big: Annotated[float, typer.Option(help="Probability of the big FFN; 1 trains a dense model.")] = 0.5,
    skip: Annotated[float, typer.Option(help="Probability of a skip; the rest is small.")] = 0.0,
    micro_rows: MicroRows = 16,
    start: Start = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Train the small FFNs alone; an adapter's always are.")
    ] = False,
    distil: Distil = 0.0,
    learning_rate: Annotated[float | None, typer.Option(help="Its peak; the preset's if not given.")] = None,
    rows: Annotated[int | None, typer.Option(help="Sequences of an optimizer step; the preset's if not given.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or muon for the hidden matrices.")] = "adamw",
    evaluate_every: EvaluateEvery = None,
    any_share: AnyShare = False,
    bf16: Bf16 = False,
    activation_checkpointing: Annotated[bool, typer.Option(help="Recompute activations to save memory.")] = False,
    shard: Shard = False,
    seed: Seed = 0,
) -> None:
    """Stage 1: train a Duo model with random routes, from scratch or from `--start`. Repeat the command to resume."""
    from .. import store, training
    from ..model import RandomPolicy, configuration, is_adapter
    from ..routes import rest

    if preset not in (None, *training.PRESETS):
        raise ValueError(f"preset {preset!r}: allowed are {', '.join(training.PRESETS)}")
    shape = training.PRESETS[preset or "tiny"]
    if start is not None and preset is None:
        shape = training.Preset.of(configuration(start), tokens=shape.tokens, learning_rate=shape.learning_rate)
    shape = shape.changed(tokens=tokens, big=width, rows=rows, learning_rate=learning_rate)
    plan = training.Stage1(
        out=out,
        preset=shape,
        sources=tuple(sources.split(",")),
        policy=RandomPolicy(big=big, small=rest(big, skip), skip=skip, any_share=any_share),
        seed=seed,
        micro_rows=micro_rows,
        evaluate_every=evaluate_every,
        start=start,
        frozen=frozen or (start is not None and is_adapter(start)),
        distil=distil,
        optimizer=optimizer,
        bf16=bf16,
        gradient_checkpointing=activation_checkpointing,
        shard=shard,
    )
    first = os.environ.get("RANK", "0") == "0"  # of the processes of torchrun
    with store.only_writer(out / "training.lock") if first else nullcontext(), store.room_in(out):
        folder = training.train(plan)
    if first:
        print(f"the model is in {folder}")


@command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def convert(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a dense model.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was cut off goes on from there.")],
    small: Annotated[
        int | None, typer.Option(help="Width of the small FFNs; a sixteenth of the big if not given.")
    ] = None,
    begin: Annotated[str, typer.Option(help="neurons (the big FFN's most used ones, rescaled) or random.")] = "neurons",
    layer_tokens: Annotated[
        int, typer.Option(help="First train each small FFN by itself to do what its big one does, on so many tokens.")
    ] = 0,
    tokens: Annotated[int, typer.Option(help="Then train with random routes; 0 for none.")] = 1_000_000,
    frozen: Annotated[
        bool, typer.Option("--frozen/--together", help="Train the small FFNs alone, or all weights.")
    ] = True,
    distil: Distil = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 1e-3,
    rows: Annotated[int, typer.Option(help="Sequences of an optimizer step.")] = 32,
    sources: Sources = "python-prose,python-code",
    micro_rows: MicroRows = 16,
    seed: Seed = 0,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Save only the small FFNs, beside the name of the dense model.")
    ] = False,
) -> None:
    """Give a dense model small FFNs and train them with random routes. Repeat the command to resume."""
    from .. import study

    folder = study.train_small(
        model,
        out,
        small=small,
        begin=begin,
        layer_tokens=layer_tokens,
        tokens=tokens,
        frozen=frozen,
        distil=distil,
        learning_rate=learning_rate,
        rows=rows,
        sources=sources.split(","),
        micro_rows=micro_rows,
        seed=seed,
        adapter=adapter,
    )
    print(f"the {'adapter' if adapter else 'Duo model'} is in {folder}")


@command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def figure8(
    out: Annotated[Path, typer.Option(help="Folder for the models; what was cut off goes on.")] = Path("runs/study"),
) -> None:
    """Train and measure the models of figure 8 (ten of them, some hours on two cores) for notebook 1."""
    from ..study import figure8 as figure

    figure.train(out)
    figure.write(figure.measured(out))
    print(f"the tables are in {figure.TABLES}")
