"""duoviz: adaptive computation in language models, after Duo-LLM (arXiv 2410.10846)."""

from . import auto

auto.register()
