"""What a Duo configuration adds to that of its family."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

from .routing import ATTENTION

SKIP_SCOPES = ("ffn", "block")


class DuoConfig(PretrainedConfig):
    """What a Duo configuration adds to its family's.

    Attributes:
        small_intermediate_size: width of the small FFN.
        skip_scope: `"ffn"`: a skipped layer still attends; `"block"`: it is bypassed, but its keys and values are
            still projected from the untouched residual, so that later tokens can attend to it.
    """

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
        super().__post_init__(**kwargs)
        if self.skip_scope not in SKIP_SCOPES:
            raise ValueError(f"skip_scope {self.skip_scope!r}: allowed are {SKIP_SCOPES}")
        if self.small_intermediate_size < 1:
            raise ValueError(f"small_intermediate_size {self.small_intermediate_size}: at least 1 is needed")
