"""Executed notebooks to pages that open without a network, by Sphinx.

MyST-NB reads the notebooks, sphinx-book-theme brings contents, search, a dark theme that follows
the system and narrow windows. MathJax with its fonts and plotly.js lie beside the pages; a widget
is replaced by what it shows at its default values, since a page has no kernel.
"""

import base64
import html
import json
import re
import shutil
import tempfile
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

import nbformat
import numpy as np
from bs4 import BeautifulSoup
from nbformat.v4 import new_output
from plotly.offline import get_plotlyjs
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
PLOTLY_FILE = "_static/plotly.min.js"
LEFT = shutil.ignore_patterns(".buildinfo", "_sources", "objects.inv")
LIVE = (
    '<p class="widget-note">Controls that move in the notebook (<code>make lab</code>), as they '
    "stand here: {}.</p>"
)
STYLE = """
.figure-title { font-weight: 600; margin: 0.8rem 0 0.2rem; }
.widget-note { font-size: 0.9em; margin: 0.2rem 0; opacity: 0.85; }
.figure-box { overflow: hidden; }
div.cell_output pre, div.highlight pre { overflow-x: auto; white-space: pre; }
html[data-theme="dark"] .bd-content div.cell_output .text_html {
  background: transparent !important; color: inherit !important; padding: 0;
}
"""
CONFIG = {
    "project": "xtclib",
    "html_title": "xtclib: BERT compression",
    "extensions": ["myst_nb"],
    "nb_execution_mode": "off",
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_all_links_external": True,
    "html_theme": "sphinx_book_theme",
    "html_theme_options": {
        "use_download_button": False,
        "use_fullscreen_button": False,
        "navbar_persistent": [],
        "footer_content_items": [],  # a theme's "Author name not set"
    },
    "html_static_path": ["_static"],
    "html_css_files": ["pages.css"],
    "mathjax_path": "mathjax/tex-chtml.js",
    "html_context": {"default_mode": "auto"},
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_use_index": False,
    "templates_path": [],
    "exclude_patterns": [],
    # the kernel's language has no lexer of its own here, and papermill's cells have no heading
    "suppress_warnings": ["mystnb.unknown_mime_type", "myst.header", "misc.highlighting_failure"],
}


def build(
    notebooks: dict[str, nbformat.NotebookNode], index: str, out: Path, jobs: int = 1
) -> None:
    """Write ``NAME.html`` for each executed notebook and ``index.html`` from Markdown to ``out``.

    Raises ``ValueError`` where a page would load anything from a network, or Sphinx failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "source")
        static = source / "_static"
        shutil.copytree(_mathjax() / "output" / "chtml", static / "mathjax" / "output" / "chtml")
        shutil.copy(_mathjax() / "tex-chtml.js", static / "mathjax")
        (static / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
        (static / "pages.css").write_text(STYLE, encoding="utf-8")
        for name, notebook in notebooks.items():
            nbformat.write(_for_page(notebook), source / f"{name}.ipynb")
        names = "\n".join(notebooks)
        contents = f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n" if notebooks else ""
        (source / "index.md").write_text(index + contents, encoding="utf-8")
        with patch_docutils(), docutils_namespace():
            # MyST-NB writes beside the folder it is given: one here, the pages are copied out.
            built = Path(folder, "built", "html")
            app = Sphinx(
                source, None, built, Path(folder, "trees"), "html", CONFIG, status=None,
                freshenv=True, parallel=jobs,
            )  # fmt: skip
            app.build()
        shutil.copytree(built, out, dirs_exist_ok=True, ignore=LEFT)
    for name in [*notebooks, "index"]:
        check_offline((out / f"{name}.html").read_text(encoding="utf-8"), name)


def _mathjax() -> Path:
    """The folder of MathJax's scripts and fonts, from `django-static-mathjax` (no Django)."""
    spec = find_spec("mathjax")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pages need MathJax: pip install django-static-mathjax")
    return Path(spec.origin).parent / "static" / "mathjax" / "es5"


def _for_page(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy as Sphinx takes it: no widgets, figures as HTML, links to pages, not notebooks."""
    notebook = without_widgets(notebook)
    figures = 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](\1.html", cell.source)
            cell.source = re.sub(r"\]\(#([^)]+)\)", lambda m: f"](#{m[1].lower()})", cell.source)
        else:
            cell.source = re.sub(r"^# NBVAL_CHECK_OUTPUT\n", "", cell.source)
            if "claim" in cell.metadata.get("tags", []):
                cell.metadata["tags"].append("hide-input")
        figures = _figures(cell, figures)
    return notebook


def without_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Copy in which each widget is replaced by what it shows; it needs no kernel to be read."""
    notebook = deepcopy(notebook)
    state = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs for shown in _shown(output, state)]
    return notebook


def check_offline(text: str, name: str = "page") -> None:
    """Raise `ValueError` if the page would load anything from a network."""
    soup = BeautifulSoup(text, "html.parser")
    remote = re.compile(r"^\s*(https?:)?//", re.I)
    found = [
        f"<{tag.name}> {value}"
        for tag in soup.find_all(True)
        if tag.name != "a"
        for value in (tag.get("src"), tag.get("href"), tag.get("data"))
        if isinstance(value, str) and remote.match(value)
    ]
    for tag in soup.find_all("style"):
        found += re.findall(r"""(?:@import\s+|url\()\s*["']?https?://[^"')\s]+""", tag.text)
    for tag in soup.find_all("script"):
        found += re.findall(r"""\bimport\b[^;\n"']*["']https?://[^"']+""", tag.text)
    if found:
        raise ValueError(
            f"{name} must open offline but would load: {'; '.join(found[:5])}. "
            "Keep pictures in the repository and embed scripts."
        )


def _figures(cell, number: int) -> int:
    """Give the cell's figures an HTML form, in place; how many there are now on the page."""
    for output in cell.get("outputs", []):
        if PLOTLY in output.get("data", {}):
            output.data = {"text/html": _figure(output.data[PLOTLY], number)}
            number += 1
    return number


def _figure(bundle: dict, number: int) -> str:
    """A figure as HTML; its title becomes text, which fills the width there is."""
    figure = {key: bundle[key] for key in ("data", "layout", "frames") if key in bundle}
    figure["config"] = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    layout = figure["layout"] = deepcopy(figure.get("layout", {}))
    lines = (layout.pop("title", None) or {}).get("text", "").split("<br>")
    less = min(24 + 20 * len(lines), layout.get("margin", {}).get("t", 0)) if any(lines) else 0
    height = layout["height"] = layout.get("height", 450) - less
    if less:
        layout["margin"]["t"] -= less
    words = html.escape(" ".join(lines), quote=False)
    title = f'<p class="figure-title">{words}</p>' if words else ""
    script = f'<script src="{PLOTLY_FILE}"></script>' if number == 0 else ""
    code = json.dumps(figure).replace("<", r"\u003c")  # no name in it ends or opens a script
    return (
        f'{script}{title}<div id="figure-{number}" class="figure-box" '
        f'style="min-height:{height}px"></div>'
        f'<script>Plotly.newPlot("figure-{number}", {code})</script>'
    )


def _shown(output, state: dict) -> list:
    """The outputs to show in place of one output: itself, unless it is a widget."""
    view = output.get("data", {}).get(WIDGET)
    if not view:
        return [output]
    controls, shown = [], []
    for part in _widget(view["model_id"], state):
        (shown if not isinstance(part, str) else controls).append(part)
    note = [new_output("display_data", {"text/html": LIVE.format(" · ".join(controls))})]
    return [*(note if controls else []), *shown]


def _widget(model_id: str, state: dict) -> list:
    """What a widget holds: outputs, and for each control a string that names it and its value."""
    model = state.get(model_id)
    if model is None:
        return []
    values = model["state"]
    if "outputs" in values:
        outputs = [nbformat.from_dict(output) for output in values["outputs"]]
        return [shown for output in outputs for shown in _shown(output, state)]
    if "children" in values:
        children = [child.removeprefix("IPY_MODEL_") for child in values["children"]]
        if any("Progress" in state[child]["model_name"] for child in children if child in state):
            return []
        return [shown for child in children for shown in _widget(child, state)]
    if "_widget_data" in values:  # plotly's FigureWidget
        for buffer in model.get("buffers", []):
            _restore_array(values, buffer)
        figure = {"data": values["_widget_data"], "layout": values.get("_widget_layout", {})}
        return [new_output("display_data", {PLOTLY: figure})]
    label = html.escape(str(values.get("description") or ""))
    if "_options_labels" in values and isinstance(values.get("index"), int):
        value = values["_options_labels"][values["index"]]
    else:
        value = values.get("value", "")
    if model["model_name"] in ("HTMLModel", "HTMLMathModel"):
        return [new_output("display_data", {"text/html": str(value)})]
    text = " ".join(part for part in (label, html.escape(str(value))) if part)
    return [text] if text else []


def _restore_array(values: dict, buffer: dict) -> None:
    """Put an array that a widget sent aside, as bytes, back into its place."""
    *path, key, _ = buffer["path"]  # …, "y", "value"
    for step in path:
        values = values[step]
    array = np.frombuffer(base64.b64decode(buffer["data"]), values[key]["dtype"])
    values[key] = array.reshape(values[key]["shape"]).tolist()
