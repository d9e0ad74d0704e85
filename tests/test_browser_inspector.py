"""Notebook 6 in JupyterLab, as `make lab` starts it, driven by a real browser."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from duoviz.study import Study

ROOT = Path(__file__).resolve().parents[1]
NAME = "6-inspect-a-token.ipynb"
SELECTED = "document.querySelector('.duoviz-text span.selected')?.dataset.token"
HOSTILE = "<script>document.title = 'run'</script> & <b>bold</b>"


def free_port():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """JupyterLab on a copy of the notebook, with the flags of `make lab`: its address and folder."""
    folder, port = tmp_path_factory.mktemp("lab"), free_port()
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / NAME, folder / "notebooks" / NAME)
    flags = f"--no-browser --allow-root --port={port} --IdentityProvider.token= --ServerApp.disable_check_xsrf=True"
    settings = folder / "settings" / "overrides.json"
    settings.parent.mkdir()
    settings.write_text('{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}')
    flags += f" --LabApp.app_settings_dir={settings.parent}"
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith("MAKE")
    }  # not as a part of `make test`
    told = ["make", "-n", "lab", f"LAB={flags}"]
    said = subprocess.run(told, cwd=ROOT, capture_output=True, text=True, check=True, env=alone)
    command = shlex.split(said.stdout.replace("\\\n", " ").partition("bin/jupyter lab")[2])
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [Path(sys.executable).parent / "jupyter", "lab", *command], cwd=folder, stdout=log, stderr=log
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/api")
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        yield address, folder / "notebooks"
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:  # it waits for its kernel, however long that takes on a busy machine
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def faults():
    """What went wrong in the page."""
    return []


@pytest.fixture(scope="module")
def page(lab, browser, faults):
    """The notebook, run."""
    opened = browser.new_context(viewport={"width": 1200, "height": 1000}).new_page()
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    opened.goto(f"{lab[0]}/lab/tree/{NAME}?reset")
    opened.wait_for_selector(".jp-Notebook .jp-Cell")
    opened.wait_for_selector(".duoviz-static", state="attached")  # before it is run the twin is there
    run_all(opened)
    yield opened
    opened.context.close()


def run_all(page):
    page.click(".lm-MenuBar-itemLabel:text-is('Run')")
    page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
    running = "[...document.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'))"
    page.wait_for_function(running)
    page.wait_for_function(f"!{running}", timeout=120_000)
    page.wait_for_selector(".duoviz-text span.selected", state="attached", timeout=60_000)
    page.wait_for_function("document.querySelectorAll('.duoviz-plot .main-svg').length > 0", timeout=60_000)
    chips(page).scroll_into_view_if_needed()


def chips(page):
    return page.locator(".duoviz-text").first


def click_token(page, token):
    chips(page).locator(f"span[data-token='{token}']").click()
    page.wait_for_function(f"{SELECTED} === '{token}'")
    told = f"[...document.querySelectorAll('.widget-html-content')].some(e => e.innerText.startsWith('token {token} '))"
    page.wait_for_function(told)  # the numbers follow the selection


def row(page, policy):
    """Cells of a policy's row: route, big, loss, whole text, rank, ..."""
    return page.locator(f".jupyter-widgets td:text-is('{policy}') ~ td").all_inner_texts()


@pytest.fixture(scope="module")
def study():
    return Study(documents=8, length=128)


def test_a_token_is_clicked_and_moved_from(page, study):
    click_token(page, 20)
    page.wait_for_function("document.querySelector('.duoviz-preview').textContent.startsWith('20 ')")
    loss = study.losses("shipped-prose", "B" * 12)[0, 19]
    assert float(row(page, "all big")[2]) == pytest.approx(loss, abs=6e-4)
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{SELECTED} === '21'")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(f"{SELECTED} === '20'")
    chips(page).locator("span[data-token='33']").hover()
    page.wait_for_function("document.querySelector('.duoviz-preview').textContent.startsWith('33 ')")
    page.keyboard.press("Escape")
    page.wait_for_function(f"{SELECTED} === undefined")


def test_a_layer_is_clicked_and_the_loss_is_that_of_lm_score(page, study):
    click_token(page, 30)
    button = page.locator("button[title='layer 4']")
    before = button.inner_text()
    button.click()
    page.wait_for_function(f"document.querySelector(\"button[title='layer 4']\").innerText !== '{before}'")
    route = row(page, "your route")[0].strip()
    assert route == "BBBB-BBBBBBB"
    routes = np.full((8, 127, 12), 2, np.int8)
    routes[0, 29, 4] = 0
    loss = study.lm.score(study.tokens("shipped-prose"), routes)[0, 29]
    page.wait_for_function(
        f"[...document.querySelectorAll('.jupyter-widgets td')].some(e => e.innerText === '{loss:.3f}')"
    )
    assert float(row(page, "your route")[3]) == pytest.approx(loss, abs=6e-4)
    page.locator("button:text-is('undo')").click()
    page.wait_for_function("document.querySelector(\"button[title='layer 4']\").innerText === 'B'")
    chips(page).focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    page.wait_for_function("document.querySelector(\"button[title='layer 3']\").innerText === '-'")
    page.locator("button:text-is('undo')").click()
    page.wait_for_function("document.querySelector(\"button[title='layer 3']\").innerText === 'B'")


def test_a_cell_of_the_routes_selects_its_token(page):
    plot = page.locator(".duoviz-plot:has(.hm)").first
    plot.scroll_into_view_if_needed()
    box = plot.locator(".cartesianlayer .xy .heatmaplayer image, .cartesianlayer .xy .hm image").first.bounding_box()
    before = page.evaluate(SELECTED)
    page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    page.wait_for_timeout(300)  # plotly answers the click where the pointer rests
    page.mouse.down()
    page.mouse.up()
    page.wait_for_function(f"{SELECTED} !== '{before}'")


def test_it_survives_being_scrolled_away_and_run_again(page):
    scroller = "document.querySelector('.jp-WindowedPanel-outer')"
    page.evaluate(f"{scroller}.scrollTop = 1e6")
    page.wait_for_timeout(1500)
    page.evaluate(f"{scroller}.scrollTop = 0")
    page.wait_for_timeout(500)
    chips(page).scroll_into_view_if_needed()
    click_token(page, 40)
    assert float(row(page, "your route")[2]) > 0
    run_all(page)
    click_token(page, 41)
    assert page.evaluate("document.querySelectorAll('.duoviz-plot .main-svg').length") > 0


def test_text_of_one_s_own_is_analysed_and_never_run(page):
    page.locator(".jupyter-widgets textarea").first.fill(HOSTILE)
    page.locator("button:text-is('analyse')").click()
    page.wait_for_function("document.querySelector('.duoviz-text').textContent.startsWith('<script>')", timeout=60_000)
    assert page.evaluate("document.querySelector('.duoviz-text').textContent").replace("·", " ") == HOSTILE
    click_token(page, 5)
    assert page.title() != "run"
    assert page.locator(".duoviz-text script, .duoviz-text b").count() == 0
    page.locator(".jupyter-widgets textarea").first.fill("x")
    page.locator("button:text-is('analyse')").click()
    page.wait_for_selector("text=1 tokens has nothing to predict")


def test_a_long_analysis_shows_its_progress_and_is_cancelled(page):
    shown = page.evaluate("document.querySelector('.duoviz-text').textContent")
    page.locator(".jupyter-widgets textarea").first.fill("one two three four five " * 8)
    page.wait_for_timeout(500)  # the text's message before the one that asks
    page.locator(".jupyter-widgets select:has(option[data-value='committed'])").first.select_option("committed")
    page.wait_for_function("parseFloat(document.querySelector('.widget-hprogress .progress-bar')?.style.width) > 0")
    page.locator("button:text-is('cancel')").click()
    page.wait_for_selector("text=cancelled; nothing has changed")
    assert page.evaluate("document.querySelector('.duoviz-text').textContent") == shown
    assert page.locator("button:text-is('cancel')").is_disabled()
    click_token(page, 6)


def test_it_fits_the_page(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    fits = "[...document.querySelectorAll('.duoviz-plot')].every(e => e.scrollWidth <= e.clientWidth + 1)"
    assert page.evaluate(fits)


def test_a_notebook_opened_again_shows_the_twin(page, lab, faults):
    path = lab[1] / NAME
    before = path.stat().st_mtime
    page.click(".lm-MenuBar-itemLabel:text-is('File')")
    page.click(".lm-Menu-itemLabel:text-is('Save Notebook')")
    for _ in range(50):
        page.wait_for_timeout(200)
        if path.stat().st_mtime != before:
            break
    assert path.stat().st_mtime != before
    saved = json.loads(path.read_text())
    kinds = {kind for cell in saved["cells"] for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "text/html" in kinds
    assert not [kind for kind in kinds if kind.startswith("application/vnd.jupyter.widget")]
    assert "widgets" not in saved["metadata"]
    for session in json.loads(urllib.request.urlopen(f"{lab[0]}/api/sessions").read()):
        asked = urllib.request.Request(f"{lab[0]}/api/sessions/{session['id']}", method="DELETE")
        urllib.request.urlopen(asked)
    assert faults == [], "of the page that was used"
    page.goto(f"{lab[0]}/lab/tree/{NAME}?reset")
    page.wait_for_selector(".duoviz-static")
    assert page.locator("text=model not found").count() == 0
