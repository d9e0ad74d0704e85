"""A Duo model: import duoviz and it is opened as any other model, with AutoModelForCausalLM for example."""

from duoviz.model.duo import DuoOPTConfig, DuoOPTForCausalLM  # noqa: F401
