"""A Duo model: import duoviz and it is opened as any other model, with AutoModelForCausalLM for example."""

from duoviz.model.duo import DuoLlamaConfig, DuoLlamaForCausalLM  # noqa: F401
