"""Built pages in a headless Chromium: offline, quiet, narrow enough, and with every figure."""

import json

import nbformat
import pages
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from xtclib import records as results
from xtclib.cache import ROOT
from xtclib.figures import records

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="pages: pip install -e '.[browser]'")
FORMULA = r"$$L = \frac{1}{n} \sum_i x_i + " + " + ".join(f"a_{{{i}}}" for i in range(40)) + "$$"
# Boxes past the window's right edge that nothing around them scrolls. Figures cut their own.
WIDE = """() => [...document.querySelectorAll("main *")].filter(e => {
    if (e.getBoundingClientRect().right <= innerWidth + 1 || e.closest(".figure-box")) return false;
    if (e.closest("mjx-assistive-mml")) return false;
    for (let p = e; p !== document.body; p = p.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(p).overflowX)) return false;
    return true;
}).map(e => e.outerHTML.slice(0, 100))"""
COUNTS = """() => [".figure-box", ".figure-box .main-svg", ".math", "mjx-container"].map(
    s => document.querySelectorAll(s).length)"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Every notebook's text and code, with outputs of each kind that a run leaves."""
    out, found = tmp_path_factory.mktemp("pages"), {}
    measured = results.read("reviews", task="reviews", budget="A")
    figure = json.loads(records.size_accuracy(measured, records.published()).to_json())
    table = "<table><tr>" + "<td>cell</td>" * 60 + "</tr></table>"
    shown = [
        new_output("stream", text="0123456789 " * 30),
        new_output("display_data", {pages.PLOTLY: figure}),
        new_output("display_data", {"text/html": table}),
    ]
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        found[path.stem] = nbformat.read(path, as_version=4)
    cells = [new_markdown_cell(f"# Kinds\n\n{FORMULA}"), new_code_cell("x = 1  # " + "x" * 200)]
    cells[1].outputs = shown
    pages.build({**found, "99_kinds": new_notebook(cells=cells)}, "# Notebooks\n", out)
    return out


@pytest.mark.parametrize(("width", "scheme"), [(420, "light"), (420, "dark"), (1200, "dark")])
def test_pages_open_offline_and_fit(browser, built, width, scheme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else 0)
    page.on("pageerror", lambda error: said.append(str(error)))
    names = sorted(path.stem for path in built.glob("*.html"))
    assert {"index", "search", "99_kinds"} < {*names} and len(names) >= 9
    for name in names:
        page.goto((built / f"{name}.html").as_uri())
        page.wait_for_function("!window.MathJax?.startup || MathJax.startup.promise")
        page.evaluate("window.MathJax?.startup?.promise")
        boxes, drawn, formulas, set_ = page.evaluate(COUNTS)
        assert drawn >= boxes and set_ == formulas, name
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        assert page.evaluate(WIDE) == [], name
        assert page.evaluate("document.documentElement.dataset.theme") == scheme
        assert name in ("index", "search") or page.query_selector("a[href*='index.html']"), name
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert not said
    context.close()
