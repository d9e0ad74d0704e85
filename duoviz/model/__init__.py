"""The Duo model: layers with two FFNs and a skip, on the models of transformers.

What of that ecosystem is held by tests (`tests/test_ecosystem.py`, `test_families.py`, `test_model.py`, `test_training.py`):

| habit | how it goes |
|---|---|
| threads | any calls beside one another give what each gives alone |
| arguments by position, `output_attentions`, tuples | as in the family's dense class |
| K/V cache, left padding, long prompts in parts, `generate` | the same routes and logits with and without |
| a block that all tokens of a pass skip | writes keys and values, and nothing else in it runs, hooks included |
| `return_dict_in_generate` | the result has `duo_routes`, what every token that was read took; not with beams |
| training on, resizing, replacing weights | score, search and fingerprint follow; only writes through `.data` go unseen |
| training mode, autocast, inference mode, default dtype | change no score and no search, and are put back |
| adapters, hooks, replaced or parametrised modules | run in forward passes and searches alike |
| LoRA (peft) on every linear map | trained, searched, saved, loaded again, merged |
| prefix tuning | given routes count from the text's first token; a policy in `forward` counts the virtual ones too |
| assisted decoding, early exit, prompt lookup | the same greedy text; an assistant has routes of its own |
| classifier-free guidance | routes both texts, aligned at their ends |
| continuous batching (`generate_batch`, paged caches) | refused when routes are given |
| gradient checkpointing | yes; reentrant with a router in training is refused |
| `save_pretrained`, the dense class on a Duo folder, deepcopy | yes |
| pickle, `torch.save` of a whole model, spawned processes | yes, also where no model of its family was built before |
| Auto classes | know Duo folders once `duoviz` is imported; else `trust_remote_code=True` imports it, or names it |
| FSDP2, bfloat16, float16, device maps, `Trainer` with resume | yes |
| `torch.compile` | Llama with given and random routes |
| a route in another form, a misspelt `duo_` argument, small on a dense model | taken, or refused in one line |
"""

from .adapter import is_adapter, place_of_base, save_adapter
from .checkpoint import Checkpoint
from .config import SKIP_SCOPES, DuoConfig
from .duo import CLASSES, DuoCausalLM, DuoOutput, config_for
from .flops import attention_widths, forward_flops, parameter_groups
from .head import Head
from .language_model import LanguageModel, undisturbed
from .loading import add_small, configuration, load, load_model, read_tokenizer
from .policy import RandomPolicy
from .routing import DuoFFN, DuoLayer, Routing

__all__ = [
    "CLASSES",
    "SKIP_SCOPES",
    "Checkpoint",
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
    "attention_widths",
    "config_for",
    "configuration",
    "forward_flops",
    "is_adapter",
    "load",
    "load_model",
    "parameter_groups",
    "place_of_base",
    "read_tokenizer",
    "save_adapter",
    "undisturbed",
]
