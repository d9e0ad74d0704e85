"""Tasks of lm-evaluation-harness, such as ARC-easy and HellaSwag, at each share of big.

Paper: arXiv 2410.10846, figure 8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..model import LanguageModel
from . import ways as ways_
from .ways import Way


def tasks(
    lm: LanguageModel,
    names: Sequence[str],
    *,
    ways: Mapping[str, Way],
    include_path: Path | str | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    batch_size: int = 8,
) -> Iterator[dict[str, Any]]:
    """What a model reaches on tasks when its tokens are routed in one way and another.

    Args:
        lm: the model.
        names: tasks, groups or tags of lm-evaluation-harness.
        ways: how each token is routed, by the name that the rows carry.
        include_path: a folder with tasks of your own.
        limit: documents of each task; None for all.
        fewshot: examples before each document; the task's own number if None.
        batch_size: texts in one forward pass; it changes nothing but speed and memory.

    Returns:
        A row for each way, task and metric, as soon as it is there: task, way, share_asked (of big), share_big, share_small,
        share_skip (realised over all tokens read and all layers), metric, value, stderr, documents.

    Raises:
        ValueError: before anything is computed: lm-evaluation-harness is not installed, no or unknown tasks, a limit or
            batch_size below 1, a negative fewshot, a way that the model cannot take.
        OSError: a task whose data cannot be reached.
    """
    check_installed()
    from lm_eval.tasks import TaskManager

    from .harness import Harness

    if not names or not ways:
        raise ValueError(f"tasks {list(names)}, ways {list(ways)}: give at least one of each")
    if (limit is not None and limit < 1) or (fewshot is not None and fewshot < 0):
        raise ValueError(
            f"limit {limit}, fewshot {fewshot}: give at least 1 document and no negative number of examples"
        )
    if include_path is not None and not Path(include_path).is_dir():
        raise ValueError(f"include_path {include_path}: there is no such folder")
    models = {name: Harness(lm, way, batch_size=batch_size) for name, way in ways.items()}
    for with_own in (False, True):  # its own thousands take seconds to list: only where they are needed
        manager = TaskManager(include_path=include_path, include_defaults=with_own)
        if not (unknown := sorted(set(names) - set(manager.all_tasks))):
            break
    else:
        raise ValueError(
            f"tasks {unknown} are unknown to lm-evaluation-harness: name others, or add your own (include_path)"
        )
    manager.load(list(names))  # data that is missing is missed now
    return (
        row
        for name, model in models.items()
        for task in names
        for row in _rows(name, model, task, manager=manager, limit=limit, fewshot=fewshot)
    )


def check_installed() -> None:
    """Check that lm-evaluation-harness can be imported.

    Raises:
        ValueError: if not.
    """
    try:
        import lm_eval.evaluator  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(
            f"tasks need lm-evaluation-harness, and there is no module {error.name!r}: pip install 'duoviz[eval]'"
        ) from error


def _rows(
    name: str, model: Any, task: str, *, manager: Any, limit: int | None, fewshot: int | None
) -> Iterator[dict[str, Any]]:
    """The rows of one way and task."""
    from lm_eval import simple_evaluate

    model.counts[:] = 0
    found = simple_evaluate(
        model=model, tasks=[task], task_manager=manager, limit=limit, num_fewshot=fewshot, log_samples=False
    )
    shares = {"share_asked": ways_.share_asked(model.way), **ways_.shares(model.counts)}
    for part, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, kind = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            yield {
                "task": part,
                "way": name,
                **shares,
                "metric": metric if kind == "none" else key,
                "value": value,
                "stderr": metrics.get(f"{metric}_stderr,{kind}"),
                "documents": found["n-samples"].get(part, {}).get("effective"),
            }
