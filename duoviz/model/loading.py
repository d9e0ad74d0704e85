"""Models from a folder or the Hub: Duo models, adapters, and dense ones whose layers can be skipped."""

from __future__ import annotations

from functools import lru_cache, partial
from importlib.util import find_spec
from logging import getLogger
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from unittest.mock import patch

import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from tqdm import tqdm
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from .. import places
from .. import routes as routes_
from ..families import family
from .adapter import HUB_ID, add_adapter, in_cache, is_adapter, place_of_base
from .config import SKIP_SCOPES, DuoConfig
from .duo import CLASSES, DuoCausalLM, config_for
from .language_model import LanguageModel

BUFFERS = ("inv_freq", "attn.bias", "masked_bias", "attention.bias")
"""Ends of names of tables that older checkpoints keep beside the weights, and that models make themselves."""
LOG = getLogger(__name__)
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def load(
    path: Path | str,
    *,
    device: str = "auto",
    dtype: torch.dtype | str | None = None,
    choices: str | None = None,
    skip_scope: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> LanguageModel:
    """A Duo model, or a dense one whose layers can be skipped, with its tokenizer.

    Args:
        path: a folder (here, or a shipped one such as `data/duo-tiny`), a .gguf file or a Hub id.
        device: `"auto"` is CUDA where there is one.
        dtype: None is float32 on the CPU and bfloat16 on CUDA; `"auto"` is what the weights are stored in; or
            `"float32"`, `"bfloat16"`, `"float16"`.
        choices: letters allowed; None is all three of a Duo model; a dense one has no small FFN: give `"-B"`.
        skip_scope: `"ffn"` or `"block"` instead of what the configuration says (`"ffn"` for a dense model).
        device_map: as in transformers, for a model larger than one GPU; every weight must stay on a device.

    Raises:
        ValueError: an unsupported family, quantised weights, code of its own, choices the model lacks, an unknown dtype or
            skip_scope, a device beside a device_map, weights missing, misshapen, NaN or left off the devices.
        FileNotFoundError: a folder that does not exist; OSError: a damaged one, or a Hub id that cannot be reached.
    """
    path = places.found(path)
    if device_map is not None and device != "auto":
        raise ValueError(f"device {device!r} and a device_map: give one of them")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    _check_device(device)
    if dtype is None:
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    model = load_model(path, dtype=dtype, choices=choices, device_map=device_map)
    if skip_scope is not None:
        if skip_scope not in SKIP_SCOPES:
            raise ValueError(f"skip_scope {skip_scope!r}: allowed are {SKIP_SCOPES}")
        model.config.skip_scope = skip_scope
    if device_map is None:
        model = model.to(device)
    return LanguageModel(model, read_tokenizer(path), choices=choices or routes_.LETTERS, path=str(path))


def _check_device(device: str) -> None:
    """Check that something can be put on a device.

    Raises:
        ValueError: if not.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each kind of device has its own
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"device {device!r} is not there ({why}): give auto, cpu, cuda or mps") from error


def load_model(
    path: Path | str,
    *,
    dtype: torch.dtype | str = torch.float32,
    choices: str | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> DuoCausalLM:
    """The Duo model of a folder or Hub id, on the CPU (or as `device_map` says) and without tokenizer; arguments and errors
    as in `load`.

    The small FFNs of a dense model are zero: no route may name them, equal weights keep equal fingerprints, and it is saved as
    the dense model.
    """
    path = places.found(path)
    if choices is not None and (not choices or set(choices) - set(routes_.LETTERS)):
        raise ValueError(f"choices {choices!r}: name letters of '-SB', for example '-B'")
    config = configuration(path)
    if isinstance(config, DuoConfig) and is_adapter(path):
        place = place_of_base(path)
        configuration(place)  # or what is wrong with it
        made = _read(place, config, dtype="auto", device_map=device_map, new=".small.")
        add_adapter(made, path, place)
        return made if dtype == "auto" else made.to(_dtype(dtype))
    if isinstance(config, DuoConfig):
        return _read(path, config, dtype=dtype, device_map=device_map)
    if choices is None or routes_.LETTERS[routes_.SMALL] in choices:
        raise ValueError(
            f"{path} is a dense {config.model_type} model without small FFNs: load it with choices='-B' (skip or big), or"
            " give it small FFNs with python -m duoviz convert"
        )
    model = add_small(path, config, width=1, dtype=dtype, device_map=device_map)
    ffns: list[Any] = [layer.duo_ffn for layer in model.decoder_layers]
    for parameter in (parameter for ffn in ffns for parameter in ffn.small.parameters()):
        nn.init.zeros_(parameter)
    model.has_small = False
    return model


def configuration(path: Path | str) -> PretrainedConfig:
    """The configuration of a folder or Hub id: that of a Duo model, or of a dense one that could become one.

    Raises:
        ValueError: a family that is not supported, quantised weights, code of its own, fields that are none of the family's.
        FileNotFoundError: no such folder, or no config.json in it; OSError: a damaged one, or a Hub id that cannot be reached.
    """
    path = places.found(path)
    fields = _gguf_fields(str(path)) if is_gguf(path) else PretrainedConfig.get_config_dict(_place(path)["path"])[0]
    if not fields or not isinstance(fields, dict):
        inside = Path(path) / "model"  # of a training run
        hint = f"; there is one in {inside}" if (inside / "config.json").exists() else ""
        raise FileNotFoundError(
            f"{path} holds no config.json, or one that says nothing: it is not the folder of a model{hint}"
        )
    entry = family(str(fields.get("model_type", "")))
    if fields.get("auto_map") and fields["model_type"] == entry.name:  # not one of ours
        LOG.warning("%s: the code it names (auto_map) is not run; it is read as %s of transformers", path, entry.name)
    quantised = fields.get("quantization_config")
    if quantised and not is_gguf(path):
        raise ValueError(f"{path} is quantised: give a checkpoint in float32, bfloat16 or float16")
    try:
        if is_gguf(path):
            config = entry.config.from_dict({**fields})
        else:
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (StrictDataclassError, ValueError, TypeError, LookupError) as error:
        raise ValueError(f"{path}: its config.json is that of no {entry.name} model ({error!r})") from error
    for field in ("auto_map", "quantization_config"):  # not of the model that is made
        if hasattr(config, field) and not isinstance(config, DuoConfig):
            delattr(config, field)
    if why := entry.lacks(config):
        raise ValueError(f"{path}: this {entry.name} model cannot be a Duo model: {why}")
    return config


def is_gguf(path: Path | str) -> bool:
    """Whether a path names a file of the GGUF format (of llama.cpp)."""
    return str(path).endswith(".gguf")


@lru_cache(maxsize=4)
def _gguf_fields(path: str) -> dict[str, Any]:
    """The configuration in a GGUF file. It takes seconds to read, as the file holds the vocabulary piece by piece."""
    place = _place(path)
    return PretrainedConfig.get_config_dict(place.pop("path"), **place)[0]


def _place(path: Path | str) -> dict[str, Any]:
    """What `from_pretrained` of transformers takes for a path: a folder, the id of a model on the Hub, or a GGUF file.

    Raises:
        FileNotFoundError: no such folder or file, and no model of that id; OSError: the Hub cannot be reached; ValueError: a GGUF
            file without the package that reads it.
    """
    if is_gguf(path):
        if not Path(path).is_file():
            raise FileNotFoundError(f"model {path}: there is no such file")
        if find_spec("gguf") is None:
            raise ValueError(f"{path}: the package gguf reads such files; pip install 'duoviz[gguf]'")
        return {"path": str(Path(path).parent), "gguf_file": Path(path).name}
    if Path(path).is_dir():
        return {"path": str(path)}
    # 'runs/x' might be an id, but not where there is a folder 'runs'
    an_id = HUB_ID.fullmatch(str(path)) and not ("/" in str(path) and Path(path).parent.exists())
    if not an_id:
        raise FileNotFoundError(f"model {path}: there is no such folder, and it is not a Hub id like 'owner/name'")
    if not in_cache(str(path)):
        try:  # asked once, as transformers would try again and again where there is no connection
            HfApi().model_info(str(path), timeout=20)
        except RepositoryNotFoundError as error:
            raise FileNotFoundError(
                f"model {path}: there is no such folder here, and no such model on the Hub"
            ) from error
        except (HTTPError, OSError) as error:
            why = str(error).partition("\n")[0]
            raise OSError(
                f"model {path}: there is no such folder here, and the Hub cannot be reached ({why})"
            ) from error
    return {"path": str(path)}


def add_small(
    path: Path | str,
    config: PretrainedConfig,
    *,
    width: int,
    dtype: torch.dtype | str = torch.float32,
    device_map: str | dict[str, Any] | None = None,
) -> DuoCausalLM:
    """A dense model with small FFNs of a width, initialised as its family does; arguments and errors as in `load`."""
    path = places.found(path)
    return _read(path, config_for(config, small_width=width), dtype=dtype, device_map=device_map, new=".small.")


def _read(
    path: Path | str,
    config: DuoConfig,
    *,
    dtype: torch.dtype | str,
    device_map: str | dict[str, Any] | None,
    new: str | None = None,
) -> DuoCausalLM:
    """The model, every weight of which was read and is finite; those with `new` in their names may be missing.

    Raises:
        OSError: the weights cannot be read; ValueError: an unknown dtype, or weights that are missing, of another shape, NaN,
            infinite or on no device.
    """
    dtype = dtype if dtype == "auto" else _dtype(dtype)
    _, causal_lm = CLASSES[family(config.model_type).name]
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its report of missing weights; ours is an error
    try:
        if is_gguf(path):
            model, report = _from_gguf(path, config, causal_lm, dtype)
        else:
            # weights_only: of a *.bin nothing but tensors is unpickled, so it cannot run code
            options = {"weights_only": True, "ignore_mismatched_sizes": True, "output_loading_info": True}
            model, report = causal_lm.from_pretrained(
                path, config=config, dtype=dtype, device_map=device_map, **options
            )
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0]
        raise OSError(
            f"the weights in {path} are damaged, cut short or no plain tensors ({why}): restore the file"
        ) from error
    except OSError as error:
        raise OSError(f"{path}: weights are read from *.safetensors, *.bin and .gguf ({error})") from error
    except (ValueError, LookupError) as error:
        raise ValueError(f"{path}: its config.json makes no {config.model_type} ({error!r})") from error
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
    if new is not None:
        for layer in model.decoder_layers:
            _same_activation(layer.duo_ffn)
    _check(path, model, report, new)
    head, embeddings = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    if model.config.tie_word_embeddings and head is not embeddings:
        LOG.warning("%s ties head and embeddings in its configuration but holds two matrices: both are kept", path)
        model.config.tie_word_embeddings = False
    return model


def _dtype(dtype: torch.dtype | str) -> torch.dtype:
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: allowed are 'auto', {', '.join(map(repr, DTYPES))}")
    return DTYPES[dtype] if isinstance(dtype, str) else dtype


def _from_gguf(
    path: Path | str, config: DuoConfig, causal_lm: type[DuoCausalLM], dtype: torch.dtype | str
) -> tuple[DuoCausalLM, dict[str, Any]]:
    """The model of a GGUF file, whose weights are de-quantised, and what loading it reports.

    Through the dense model: what transformers makes of such a file says that it is quantised, and cannot be saved.
    """
    place = _place(path)
    wide = torch.float32 if dtype == "auto" else dtype
    own = causal_lm.family.config.from_dict({**_gguf_fields(str(path))})
    unseen = patch("transformers.modeling_gguf_pytorch_utils.tqdm", partial(tqdm, disable=True), create=True)
    with unseen:  # its bar, which no setting of transformers silences
        dense = causal_lm.family.causal_lm.from_pretrained(place.pop("path"), config=own, dtype=wide, **place)
    LOG.warning("%s: its weights are de-quantised to %s", Path(path).name, str(wide).removeprefix("torch."))
    model = causal_lm(config).to(wide)
    missing, unexpected = model.load_state_dict(dense.state_dict(), strict=False, assign=True)
    model.tie_weights()
    return model.eval(), {"missing_keys": set(missing), "unexpected_keys": set(unexpected), "mismatched_keys": set()}


def _same_activation(ffn: Any) -> None:
    """Give the small FFN the big one's activation: that of Apertus has weights, which are not among those that its family
    initialises."""
    for name, part in ffn.small.named_children():
        if name not in (*ffn.family.into, ffn.family.out) and hasattr(ffn, name):
            part.load_state_dict(getattr(ffn, name).state_dict())


def _check(path: Path | str, model: DuoCausalLM, report: dict[str, Any], new: str | None) -> None:
    """Check that every weight was read, fits and is finite; those with `new` in their names may be missing.

    Raises:
        ValueError: if not.
    """
    missing = sorted(name for name in report["missing_keys"] if new is None or new not in name)
    if missing:
        raise ValueError(f"{path} lacks {len(missing)} weights, for example {missing[0]}: the checkpoint is incomplete")
    if unknown := sorted(name for name in report["unexpected_keys"] if not name.endswith(BUFFERS)):
        raise ValueError(
            f"{path} holds {len(unknown)} weights that its configuration has no place for, for example {unknown[0]}"
        )
    if report["mismatched_keys"]:
        name, stored, wanted = min(report["mismatched_keys"])
        raise ValueError(f"weight {name} of {path} is {tuple(stored)}, its configuration says {tuple(wanted)}")
    for name, tensor in model.state_dict().items():
        if tensor.is_meta:
            raise ValueError(
                f"device_map leaves weight {name} of {path} on no device: give it more memory or a narrower dtype"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"weight {name} of {path} holds NaN or infinity: the checkpoint is damaged")


def read_tokenizer(path: Path | str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or Hub id; None for a folder without one.

    Raises:
        ValueError: one that cannot be read; OSError: a Hub id that cannot be reached.
    """
    path = places.found(path)
    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if Path(path).is_dir() and not any(Path(path, name).is_file() for name in files):
        return read_tokenizer(place_of_base(path)) if is_adapter(path) else None
    place = _place(path)
    try:
        return AutoTokenizer.from_pretrained(place.pop("path"), trust_remote_code=False, **place)
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f"the tokenizer of {path} cannot be read ({error!r}): restore its files") from error
