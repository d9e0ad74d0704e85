"""Run the notebooks, two at a time, and write the report's pages."""

from __future__ import annotations

import ast
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import psutil

from .. import corpus, places, store
from ..model import DuoConfig, configuration, is_adapter, read_tokenizer
from ..oracle import AUTO_EXHAUSTIVE
from ..study import Study
from . import kept
from .index import index, story
from .page import Page, html, without_widgets

NOTEBOOKS = places.SHIPPED / "notebooks"
ADDED = {"injected-parameters", "papermill-error-cell-tag"}
"""Tags of the cells that papermill adds to a notebook."""
AT_ONCE = 2
"""Notebooks that run side by side: most of a notebook's minute is one thread that imports and draws."""
USED = "results.txt"
"""The file of a report that names the stored results it shows, one a line."""
MOST_BYTES = 2_000_000
"""Of an executed notebook: a larger one is slow to open, and holds data that belongs in a stored result."""


def notebooks(only: Sequence[str] = ()) -> list[Path]:
    """The suite's notebooks in order, or those whose number or name is asked for.

    Raises:
        ValueError: a number or name that no notebook has.
    """
    found = sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))
    for asked in only:
        if not any(asked in (path.stem, path.stem.partition("-")[0]) for path in found):
            raise ValueError(f"notebook {asked!r}: there are {', '.join(path.stem for path in found)}")
    return [path for path in found if not only or {path.stem, path.stem.partition("-")[0]} & set(only)]


def build(
    out: Path,
    *,
    only: Sequence[str] = (),
    parameters: dict[str, Any] | None = None,
    fresh: bool = False,
    say: Callable[[str], None] = print,
) -> list[Page]:
    """Run notebooks and write the report; one that fails, or whose kernel dies, is reported and the others still run. One that
    needs what the model does not have (`needs` in its metadata) is left out, and the index says why. Of an adapter whose base is
    not here the pages are those that are shipped (`report.kept`).

    Args:
        out: folder of the report.
        only: numbers or names of notebooks; all if empty.
        parameters: values for the `parameters` cells; each notebook takes those it has.
        fresh: compute every stored result again.
        say: is told about progress.

    Raises:
        ValueError: a notebook or a parameter that does not exist, or a value of another type than the notebook's own; a
            model that cannot be loaded.
        OSError: no such model.
    """
    chosen, parameters = notebooks(only), _absolute(parameters or {})
    defaults = {path: _parameters(path) for path in chosen}
    _check(parameters, defaults)
    there, why = kept.instead(parameters, chosen)
    if there:
        say(why)
        return _kept(there, out, why)
    parameters |= _deep(parameters, say)
    settings = {path: {**defaults[path], **parameters} for path in chosen}
    models = {given["model"]: _known(given["model"], parameters) for given in settings.values() if "model" in given}
    absent = {path: _absent(path, given, models) for path, given in settings.items()}
    running = [path for path in chosen if not absent[path]]
    out.mkdir(parents=True, exist_ok=True)
    _plotly_js(out)  # first: a page can be read as soon as it is there
    pages = {path: Page(path.stem, *_heading(path), 0.0, absent=why) for path, why in absent.items() if why}
    for page in pages.values():
        say(f"{page.name} does not apply: {page.absent}")
    asked = {path: {name: value for name, value in parameters.items() if name in defaults[path]} for path in running}
    say(f"running {len(running)} {'notebook' if len(running) == 1 else f'notebooks, {AT_ONCE} at a time'}")
    others = set(psutil.Process().children(recursive=True))
    with _environment(fresh=fresh, used=out / USED), ThreadPoolExecutor(AT_ONCE) as pool:
        waiting = {
            pool.submit(_page, path, out, asked[path], _links(running, at)): path for at, path in enumerate(running)
        }
        try:
            for number, ended in enumerate(as_completed(waiting), 1):
                pages[waiting[ended]] = page = ended.result()
                say(f"[{number}/{len(running)}] {page.name}: {page.error or f'{page.seconds:.0f} s'}")
                _write_index(out, [pages[path] for path in chosen if path in pages])
        except BaseException:  # Ctrl-C too: nobody else would end the kernels
            pool.shutdown(wait=False, cancel_futures=True)
            for kernel in set(psutil.Process().children(recursive=True)) - others:
                kernel.kill()
            raise
    _write_index(out, [pages[path] for path in chosen])
    return [pages[path] for path in chosen]


def _kept(there: Mapping[Path, Path], out: Path, why: str) -> list[Page]:
    """Write the pages of executed notebooks, given by the notebook that they are of; the index says why they were not run."""
    out.mkdir(parents=True, exist_ok=True)
    _plotly_js(out)
    pages = []
    for at, (path, executed) in enumerate(there.items()):
        notebook = nbformat.read(shutil.copyfile(executed, out / path.name), as_version=4)
        _write_page(out, notebook, path, _links([*there], at))
        seconds, parameters = kept.about(notebook)
        shown = {**_parameters(path), **parameters}
        pages.append(Page(path.stem, *_heading(path), seconds, parameters=shown, story=story(notebook)))
    _write_index(out, pages, why)
    return pages


def _deep(parameters: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Parameters where nothing else is asked for of a model whose routes are too many to look at each: tied layers, and the
    budgets of the shipped model's pages as parts of all layers."""
    if "model" not in parameters or {"groups", "context"} & set(parameters):
        return {}
    layers = configuration(Study(model=parameters["model"]).folder).num_hidden_layers
    if 2**layers <= AUTO_EXHAUSTIVE:
        return {}
    third, half = layers // 3, layers // 2
    deep = {"budget": third, "budgets": [third, half, 2 * layers // 3], "skip": half}
    added = {"groups": 10, "context": "reference:big"} | {k: v for k, v in deep.items() if k not in parameters}
    said = ", ".join(f"{name}={value}" for name, value in added.items())
    say(f"{layers} layers: {said}, unless -p says otherwise")
    return added


def _write_index(out: Path, pages: list[Page], note: str = "") -> None:
    (out / "index.html").write_text(index(pages, note), encoding="utf-8")


def _absolute(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters, with the folders and files of a model, results and sources as they are found from here: kernels run
    elsewhere.

    Raises:
        ValueError: an unknown source. FileNotFoundError: a file that is missing.
    """

    def source(name: str) -> str:
        kind, _, rest = corpus.check(name).partition(":")
        place, *parts = [rest] if kind == "file" else rest.split(":")
        return ":".join([kind, str(Path(place).resolve()), *parts]) if Path(place).exists() and place else name

    given = dict(parameters)
    if "model" in given and Path(str(given["model"])).is_dir():
        given["model"] = str(Path(given["model"]).resolve())
    if given.get("results"):
        given["results"] = str(Path(given["results"]).resolve())
    if isinstance(given.get("source"), str):
        given["source"] = source(given["source"])
    if isinstance(given.get("sources"), list):
        given["sources"] = [source(str(name)) for name in given["sources"]]
    return given


def _known(model: str, parameters: Mapping[str, Any]) -> tuple[int, dict[str, str]]:
    """A model's context, and for each thing that a notebook can need, why the model does not have it with these parameters:
    nothing if it has.

    Raises:
        ValueError: a model that cannot be loaded or has no tokenizer. OSError: no such model.
    """
    folder = Study(model=model).folder
    config = configuration(folder)
    corpus.present(read_tokenizer(folder))
    layers, duo = parameters.get("groups") or config.num_hidden_layers, isinstance(config, DuoConfig)
    alone = duo and not is_adapter(folder)
    has = {
        "dense": (not alone, f"{model} is a Duo model without a dense one: the other notebooks are about it"),
        "training log": (Path(folder, "training-log.parquet").is_file(), f"{model} came without a training log"),
        "small": (duo, f"{model} is a dense model, without small FFNs"),
        "routers": (any(Path(folder, "routers").glob("budget-*")), f"{model} has no routers for budgets"),
        "every route": (2**layers <= AUTO_EXHAUSTIVE, f"2^{layers} routes are too many to look at each"),
    }
    return config.max_position_embeddings, {need: "" if there else why for need, (there, why) in has.items()}


def _absent(path: Path, given: Mapping[str, Any], models: Mapping[str, tuple[int, dict[str, str]]]) -> str:
    """Why a notebook does not apply to its model: the first of its needs that the model lacks; nothing if it applies.

    Raises:
        ValueError: a need that is not known, texts that are longer than the model's context.
    """
    if "model" not in given:
        return ""
    (context, lacks), length = models[given["model"]], given.get("length", 0)
    if length > context:
        raise ValueError(f"length {length}: the context of {given['model']} is {context}, give -p length=...")
    needs = nbformat.read(path, as_version=4).metadata.get("duoviz", {}).get("needs", [])
    if unknown := set(needs) - set(lacks):
        raise ValueError(f"{path.name} needs {sorted(unknown)}: known are {', '.join(lacks)}")
    return next((lacks[need] for need in needs if lacks[need]), "")


def _parameters(path: Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters."""
    from papermill import inspect_notebook

    return {name: ast.literal_eval(entry["default"]) for name, entry in inspect_notebook(str(path)).items()}


def _check(asked: Mapping[str, Any], defaults: Mapping[Path, Mapping[str, Any]]) -> None:
    """Check that the notebooks have these parameters, with values of these types.

    Raises:
        ValueError: if not.
    """
    for name, value in asked.items():
        found = {path.stem: known[name] for path, known in defaults.items() if name in known}
        if not found:
            offered = sorted({name for known in defaults.values() for name in known})
            raise ValueError(f"parameter {name!r}: the notebooks have {', '.join(offered)}")
        for notebook, default in found.items():
            if _kind(value) != _kind(default):
                raise ValueError(
                    f"parameter {name}={value!r} is of type {_kind(value)}: notebook {notebook} takes {_kind(default)},"
                    f" for example {name}={json.dumps(default)}"
                )


def _kind(value: Any) -> str:
    """The type of a parameter: `int`, `str`, `list of int`, ..."""
    if not isinstance(value, list):
        return type(value).__name__
    return f"list of {' and '.join(sorted({_kind(item) for item in value})) or 'nothing'}"


@contextmanager
def _environment(*, fresh: bool, used: Path) -> Iterator[None]:
    """What kernels that start inside read: the folder they write to, where they note which results they ask for, their share of
    the cores, and, if asked for, the time before which results are too old (`DUOVIZ_FRESH`). Afterwards the variables are what
    they were."""
    before = dict(os.environ)
    used.write_text("")
    os.environ[store.USED] = str(used.resolve())
    os.environ[places.HOME] = str(places.runs().resolve().parent)
    # two kernels with two threads each on two cores wait for one another: one pass over 8 texts takes 0.72 s, not 0.23
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // AT_ONCE)))
    if fresh:
        os.environ["DUOVIZ_FRESH"] = str(time.time())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _page(path: Path, out: Path, parameters: dict[str, Any], links: Mapping[str, str]) -> Page:
    """Run one notebook and write it, executed and as a page."""
    executed, began = out / path.name, time.monotonic()
    failure = _run(path, executed, parameters)
    notebook = without_widgets(nbformat.read(executed, as_version=4))
    errors = [f"cell {_last_cell(notebook)} failed: {failure}"] if failure else []
    nbformat.write(notebook, executed)
    if (size := executed.stat().st_size) > MOST_BYTES:
        errors.append(
            f"{executed.name}: {size / 1e6:.1f} MB once executed, more than the {MOST_BYTES / 1e6:g} MB it may take;"
            " show less of the data"
        )
    _write_page(out, notebook, path, links)
    title, question = _heading(path)
    shown = {**_parameters(path), **parameters}
    seconds = time.monotonic() - began
    return Page(path.stem, title, question, seconds, "; ".join(errors), shown, story(notebook))


def _write_page(out: Path, notebook: nbformat.NotebookNode, path: Path, links: Mapping[str, str]) -> None:
    (out / f"{path.stem}.html").write_text(html(notebook, title=path.stem, links=links), encoding="utf-8")


def _run(path: Path, executed: Path, parameters: dict[str, Any]) -> str:
    """Run a notebook into another file; why it failed, if it did."""
    from jupyter_core.utils import ensure_event_loop
    from nbclient.exceptions import DeadKernelError
    from papermill import PapermillExecutionError, execute_notebook

    loop = ensure_event_loop()  # of this thread: nobody else would close it
    run = partial(
        execute_notebook,
        str(path),
        str(executed),
        parameters=parameters,
        kernel_name="python3",
        progress_bar=False,
        store_widget_state=False,
        extra_arguments=["--log-level=CRITICAL"],  # what a kernel says of its transport is not the reader's
    )
    try:
        try:
            run()
        except RuntimeError as failure:  # a port that was free when it was chosen was not when the kernel took it
            if not str(failure).startswith("Kernel died before replying"):
                raise
            run()
    except PapermillExecutionError as failure:
        return f"{failure.ename}: {failure.evalue}"
    except DeadKernelError as failure:
        return f"{type(failure).__name__}: {failure} (out of memory?)"
    finally:
        loop.close()
    return ""


def _links(chosen: Sequence[Path], at: int) -> dict[str, str]:
    """Addresses and texts of the links from a notebook's page to the index and to the pages before and after it."""
    links = {"index.html": "all notebooks"}
    if at > 0:
        links[f"{chosen[at - 1].stem}.html"] = f"← {_heading(chosen[at - 1])[0]}"
    if at + 1 < len(chosen):
        links[f"{chosen[at + 1].stem}.html"] = f"{_heading(chosen[at + 1])[0]} →"
    return links


def _last_cell(executed: nbformat.NotebookNode) -> int:
    """Which cell of its source an executed notebook reached, counted from 1."""
    own = [cell for cell in executed.cells if not ADDED & set(cell.metadata.get("tags", []))]
    return max(number for number, cell in enumerate(own, 1) if cell.metadata.papermill.start_time)


def _heading(path: Path) -> tuple[str, str]:
    """Title and question of a notebook, read from its source: papermill puts its own cell above those of one that failed."""
    heading, _, below = nbformat.read(path, as_version=4).cells[0].source.strip().partition("\n")
    return heading.lstrip("# "), " ".join(below.strip().partition("\n\n")[0].split())


def _plotly_js(out: Path) -> None:
    import plotly

    shutil.copyfile(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", out / "plotly.min.js")
