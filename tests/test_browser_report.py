"""The report as its reader sees it: in a real browser, without a network, in light and dark, wide and narrow."""

import nbformat
import pytest

from duoviz import report
from duoviz.report.page import figures

INKS = """() => {
  const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = colour => channels(colour).map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const ground = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("h1, h2, p, li, td, th, pre, a:not(.anchor-link)")]
    .map(e => [light(getComputedStyle(e).color), e.outerHTML.slice(0, 80)])
    .filter(([ink]) => (Math.max(ink, ground) + .05) / (Math.min(ink, ground) + .05) < 4.5).map(([, html]) => html);
}"""
"""Elements whose text has less than 4.5 times the contrast to the page that WCAG asks for."""
LINKS = "[...document.querySelectorAll('a[href]')].map(a => a.href)"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder and pages of a report on all notebooks, with other parameters than their own."""
    out = tmp_path_factory.mktemp("report")
    given = {
        "documents": 2,
        "length": 8,
        "context": "reference:big",
        "budgets": [1, 3],
        "budget": 3,
        "skip": 10,
        "luck_documents": 2,
    }
    return out, report.build(out, parameters=given, say=lambda line: None)


@pytest.fixture(params=[1200, 400])
def view(request, browser):
    """A browser's page, and the list of what went wrong in it, which a test finds empty at its end."""
    context = browser.new_context(offline=True, viewport={"width": request.param, "height": 900})
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("requestfailed", lambda request: faults.append(request.url))
    yield page
    context.close()
    assert faults == []


def assert_readable(page):
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(INKS) == []


def test_every_notebook_runs_with_other_parameters(built):
    out, pages = built
    assert [page.error for page in pages] == [""] * len(report.notebooks())
    for made in pages:
        assert made.parameters["documents"] == 2
        executed = nbformat.read(out / f"{made.name}.ipynb", as_version=4)
        assert executed == report.without_widgets(executed)
        assert "https://cdn" not in (out / f"{made.name}.html").read_text()
    assert sorted(made.story.place for made in pages if made.story) == [1, 2, 3, 4, 5]
    assert (out / "index.html").stat().st_size < 500_000


def test_the_index_tells_the_story_in_five_pictures(built, view):
    out, pages = built
    view.goto((out / "index.html").as_uri())
    view.wait_for_function("document.querySelectorAll('section .plotly-figure .main-svg').length >= 5")
    assert view.locator("article").count() == len(pages)
    assert view.locator("section").count() == 5
    assert all(view.locator("section p").nth(number).inner_text() for number in range(5))
    view.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
    assert_readable(view)
    for link in view.evaluate(LINKS):
        assert (out / link.rpartition("/")[2]).exists()


def test_pages_follow_one_another_and_draw_every_figure(built, view):
    out, pages = built
    view.goto((out / "index.html").as_uri())
    view.locator("h3 a").first.click()
    for number, made in enumerate(pages):
        view.wait_for_url((out / f"{made.name}.html").as_uri())
        view.wait_for_function(
            "[...document.querySelectorAll('.plotly-figure')].every(f => f.querySelector('.main-svg'))"
        )
        held = list(figures(nbformat.read(out / f"{made.name}.ipynb", as_version=4)))
        assert view.locator(".plotly-figure").count() == len(held)
        assert_readable(view)
        around = [pages[at].name for at in (number - 1, number + 1) if 0 <= at < len(pages)]
        links = view.locator("nav.report a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
        assert links == [f"{name}.html" for name in ("index", *around)]
        if number + 1 < len(pages):
            view.locator("nav.report a", has_text="→").click()
    view.locator("nav.report a", has_text="all notebooks").click()
    view.wait_for_url((out / "index.html").as_uri())


def test_code_is_hidden_until_it_is_asked_for_on_any_page(built, view):
    out, pages = built
    first, second = ((out / f"{made.name}.html").as_uri() for made in pages[1:3])
    view.goto(first)
    code = view.locator(".jp-CodeCell .jp-InputArea").nth(1)
    assert not code.is_visible()
    assert view.locator(".plotly-figure").first.is_visible()
    view.get_by_label("show code").check()
    assert code.is_visible()
    view.goto(second)
    assert code.is_visible()
    view.get_by_label("show code").uncheck()
    view.goto(first)
    assert not code.is_visible()
