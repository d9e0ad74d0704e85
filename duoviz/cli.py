"""The shell: `python -m duoviz train|convert|oracle|router|evaluate|report|score|bench`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Adaptive computation in language models: routes, oracles and routers, after Duo-LLM (arXiv 2410.10846).",
)

SHIPPED = Path("data/duo-tiny")
Model = Annotated[str, typer.Option(help="Folder or Hub id of a Duo model, or of a dense one (choices -B).")]
Source = Annotated[
    str,
    typer.Option(
        help="shipped-prose, shipped-code, python-prose, python-code, file:PATH or hf:DATASET[:CONFIG[:SPLIT[:COLUMN]]]."
    ),
]
Documents = Annotated[int, typer.Option(help="Number of documents; one block of tokens is taken from each.")]
Length = Annotated[int, typer.Option(help="Tokens of a block.")]
Sources = Annotated[str, typer.Option(help="Corpus sources of training text in equal parts, separated by commas.")]
MicroRows = Annotated[int, typer.Option(help="Sequences in one forward pass.")]
Bos = Annotated[
    str,
    typer.Option(help="Begin-of-text token: auto (as the tokenizer begins a text), yes or no.", metavar="auto|yes|no"),
]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]


def _command(kept: str) -> Callable[[Callable], Callable]:
    """A subcommand whose bad input ends in one line on stderr and exit status 2, and Ctrl-C in one that says how to go on.

    Args:
        kept: what is kept of work that was cut off, with the names of the command's options in braces.
    """

    def made(function: Callable) -> Callable:
        @app.command()
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except (ValueError, OSError) as error:
                typer.secho(f"error: {error}", fg="red", err=True)
                raise typer.Exit(2) from error
            except KeyboardInterrupt as error:
                typer.secho(f"\nstopped: {kept.format(**kwargs)}", fg="yellow", err=True)
                raise typer.Exit(130) from error

        return run

    return made


@_command("nothing was written; repeat the command")
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
    from . import corpus, frames, study

    lm = study.Study(model=model).lm
    tokens = corpus.encode(lm.tokenizer, text, bos=_bos(bos))
    table = frames.token_losses(tokens, {"loss": lm.score(tokens, route)})
    print(table[["position", "target", "loss_nats"]].to_string(index=False))
    print(f"mean loss {table['loss_nats'].mean():.4f} nats over {len(table)} tokens")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(out)


@_command("finished batches of texts are kept in {out}; repeat the command to go on from there")
def oracle(
    source: Source = "shipped-prose",
    documents: Documents = 8,
    length: Length = 128,
    choices: Annotated[
        str | None, typer.Option(help="Allowed choices: SB, -B or -SB; if not given, SB, of a dense model -B.")
    ] = None,
    context: Annotated[str, typer.Option(help="committed, reference:big, reference:<route> or uniform.")] = "committed",
    objective: Annotated[
        str, typer.Option(help="nll, expected, expected:mean, null, sampled, agree_big or entropy.")
    ] = "nll",
    method: Annotated[
        str,
        typer.Option(help="exhaustive, random-K, descent, beam, mcts, surrogate, or auto (see duoviz.oracle.methods)."),
    ] = "exhaustive",
    width: Annotated[
        int | None, typer.Option(help="The method's number: width of a beam, simulations, samples, restarts.")
    ] = None,
    model: Model = str(SHIPPED),
    batch_size: Annotated[int, typer.Option(help="Documents searched in lockstep.")] = 8,
    nodes: Annotated[int, typer.Option(help="Nodes of the trie held at a time: bounds the memory.")] = 16_384,
    max_flops: Annotated[float, typer.Option(help="Refuse a search that would cost more.")] = 1e15,
    seed: Seed = 0,
    fresh: Annotated[bool, typer.Option(help="Search again even if the result is stored.")] = False,
    bos: Bos = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the search would take on this machine, and stop.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("runs/oracle"),
) -> None:
    """The best route of every token for every budget of big layers; `--out` gets them as a table, one row a token and budget."""
    from . import frames, progress, study
    from . import oracle as oracles

    session = study.Study(
        model=model,
        sources=(source,),
        documents=documents,
        length=length,
        seed=seed,
        results=out,
        fresh=fresh,
        bos=_bos(bos),
    )
    tokens, choices = session.tokens(source), choices or session.choices
    ways: dict[str, Any] = {"context": context, "choices": choices}
    ways["method"] = method if width is None else f"{method}-{width}"
    setting = oracles.Setting(batch_size=batch_size, width=nodes, max_flops=max_flops)

    def say_cost() -> None:
        flops = oracles.estimate_curve(session.lm, tokens, **ways)
        rate = oracles.measured_rate(session.lm, tokens, objective=objective, setting=setting, **ways)
        size = f"{len(tokens)} documents, {int(tokens.scored.sum()):,} positions"
        print(f"{size}: {flops:.2g} FLOPs, about {progress.duration(flops / rate)} on this machine", file=sys.stderr)

    if dry_run:
        say_cost()
        return
    found = session.survey(source, (objective,), setting=setting, before=say_cost, **ways)
    curve = found[objective]
    for place in session.found:
        print(f"found in {place}", file=sys.stderr)
    table = frames.tidy(frames.curve(curve, tokens), tokens)
    out.mkdir(parents=True, exist_ok=True)
    table.to_parquet(out / "routes.parquet", index=False)
    print(frames.curve_summary([curve], tokens).to_string(index=False))
    print(f"replay: at most {curve.replay_error.max():.1e} nats from one ordinary forward pass")
    print(f"{len(table):,} routes with their tokens: {out / 'routes.parquet'}")


@_command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def router(
    out: Annotated[Path, typer.Option(help="Folder of the router.")],
    big: Annotated[float, typer.Option(help="Share of big layers asked for.")] = 4 / 12,
    skip: Annotated[float, typer.Option(help="Share of skipped layers asked for.")] = 0.0,
    small: Annotated[float | None, typer.Option(help="Share of small layers; what is left if not given.")] = None,
    tokens: Annotated[int, typer.Option(help="Training tokens.")] = 1_000_000,
    sources: Sources = "python-prose,python-code",
    model: Model = str(SHIPPED),
    seed: Seed = 0,
) -> None:
    """Train a router for a mixture of big, small and skip (stage 3); it is calibrated and saved with what it realises."""
    from . import router as routers
    from . import study
    from .routes import rest

    mixture = routers.Mixture(big=big, small=rest(big, skip) if small is None else small, skip=skip)
    made, log = study.train_router(model, out, mixture=mixture, tokens=tokens, sources=sources.split(","), seed=seed)
    print(log.iloc[[0, -1]].to_string(index=False))
    print(json.dumps({"asked": made.facts["mixture"], "realised on calibration text": made.facts["calibrated"]}))
    print(f"the router is in {out}")


@_command("nothing is kept of an evaluation; repeat the command, with fewer --documents or a smaller --limit")
def evaluate(
    source: Annotated[str | None, typer.Option(help="Perplexity on this corpus source (see oracle).")] = None,
    tasks: Annotated[str, typer.Option(help="Or tasks of lm-evaluation-harness, separated by commas.")] = "",
    route: Annotated[list[str] | None, typer.Option(help="One letter per layer for all tokens; repeatable.")] = None,
    router: Annotated[list[Path] | None, typer.Option(help="Folder of a router; repeatable.")] = None,
    big: Annotated[list[float] | None, typer.Option(help="Share of big of random choices; repeatable.")] = None,
    small: Annotated[float | None, typer.Option(help="Share of small beside --big; what is left if not given.")] = None,
    skip: Annotated[float | None, typer.Option(help="Share of skips beside --big; 0 if not given.")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a window; the context if not given.")] = None,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from window to window; half the length by default.")
    ] = None,
    documents: Annotated[int | None, typer.Option(help="Stop after so many documents of the source.")] = None,
    limit: Annotated[int | None, typer.Option(help="Documents of each task; all if not given.")] = None,
    fewshot: Annotated[int | None, typer.Option(help="Examples before each; the task's number if not given.")] = None,
    include_path: Annotated[Path | None, typer.Option(help="Folder with tasks of your own.")] = None,
    model: Model = str(SHIPPED),
    batch_size: MicroRows = 8,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option(help="Folder for the table.")] = Path("runs/evaluate"),
) -> None:
    """Perplexity with sliding windows, or tasks such as arc_easy, for one or several ways to route the tokens."""
    from . import evaluation, study

    cut = {"--source": source, "--length": length, "--stride": stride, "--documents": documents}
    own = {"--limit": limit, "--fewshot": fewshot, "--include-path": include_path}
    if wrong := [name for name, value in (cut if tasks else own).items() if value is not None]:
        raise ValueError(f"{', '.join(wrong)} {'beside' if tasks else 'without'} --tasks says nothing: leave one out")
    if tasks:
        evaluation.check_installed()
    lm, named = study.Study(model=model).lm, {"routes": route or (), "routers": router or (), "bigs": big or ()}
    ways = evaluation.ways_of(lm, **named, small=small, skip=skip, seed=seed)  # type: ignore[arg-type]
    asked: dict[str, Any] = {name[2:].replace("-", "_"): value for name, value in (own if tasks else cut).items()}
    if tasks:
        rows = evaluation.tasks(lm, tasks.split(","), ways=ways, batch_size=batch_size, **asked)
    else:
        asked["source"] = source or "shipped-prose"
        rows = evaluation.perplexities(lm, ways=ways, batch_size=batch_size, **asked)
    print(evaluation.write(lm, rows, out / ("tasks" if tasks else "perplexity")).to_string(index=False))
    print(f"also in {out}, as parquet and JSON")


@_command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was cut off goes on from there.")],
    preset: Annotated[
        str | None, typer.Option(help="tiny (the shipped model), tiny-opt or paper (1.4 B); else that of --start.")
    ] = None,
    width: Annotated[int | None, typer.Option(help="Width of the big FFN; the preset's if not given.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens; the preset's if not given.")] = None,
    sources: Sources = "python-prose,python-code",
    big: Annotated[float, typer.Option(help="Probability of the big FFN; 1 trains a dense model.")] = 0.5,
    skip: Annotated[float, typer.Option(help="Probability of a skip; the rest is small.")] = 0.0,
    micro_rows: MicroRows = 16,
    start: Annotated[
        Path | None, typer.Option(help="Start from this Duo folder; the learning rate is warmed up again.")
    ] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, or muon for the hidden matrices.")] = "adamw",
    activation_checkpointing: Annotated[bool, typer.Option(help="Recompute activations to save memory.")] = False,
    seed: Seed = 0,
) -> None:
    """Stage 1: train a Duo model with random routes, from scratch or from `--start`. Repeat the command to resume."""
    from dataclasses import replace

    from . import store, training
    from .model import RandomPolicy, configuration
    from .routes import rest

    if preset not in (None, *training.PRESETS):
        raise ValueError(f"preset {preset!r}: allowed are {', '.join(training.PRESETS)}")
    shape = training.PRESETS[preset or "tiny"]
    if start is not None and preset is None:
        shape = training.Preset.of(configuration(start), tokens=shape.tokens, learning_rate=shape.learning_rate)
    shape = replace(shape, tokens=shape.tokens if tokens is None else tokens, big=shape.big if width is None else width)
    plan = training.Stage1(
        out=out,
        preset=shape,
        sources=tuple(sources.split(",")),
        policy=RandomPolicy(big=big, small=rest(big, skip), skip=skip),
        seed=seed,
        micro_rows=micro_rows,
        start=start,
        optimizer=optimizer,
        gradient_checkpointing=activation_checkpointing,
    )
    with store.only_writer(out / "training.lock"), store.room_in(out):
        folder = training.train(plan)
    print(f"the model is in {folder}")


@_command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def convert(
    model: Annotated[str, typer.Option(help="Folder or Hub id of a dense model.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was cut off goes on from there.")],
    small: Annotated[
        int | None, typer.Option(help="Width of the small FFNs; a sixteenth of the big if not given.")
    ] = None,
    begin: Annotated[str, typer.Option(help="neurons (the big FFN's most used ones, rescaled) or random.")] = "neurons",
    tokens: Annotated[int, typer.Option(help="Training tokens; 0 for none.")] = 1_000_000,
    frozen: Annotated[
        bool, typer.Option("--frozen/--together", help="Train the small FFNs alone, or all weights.")
    ] = True,
    distil: Annotated[
        float, typer.Option(help="Weight of the dense model's predictions against the text: 0 to 1.")
    ] = 0.0,
    learning_rate: Annotated[float, typer.Option(help="Its peak.")] = 1e-3,
    sources: Sources = "python-prose,python-code",
    micro_rows: MicroRows = 16,
    seed: Seed = 0,
) -> None:
    """Give a dense model small FFNs and train them with random routes. Repeat the command to resume."""
    from . import study

    folder = study.train_small(
        model,
        out,
        small=small,
        begin=begin,
        tokens=tokens,
        frozen=frozen,
        distil=distil,
        learning_rate=learning_rate,
        sources=sources.split(","),
        micro_rows=micro_rows,
        seed=seed,
    )
    print(f"the Duo model is in {folder}")


@_command("training up to its last checkpoint is kept in {out}; repeat the command to go on from there")
def figure8(
    out: Annotated[Path, typer.Option(help="Folder for the models; what was cut off goes on.")] = Path("runs/study"),
) -> None:
    """Train and measure the models of figure 8 (ten of them, some hours on two cores) for notebook 1."""
    from .study import figure8 as figure

    figure.train(out)
    figure.write(figure.measured(out))
    print(f"the tables are in {figure.TABLES}")


@_command("finished pages are in {out}, and what they computed is kept; repeat the command to go on from there")
def report(
    only: Annotated[str, typer.Option(help="Numbers or names of notebooks, separated by commas.")] = "",
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value for the notebooks; repeatable.")
    ] = None,
    model: Annotated[str, typer.Option(help="The same as -p model=...")] = "",
    fresh: Annotated[bool, typer.Option(help="Compute every stored result again (not the weights).")] = False,
    ship: Annotated[bool, typer.Option(help="The same, and put the results in data/results.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/report"),
) -> None:
    """Run the notebooks headlessly and write a report that opens offline."""
    import time

    from . import report as reports
    from . import study

    given = dict(_parameter(text) for text in parameter or [])
    if model:
        given["model"] = model
    if ship and (only or given):
        raise ValueError("--ship is for the results of all notebooks with their own parameters: leave the others out")
    began = time.time()
    pages = reports.build(out, only=[part for part in only.split(",") if part], parameters=given, fresh=fresh or ship)
    print(f"report: {out / 'index.html'}")
    if any(page.error for page in pages):
        raise typer.Exit(1)
    if ship:
        print(f"shipped: {', '.join(study.results(since=began).ship())}")


@_command("nothing is kept of a benchmark; repeat the command")
def bench(
    model: Model = str(SHIPPED),
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    rounds: Annotated[int, typer.Option(help="How often both sides of a comparison are timed.")] = 3,
    out: Annotated[Path, typer.Option(help="The table as JSON.")] = Path("runs/bench.json"),
    ship: Annotated[bool, typer.Option(help="Also put the table in data/bench.json and the README.")] = False,
) -> None:
    """Measure what is fast and what is not, as ratios in one run."""
    from . import bench as benchmarks
    from . import study

    print(f"{benchmarks.machine()}\n\n{benchmarks.HEADER}")
    rows = benchmarks.run(model, device=device, rounds=rounds)
    shipped = study.ROOT / "data" / "bench.json"
    for path in [out, *([shipped] if ship else [])]:
        benchmarks.write(rows, path)
    print(f"\nalso in {out}")
    if ship:
        benchmarks.ship(shipped, study.ROOT / "README.md")


def _bos(text: str) -> bool | Literal["auto"]:
    known: dict[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}
    if text not in known:
        raise ValueError(f"bos {text!r}: give auto, yes or no")
    return known[text]


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"parameter {text!r}: write name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
