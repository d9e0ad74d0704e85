"""Duo models by the Auto classes of transformers as soon as `duoviz` is imported, without importing torch for it.

The configurations that transformers knows by name are asked for ours when somebody opens a Duo folder; only then
`duoviz.model`, which registers all of them, is imported.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

CONFIGURATIONS = "transformers.models.auto.configuration_auto"


def register() -> None:
    """Have transformers find our configurations, now or when it is imported."""
    if CONFIGURATIONS in sys.modules:
        _extend(sys.modules[CONFIGURATIONS])
    else:
        sys.meta_path.insert(0, _WhenImported())


class _WhenImported(MetaPathFinder):
    """Waits for the module of the configurations."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != CONFIGURATIONS:
            return None
        sys.meta_path.remove(self)
        if (spec := importlib.util.find_spec(name)) is not None and spec.loader is not None:
            spec.loader.exec_module = partial(_load, spec.loader.exec_module)  # type: ignore[method-assign]
        return spec


def _load(execute: Callable[[ModuleType], None], module: ModuleType) -> None:
    execute(module)
    _extend(module)


def _extend(module: ModuleType) -> None:
    module.CONFIG_MAPPING._extra_content = _OnDemand(module.CONFIG_MAPPING._extra_content)


class _OnDemand(dict[str, Any]):
    """Configurations by model type, with ours as soon as one is asked for."""

    def __contains__(self, name: object) -> bool:
        if isinstance(name, str) and name.startswith("duo_") and not super().__contains__(name):
            importlib.import_module("duoviz.model")
        return super().__contains__(name)
