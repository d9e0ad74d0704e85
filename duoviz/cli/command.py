"""What the subcommands share: the app, options that several take, and how errors and Ctrl-C end."""

from __future__ import annotations

import json
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
Distil = Annotated[
    float,
    typer.Option(
        help="Weight of the big FFNs' own predictions against the text: 0 to 1; those of the model started from."
    ),
]
MicroRows = Annotated[int, typer.Option(help="Sequences in one forward pass.")]
Bos = Annotated[
    str,
    typer.Option(help="Begin-of-text token: auto (as the tokenizer begins a text), yes or no.", metavar="auto|yes|no"),
]
Groups = Annotated[int | None, typer.Option(help="Tie the layers into so many equal runs, which choose together.")]
Free = Annotated[
    str | None, typer.Option(help="Layers that choose, separated by commas; the others are big. All if not given.")
]
Choices = Annotated[
    str | None, typer.Option(help="Allowed choices: SB, -B or -SB; if not given, SB, of a dense model -B.")
]
Nodes = Annotated[int, typer.Option(help="Nodes of the trie held at a time: bounds the memory.")]
Lockstep = Annotated[int, typer.Option(help="Documents searched in lockstep.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]


def command(kept: str) -> Callable[[Callable], Callable]:
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
            except BrokenPipeError:  # a reader of the output that has seen enough, such as head; typer ends in silence
                raise
            except (ValueError, OSError) as error:
                typer.secho(f"error: {error}", fg="red", err=True)
                raise typer.Exit(2) from error
            except KeyboardInterrupt as error:
                typer.secho(f"\nstopped: {kept.format(**kwargs)}", fg="yellow", err=True)
                raise typer.Exit(130) from error

        return run

    return made


def bos_of(text: str) -> bool | Literal["auto"]:
    """The value of `--bos`, as `corpus.tokenize` takes it.

    Raises:
        ValueError: anything else.
    """
    known: dict[str, bool | Literal["auto"]] = {"auto": "auto", "yes": True, "no": False}
    if text not in known:
        raise ValueError(f"bos {text!r}: give auto, yes or no")
    return known[text]


def free_of(text: str | None) -> tuple[int, ...] | None:
    """The value of `--free`, as `routes.Space` takes it.

    Raises:
        ValueError: anything but whole numbers.
    """
    return None if text is None else numbers_of(text, name="free", what="layers")


def numbers_of(text: str, *, name: str, what: str) -> tuple[int, ...]:
    """The whole numbers of an option, separated by commas.

    Raises:
        ValueError: anything else.
    """
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{name} {text!r}: give the numbers of {what}, for example 0,4,9")
    return tuple(map(int, numbers))


def named_value(text: str) -> tuple[str, Any]:
    """Name and value of `name=value`: a value in JSON, or a text.

    Raises:
        ValueError: anything else.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"parameter {text!r}: write name=value")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value
