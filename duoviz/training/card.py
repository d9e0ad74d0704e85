"""The model card: what a model was trained on, how, and with which commands."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

from .. import corpus
from ..families import FAMILIES
from ..model.duo import RandomPolicy
from .preset import PRESETS, Preset
from .text import HELD_ROWS

OPTIONS = {"--tokens": "tokens", "--width": "big", "--rows": "rows", "--learning-rate": "learning_rate"}
"""Options of `train` that change a preset, and what they change."""
FLAGS = {"--any-share": "any_share", "--bf16": "bf16"}
"""Options of `train` that are said or not, and what of a leg or its policy says so."""


def card(facts: dict[str, Any]) -> str:
    """The model card, from what `training.json` holds: data, tokens, losses and, for every leg, seed and command."""
    legs = facts["legs"]
    shape = Preset(**legs[-1]["preset"])
    losses = "\n".join(f"| {name.replace('_', ', ')} | {value:.3f} |" for name, value in facts["holdout_nats"].items())
    trained = f"Trained on {facts['tokens']:,} tokens" + (f" in {len(legs)} legs." if len(legs) > 1 else ".")
    if legs[0]["start"] and not legs[0]["conversion"]:
        trained += (
            f" It started from the model in {legs[0]['start']},\nwhich came without a record of its own training."
        )
    family = FAMILIES[shape.family].config.__name__.removesuffix("Config")
    dense = not legs[-1]["policy"]["small"]
    ffns = f"FFNs of width {shape.big}" + ("" if dense else f" (big)\nand {shape.small} (small)")
    took = "Every token took every FFN."
    if legs[-1]["policy"]["big"] < 1:
        took = "At each layer, independently,\neach token took the FFN or none at random."
    if not dense:
        took = "At each layer, independently,\neach token took the big FFN, the small one or none at random."
    parts = [
        f"# {facts['name']}",
        f"""A {"dense" if dense else "Duo"} {family}: {shape.layers} layers of width {shape.hidden}, {shape.heads} heads, {ffns},
a vocabulary of {shape.vocab:,}, trained on rows of {shape.context} tokens.
{_made_for(legs)}""",
        *_cuts(legs),
        f"{trained} {took} {_held(legs)}",
        _optimizers(legs),
        *(_leg(leg, f"Leg {number}: " if len(legs) > 1 else "") for number, leg in enumerate(legs, 1)),
        f"""| holdout (at most {HELD_ROWS} rows of {shape.context} tokens), policy | loss, nats per token |
|---|---|
{losses}""",
    ]
    return "\n\n".join(parts) + "\n"


def _made_for(legs: list[dict[str, Any]]) -> str:
    if begun := legs[0]["conversion"]:
        same = "All big, it is" if all(leg["frozen"] for leg in legs) else "It was made of"
        return f"{same} the dense model {begun['model']}."
    return "It was made to be studied, not to be used: it knows only what it has read."


def _cuts(legs: list[dict[str, Any]]) -> list[str]:
    """A sentence for every leg that was cut off before its learning rate had come down."""
    found = []
    for number, leg in enumerate(legs, 1):
        if leg["steps"] >= leg["steps_planned"]:
            continue
        steps = f"{leg['steps']:,} of {leg['steps_planned']:,} steps"
        if number < len(legs):
            found.append(
                f"Leg {number} was cut off after {steps}, before its learning rate had come down; leg {number + 1} went on"
                " from\nthere with a new warm-up and a new cosine."
            )
        else:
            found.append(
                f"Training is not finished: {steps}{f' of leg {number}' if number > 1 else ''}, the learning rate has not"
                " come down\nyet, and the losses below will fall."
            )
    return found


def _optimizers(legs: list[dict[str, Any]]) -> str:
    """What moved the weights."""
    named = dict.fromkeys(leg["optimizer"] for leg in legs)
    words = {
        "adamw": "AdamW",
        "muon": "Muon for the hidden matrices (at twice the learning rate) and AdamW for the rest",
    }
    return (
        f"{' and '.join(words[name] for name in named)}, betas (0.9, 0.95), weight decay 0.1, gradients clipped at 1."
    )


def _held(legs: list[dict[str, Any]]) -> str:
    """What was kept out of training."""
    sources = list(dict.fromkeys(source for leg in legs for source in leg["sources"]))
    own = [source for source in sources if source not in corpus.PYTHON]
    read = "Every 25th row of {} was held out.".format(" and ".join(own)) if own else ""
    if len(own) == len(sources):
        return read
    split = " or ".join(dict.fromkeys(leg["split"] for leg in legs))
    return (
        "The python sources are docstrings and sources of the standard library and of the\n"
        f"installed packages, read where they are installed. Documents the hash of whose {split} falls into the holdout\n(4 %), "
        f"and near-duplicates of those, were never trained on; neither was the shipped text. {read}"
    ).strip()


def _leg(leg: dict[str, Any], title: str) -> str:
    """One leg of training: text, routes, schedule, seed and command."""
    shape, policy = Preset(**leg["preset"]), leg["policy"]
    if begun := leg["conversion"]:
        ways = {"neurons": "from the most used neurons of the big ones", "random": "at random"}
        learned = f", learned with weight {leg['distil']} from the dense model's predictions" if leg["distil"] else ""
        part = "they alone were trained" if leg["frozen"] else "all weights were trained"
        alone = begun.get("layer_tokens", 0)
        first = f" and taught, each by itself, what its big one does on {alone:,} tokens" if alone else ""
        title += f"small FFNs were added to {begun['model']}, begun {ways[begun['begin']]}{first}; {part}{learned}. "
    cut = f" of {leg['steps_planned']:,}" if leg["steps"] < leg["steps_planned"] else ""
    rate = f"{shape.learning_rate} after {shape.warmup_steps} steps, then a cosine to {shape.final_learning_rate}"
    odds = f"big with probability {policy['big']}, small {policy['small']}, none {policy['skip']}"
    if policy.get("any_share"):
        odds = "big with a probability drawn for every text between 0 and 1"
    if leg.get("bf16"):
        odds += "; matrix products in bfloat16"
    return f"""{title}{leg["tokens"]:,} tokens of {" and ".join(leg["sources"])} in equal parts: {leg["steps"]:,}{cut} steps
of {shape.rows} rows of {shape.context} tokens; {odds};
learning rate {rate}; seed {leg["seed"]}.

{_command(leg)}"""


def _command(leg: dict[str, Any]) -> str:
    """The command that trains a leg, or why there is none."""
    shape, policy = Preset(**leg["preset"]), leg["policy"]
    if begun := leg["conversion"]:
        given: dict[str, Any] = {
            "--model": begun["model"],
            "--out": f"runs/{leg['name']}",
            "--small": shape.small,
            "--begin": begun["begin"],
        }
        given |= {"--layer-tokens": begun["layer_tokens"]} if begun.get("layer_tokens") else {}
        given |= {"--tokens": shape.tokens, "--learning-rate": shape.learning_rate, "--distil": leg["distil"]}
        rest = {"--sources": ",".join(leg["sources"]), "--seed": leg["seed"], "--micro-rows": leg["micro_rows"]}
        rest["--rows"] = shape.rows
        return _lines("convert", given, {**rest, **({"--frozen": None} if leg["frozen"] else {"--together": None})})
    ways = [_changed(shape, name) for name in (*PRESETS, *([None] if leg["start"] else []))]
    found = next((way for way in ways if way is not None), None)
    if found is None:
        return "It was trained from Python: its shape and schedule are no preset of the command line."
    given = {"--out": f"runs/{leg['name']}"}
    given |= {name: value for name, value in found.items() if name == "--preset"}
    if leg["start"]:
        given["--start"] = leg["start"]
    if leg["frozen"]:
        given["--frozen"] = None
    if leg["distil"]:
        given["--distil"] = leg["distil"]
    if leg["optimizer"] != "adamw":
        given["--optimizer"] = leg["optimizer"]
    given |= {option: None for option, flag in FLAGS.items() if leg.get(flag) or policy.get(flag)}
    given |= found
    rest = {"--sources": ",".join(leg["sources"])}
    if (policy["big"], policy["skip"]) != (RandomPolicy().big, RandomPolicy().skip):
        rest |= {"--big": policy["big"], "--skip": policy["skip"]}
    rest |= {"--seed": leg["seed"], "--micro-rows": leg["micro_rows"]}
    return _lines("train", given, rest)


def _changed(shape: Preset, name: str | None) -> dict[str, Any] | None:
    """Options of `train` that make a shape and schedule of a preset, or of that of the model it starts from; None if none do."""
    tiny = PRESETS["tiny"]
    rates: dict[str, Any] = {
        "learning_rate": tiny.learning_rate,
        "final_learning_rate": tiny.final_learning_rate,
    }
    known = PRESETS[name] if name else replace(shape, tokens=tiny.tokens, rows=tiny.rows, warmup=tiny.warmup, **rates)
    given = {
        field: getattr(shape, field) for field in OPTIONS.values() if getattr(shape, field) != getattr(known, field)
    }
    if known.changed(**given) != shape:
        return None
    preset = {} if name in (None, "tiny") else {"--preset": name}
    return preset | {option: given[field] for option, field in OPTIONS.items() if field in given}


def _lines(command: str, *options: dict[str, Any]) -> str:
    """A command of the shell, indented, its options on a line each group; an option that is None is a flag."""
    words = [[str(word) for pair in some.items() for word in pair if word is not None] for some in options]
    return f"    python -m duoviz {command} " + " \\\n        ".join(map(shlex.join, words))
