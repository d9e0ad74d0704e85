"""The Duo model: layers with two FFNs and a skip, on the models of transformers."""

from .config import SKIP_SCOPES, DuoConfig
from .duo import CLASSES, DuoCausalLM, DuoOutput, config_for
from .flops import forward_flops, parameter_groups
from .head import Head
from .language_model import LanguageModel, undisturbed
from .loading import add_small, configuration, load, load_model, read_tokenizer
from .policy import RandomPolicy
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
    "undisturbed",
]
