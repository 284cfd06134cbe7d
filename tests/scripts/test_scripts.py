"""The scripts around notebooks and pages: what they refuse, and what they leave behind."""

import ast
import importlib
import re
import shlex

import nbformat
import pages
import pytest
import results
import run_notebooks
import strip_notebooks
import typer
from made import made
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from xtclib import cli
from xtclib.cache import ROOT
from xtclib.figures.records import bars

README = (ROOT / "README.md").read_text(encoding="utf-8")


def parameters_cell(source="PROFILE = None\nSEED = 0"):
    return new_code_cell(source, metadata={"tags": ["parameters"]})


def write(folder, name, *cells):
    notebook = new_notebook(cells=[new_markdown_cell(f"# Title of {name}"), *cells])
    notebook.metadata.kernelspec = strip_notebooks.METADATA["kernelspec"]
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def run(tmp_path, *arguments):
    folder = ["--folder", str(tmp_path / "notebooks")]
    return run_notebooks.main([*folder, "--out", str(tmp_path / "out"), *arguments])


@pytest.mark.parametrize(
    ("cell", "arguments", "message"),
    [
        (parameters_cell(), ["--parameter", "SED=1"], "no parameter 'SED'; did you mean SEED?"),
        (parameters_cell("SEED = 0"), [], "no parameter 'PROFILE'"),
        (new_code_cell("PROFILE = None"), [], "0 cells are tagged 'parameters'"),
        (parameters_cell("PROFILE = None\nN = 2 * 3"), [], "only assign literals, found: N = 2"),
        (parameters_cell(), ["02"], "no notebook '02'"),
    ],
)
def test_mistakes_stop_before_anything_runs(tmp_path, capsys, cell, arguments, message):
    write(tmp_path / "notebooks", "01_one", cell)
    assert run(tmp_path, *arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unknown_profile_ends_the_run(tmp_path, capsys):
    for number in (1, 2, 3):
        write(tmp_path / "notebooks", f"0{number}_one", parameters_cell())
    assert run(tmp_path, "--profile", "mni") == 1
    assert "unknown profile 'mni'" in capsys.readouterr().err
    assert not (tmp_path / "out" / "index.html").exists()


def test_an_empty_folder_is_an_error(tmp_path, capsys):
    (tmp_path / "notebooks").mkdir()
    assert run(tmp_path) == 1
    assert "nothing to run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_failing_notebook_leaves_no_page_and_the_next_one_runs(tmp_path, capsys):
    folder, out = tmp_path / "notebooks", tmp_path / "out"
    out.mkdir()
    (out / "01_bad.html").write_text("from an earlier run")
    write(folder, "01_bad", parameters_cell(), new_code_cell("'before'\nraise KeyError('gone')"))
    figure = {"application/vnd.plotly.v1+json": {"data": [{"y": [1, 2]}], "layout": {}}}
    show = f"from IPython.display import display\ndisplay({figure!r}, raw=True)\nSEED, PROFILE"
    write(folder, "02_good", parameters_cell(), new_code_cell(show))

    assert run(tmp_path, "--parameter", "SEED=3", "--profile", "smoke") == 1
    error = capsys.readouterr().err
    assert "1 of 2 notebooks failed: 01_bad" in error and "KeyError: 'gone'" in error
    assert not list(out.glob("01_bad.[!f]*")) and (out / "01_bad.failed.ipynb").is_file()
    page = (out / "02_good.html").read_text()
    assert page.count("Plotly.newPlot") == 1 and page.count(pages.PLOTLY_FILE) == 1
    assert (out / pages.PLOTLY_FILE).is_file() and (out / "_static/mathjax/tex-chtml.js").is_file()
    (shown,) = nbformat.read(out / "02_good.ipynb", 4).cells[-1].outputs[-1:]
    assert "(3, 'smoke')" in shown.data["text/plain"]
    index = (out / "index.html").read_text()
    assert 'href="02_good.html"' in index and 'href="01_bad.html"' not in index
    assert "1 of 2 notebooks ran" in index and "KeyError" in index


@pytest.mark.parametrize(
    "tag",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img src="http://example.org/a.png">',
        '<script type="module">import x from "https://cdn.example/x.mjs"</script>',
        "<style>@import url(https://cdn.example/x.css);</style>",
    ],
)
def test_a_page_that_needs_the_network_is_refused(tag):
    with pytest.raises(ValueError, match="must open offline"):
        pages.check_offline(f"<html>{tag}</html>")
    pages.check_offline('<a href="https://arxiv.org/abs/2206.01859">a paper</a>')


def test_a_page_shows_what_a_widget_holds_and_where_it_moves():
    view = {"model_id": "box", "version_major": 2, "version_minor": 0}
    output = new_output("display_data", {pages.WIDGET: view})
    inner = new_output("stream", text="inside\n")
    children = ["IPY_MODEL_s", "IPY_MODEL_o"]
    state = {
        "box": {"model_name": "VBoxModel", "state": {"children": children}},
        "s": {"model_name": "IntSliderModel", "state": {"description": "<b>its", "value": 4}},
        "o": {"model_name": "OutputModel", "state": {"outputs": [inner]}},
    }
    notebook = new_notebook(cells=[new_code_cell("slider", outputs=[output])])
    notebook.metadata.widgets = {pages.WIDGET_STATE: {"state": state}}
    note, shown = pages.without_widgets(notebook).cells[0].outputs
    assert "make lab" in note.data["text/html"] and "&lt;b&gt;its 4" in note.data["text/html"]
    assert shown.text == "inside\n" and "widgets" in notebook.metadata


def test_a_figures_title_is_text_that_fills_the_width():
    layout = {"title": {"text": "a <<br>b"}, "height": 394, "margin": {"t": 74}}
    bundle = {"data": [], "layout": layout}
    page = pages._figure(bundle, 1)
    assert '<p class="figure-title">a &lt; b</p>' in page and "a <<br>" not in page
    assert '"height": 330' in page and '"t": 10' in page and "<script src" not in page


def test_strip_keeps_the_marked_text_and_nothing_else(tmp_path, capsys):
    both = {"text/plain": "12", "text/html": "<b>12</b>"}
    path = write(
        tmp_path,
        "01_one",
        new_code_cell("# NBVAL_CHECK_OUTPUT\n12", execution_count=1, metadata={"collapsed": True}),
        new_code_cell("13", execution_count=2, outputs=[new_output("stream", text="13\n")]),
    )
    notebook = nbformat.read(path, 4)
    notebook.cells[1].outputs = [new_output("execute_result", both, execution_count=1)]
    notebook.metadata["widgets"] = {"heavy": 1}
    ids = [cell.id for cell in notebook.cells]
    nbformat.write(notebook, path)

    assert strip_notebooks.main(["--check", str(path)]) == 1
    assert "make strip" in capsys.readouterr().err
    assert strip_notebooks.main([str(path)]) == 0
    assert strip_notebooks.main(["--check", str(path)]) == 0
    stripped = nbformat.read(path, 4)
    assert stripped.cells[1].outputs[0].data == {"text/plain": "12"}
    assert stripped.cells[2].outputs == [] and stripped.cells[2].execution_count == 2
    assert [cell.id for cell in stripped.cells] == ids
    assert stripped.metadata == strip_notebooks.METADATA and not stripped.cells[1].metadata


def test_a_marked_cell_that_never_ran_is_reported(tmp_path, capsys):
    path = write(tmp_path, "01_one", new_code_cell("# NBVAL_CHECK_OUTPUT\n12"))
    assert strip_notebooks.main([str(path)]) == 1
    assert "never run" in capsys.readouterr().err


@pytest.mark.slow
def test_the_pages_show_the_committed_records():
    for (page, name), text in results.made().items():
        shown = (ROOT / page).read_text(encoding="utf-8")
        assert f"<!-- {name} -->\n{text}\n<!-- /{name} -->\n" in shown, "run `make figures`"


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])
def test_lines_are_short_but_for_tables_and_pictures(page):
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if len(line) > 110 and not re.match(r"\|| *<", line)]


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target, _, part in (link.partition("#") for link in re.findall(r"\]\(([^)]+)\)", text)):
        if target.startswith("http"):
            continue
        assert (ROOT / (target or page)).is_file(), target
        if part:
            heads = re.findall(r"^#+ (.+)$", (ROOT / (target or page)).read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]
            assert part in anchors, part


def test_the_readmes_python_names_what_there_is():
    trees = [ast.parse(code) for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL)]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    found = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    names = {name for name in found if re.fullmatch(r"xtc(\.\w+)+", name)}
    assert "xtc.trainable" in names
    for name in names:
        value = importlib.import_module("xtclib")
        for part in name.split(".")[1:]:
            value = getattr(value, part)


def test_the_readmes_commands_and_their_options_exist():
    commands = typer.main.get_command(cli.app).commands
    run = r"^(?:\$ )?(?:xtc|accelerate launch -m xtclib\.cli) (.+)$"
    lines = re.findall(run, README, re.MULTILINE)
    assert len(lines) >= 8
    for line in lines:
        name, *words = shlex.split(line, comments=True)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)(?=`| +#)", README)) <= targets


def test_a_hostile_name_in_a_figure_stays_text():
    """What a record says of itself is no markup of a built page."""
    bad = "</script><!--<script>alert(1)</script><img src=x onerror=alert(2)>"
    figure = bars([made(recipe=bad), made(recipe="b", score=80.0)])
    text = pages._figure(figure.to_plotly_json(), 1)
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<!--" not in text and "<img" not in text and r"\u003cimg" in text


def test_runs_of_a_study_are_shown_before_they_are_timed():
    waiting = made(latency={})
    assert results.latency([waiting]) == "–"
    assert results.latency([waiting, made(seed=1)]) == "0.50"
    assert "| `xtc-1bit` | A | 90.0 | -4.0 | 0.50 | 20.0 | – | 1 |" in results.table([waiting])
