"""What a Duo configuration adds to that of its family."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from transformers import PretrainedConfig

from .routing import ATTENTION

SKIP_SCOPES = ("ffn", "block")

OWN_FIELDS = ("small_intermediate_size", "skip_scope", "model_type", "architectures", "auto_map")
"""Fields in which a Duo configuration differs from that of its dense model. A Duo folder that the dense class has saved again
still holds them, without a meaning."""
MODULE = "duoviz_model"
"""The module in the folder of a Duo model by which transformers, where nobody has imported this package, finds it with
`trust_remote_code=True`, or says that it is missing."""


class DuoConfig(PretrainedConfig):
    """What a Duo configuration adds to its family's.

    Attributes:
        causal_lm: name of the class of its models.
        small_intermediate_size: width of the small FFN.
        skip_scope: `"ffn"`: a skipped layer still attends; `"block"`: it is bypassed, but its keys and values are
            still projected from the untouched residual, so that later tokens can attend to it.
    """

    causal_lm: ClassVar[str]
    small_intermediate_size: int = 32
    skip_scope: str = "ffn"

    @property
    def _attn_implementation(self) -> str | None:
        """What attention modules ask for; a search has them call its own, in its own thread (see `branching.attention`)."""
        return ATTENTION.get() or super()._attn_implementation

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | dict | None) -> None:
        PretrainedConfig._attn_implementation.fset(self, value)  # type: ignore[attr-defined]

    def __post_init__(self, **kwargs: Any) -> None:
        ours = {"AutoConfig": f"{MODULE}.{type(self).__name__}", "AutoModelForCausalLM": f"{MODULE}.{self.causal_lm}"}
        super().__post_init__(**kwargs | {"auto_map": ours})
        if self.skip_scope not in SKIP_SCOPES:
            raise ValueError(f"skip_scope {self.skip_scope!r}: allowed are {SKIP_SCOPES}")
        if self.small_intermediate_size < 1:
            raise ValueError(f"small_intermediate_size {self.small_intermediate_size}: at least 1 is needed")

    def save_pretrained(self, save_directory: str | PathLike[Any], *args: Any, **kwargs: Any) -> None:
        """`save_pretrained` of transformers, and the module that leads it to this package."""
        said = "A Duo model: import duoviz and it is opened as any other model, with AutoModelForCausalLM for example."
        names = f"from duoviz.model.duo import {type(self).__name__}, {self.causal_lm}  # noqa: F401"
        Path(save_directory).mkdir(parents=True, exist_ok=True)
        (Path(save_directory) / f"{MODULE}.py").write_text(f'"""{said}"""\n\n{names}\n', encoding="utf-8")
        super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: transformers would copy the source of this package into every folder that is saved."""
