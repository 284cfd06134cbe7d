"""Notebook to HTML page that opens without a network.

nbconvert's own page loads MathJax, require.js, jQuery, Mermaid and the widget manager from a
CDN, and shows neither plotly figures nor widgets without them. Here formulas become MathML (all
current browsers draw it), figures use one plotly.js beside the pages, and a widget is replaced
by what it shows at its default values.
"""

import base64
import html
import json
import re
from copy import deepcopy
from pathlib import Path

import nbformat
import numpy as np
from bs4 import BeautifulSoup
from jinja2 import pass_context
from latex2mathml.converter import convert as tex_to_mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat.v4 import new_output
from plotly.offline import get_plotlyjs

PLOTLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
PLOTLY_FILE = "assets/plotly.min.js"

TEMPLATE = """
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block jupyter_widgets -%}{%- endblock -%}
{%- block extra_css -%}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
.jp-Notebook { max-width: 62rem; margin: 0 auto; }
.jp-Notebook .jp-InputPrompt, .jp-Notebook .jp-OutputPrompt { display: none; }
math[display="block"] { margin: 0.9em 0; font-size: 1.1em; }
.widget-value { color: #555; font-size: 0.9em; margin: 0.2em 0; }
</style>
{%- endblock -%}
"""


def mathml(tex: str, display: str = "inline") -> str:
    """TeX as MathML; TeX that cannot be read stays visible as text."""
    plain = re.sub(r"\\operatorname\*", r"\\operatorname", tex.strip())
    plain = re.sub(r"(\\(?:begin|end)\{(?:align|equation|gather))\}", r"\1*}", plain)  # no numbers
    try:
        return tex_to_mathml(plain, display=display)
    except Exception:  # the converter raises many kinds, all meaning the same here
        mark = "$$" if display == "block" else "$"
        return f"<code>{html.escape(mark + tex + mark)}</code>"


class MathMLRenderer(IPythonRenderer):
    """nbconvert's Markdown renderer, with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        return mathml(body)

    def block_math(self, body: str) -> str:
        return mathml(body, "block")

    def block_html(self, html: str) -> str:
        # nbconvert parses each block alone, which closes an opened <details> before its contents.
        return super().block_html(html) if "<img" in html else html

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


class OfflineExporter(HTMLExporter):
    """`HTMLExporter` whose pages name no script or stylesheet from elsewhere."""

    def __init__(self, **kwargs):
        super().__init__(raw_template=TEMPLATE, embed_images=True, **kwargs)

    @pass_context
    def markdown2html(self, context, source):
        cell, resources = context.get("cell", {}), context.get("resources", {})
        renderer = MathMLRenderer(
            escape=False, embed_images=True, anchor_link_text=self.anchor_link_text,
            attachments=cell.get("attachments", {}),
            path=resources.get("metadata", {}).get("path", ""),
        )  # fmt: skip
        return MarkdownWithMath(renderer=renderer).render(source)


def without_widgets(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Copy in which each widget is replaced by what it shows; it needs no kernel to be read."""
    notebook = deepcopy(notebook)
    state = notebook.metadata.pop("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [shown for output in cell.outputs for shown in _shown(output, state)]
    return notebook


def page(notebook: nbformat.NotebookNode, title: str, folder: str | Path) -> str:
    """HTML page of an executed notebook; pictures in its Markdown are looked up in `folder`."""
    notebook = without_widgets(notebook)
    figures = _render_data(notebook)
    resources = {"metadata": {"name": title, "path": str(folder)}}
    text, _ = OfflineExporter().from_notebook_node(notebook, resources=resources)
    if figures:
        text = text.replace("</head>", f'<script src="{PLOTLY_FILE}"></script>\n</head>', 1)
    # The neighbours are pages too.
    text = re.sub(r'(href="\d\d_[^":/]*)\.ipynb(["#])', r"\1.html\2", text)
    check_offline(text, title)
    return text


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


def write_plotly(folder: Path) -> None:
    """The one plotly.js that all pages share."""
    target = folder / PLOTLY_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(get_plotlyjs(), encoding="utf-8")


def _render_data(notebook) -> int:
    """Give figures and TeX outputs an HTML form, in place; count the figures."""
    figures = 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if PLOTLY in data:
                figures += 1
                data["text/html"] = _figure(data[PLOTLY], f"figure-{figures}")
            elif "text/latex" in data and "text/html" not in data:
                tex = re.sub(r"^\s*(\$\$?|\\\[)|(\$\$?|\\\])\s*$", "", data["text/latex"])
                data["text/html"] = mathml(tex.replace(r"\displaystyle", ""), "block")
    return figures


def _figure(bundle: dict, name: str) -> str:
    figure = {key: bundle[key] for key in ("data", "layout", "frames") if key in bundle}
    figure["config"] = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    height = bundle.get("layout", {}).get("height", 450)
    code = json.dumps(figure).replace("<", r"\u003c")  # no name in it ends or opens a script
    return (
        f'<div id="{name}" style="min-height:{height}px"></div>'
        f'<script>Plotly.newPlot("{name}", {code})</script>'
    )


def _shown(output, state: dict) -> list:
    """The outputs to show in place of one output: itself, unless it is a widget."""
    view = output.get("data", {}).get(WIDGET)
    return _widget(view["model_id"], state) if view else [output]


def _widget(model_id: str, state: dict) -> list:
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
    shown = new_output("display_data", {"text/html": f'<p class="widget-value">{text}</p>'})
    return [shown] if text else []


def _restore_array(values: dict, buffer: dict) -> None:
    """Put an array that a widget sent aside, as bytes, back into its place."""
    *path, key, _ = buffer["path"]  # …, "y", "value"
    for step in path:
        values = values[step]
    array = np.frombuffer(base64.b64decode(buffer["data"]), values[key]["dtype"])
    values[key] = array.reshape(values[key]["shape"]).tolist()
