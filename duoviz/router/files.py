"""Routers on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..places import replaced
from .linear import Mixture, Router
from .pairwise import CLASSES

BUDGETS = (2, 4, 6, 8, 10)
MIXTURES = ((0.3, 0.7, 0.0), (0.5, 0.0, 0.5), (0.5, 0.3, 0.2), (0.0, 0.5, 0.5), (0.3, 0.5, 0.2))
"""Shares of big, small and skip."""


def standard(layers: int) -> dict[str, Mixture]:
    """The routers that belong to a model, by folder name: the budgets of figure 4b (`budget-4`: so many layers big, the rest
    small) and the mixtures of figures 7 and 9 (shares in per cent)."""
    found = {f"budget-{k}": Mixture.from_budget(k, layers) for k in BUDGETS if k < layers}
    for shares in MIXTURES:
        parts = zip(("big", "small", "skip"), shares)
        found["-".join(f"{name}-{round(100 * share)}" for name, share in parts if share)] = Mixture(*shares)
    return found


def trained(folder: Path, *, layers: int) -> dict[str, Mixture]:
    """What each router in the folder of a model's routers was trained for, by name: those of `standard` first, in its order.

    Raises:
        ValueError: one that was trained for something else than such a name says, or is damaged.
    """
    known, found = standard(layers), sorted(path.parent.name for path in folder.glob("*/router.json"))
    asked = {name: load(folder / name).mixture for name in sorted(found, key=[*known, *found].index)}
    for name in known.keys() & asked.keys():
        if not all(abs(a - b) < 1e-3 for a, b in zip(astuple(asked[name]), astuple(known[name]))):
            raise ValueError(
                f"router {folder / name} was trained for {asked[name]}, its name says {known[name]}: rename it"
            )
    return asked


def save(router: Router, folder: Path | str) -> None:
    """Write `router.safetensors` and, with how it was made and what it realises, `router.json`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        **router.facts,
        "mixture": asdict(router.mixture),
        "choices": router.mixture.letters,
        "layers": router.layers,
        "hidden": router.hidden,
        "units": router.units,
        "reads": router.reads,
        "beta": float(router.beta),
        "offset": router.offset.tolist(),
    }
    weights = {name: tensor.contiguous() for name, tensor in router.state_dict().items()}
    replaced(folder / "router.safetensors", lambda partial: save_file(weights, partial))
    replaced(folder / "router.json", lambda partial: partial.write_text(json.dumps(facts, indent=1) + "\n"))


def load(folder: Path | str) -> Router:
    """A saved router, in evaluation mode.

    Raises:
        FileNotFoundError: no router in the folder.
        ValueError: a damaged file, facts that do not fit the weights, or weights that are NaN or infinite; named.
    """
    folder = Path(folder)
    for name in ("router.json", "router.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"router {folder}: there is no {name}")
    try:
        facts = json.loads((folder / "router.json").read_text())
        state = load_file(folder / "router.safetensors")
        units = state["inner"].shape[1] if "inner" in state else 0
        layers, _, width = state["inner" if units else "weight"].shape
        reads = facts.get("reads", "ffn")
        hidden = width - (reads == "spent")
        kind = CLASSES.get(facts.get("kind", ""), Router)
        layers = layers if kind is Router else facts["layers"]
        router = kind(layers, hidden, Mixture(**facts["mixture"]), units=units, reads=reads)
        if "surprise" in state:
            router.surprise = torch.zeros_like(state["surprise"])
        router.load_state_dict(state)
        made = {"choices": router.mixture.letters, "layers": layers, "hidden": hidden}
        if wrong := {name: facts[name] for name in made if facts.get(name, made[name]) != made[name]}:
            raise ValueError(f"router.json says {wrong}, the mixture and the weights say {made}")
        if unsound := sorted(name for name, tensor in state.items() if not torch.isfinite(tensor).all().item()):
            raise ValueError(f"{unsound} hold NaN or infinity")
    except (ValueError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"router {folder} is damaged: {error}; train it again") from error
    router.facts = facts
    return router.eval()
