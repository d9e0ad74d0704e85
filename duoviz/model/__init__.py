"""The Duo model: layers with two FFNs and a skip, on the models of transformers."""

from .duo import CLASSES, SKIP_SCOPES, DuoCausalLM, DuoConfig, DuoOutput, RandomPolicy, config_for
from .flops import forward_flops, parameter_groups
from .language_model import Head, LanguageModel
from .loading import add_small, configuration, load, load_model, read_tokenizer
from .routing import DuoFFN, DuoLayer, Routing

__all__ = [
    "CLASSES",
    "SKIP_SCOPES",
    "DuoCausalLM",
    "DuoConfig",
    "DuoFFN",
    "DuoLayer",
    "DuoOutput",
    "Head",
    "LanguageModel",
    "RandomPolicy",
    "Routing",
    "add_small",
    "config_for",
    "configuration",
    "forward_flops",
    "load",
    "load_model",
    "parameter_groups",
    "read_tokenizer",
]
