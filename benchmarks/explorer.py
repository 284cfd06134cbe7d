"""How long the explorer takes to filter, in JupyterLab in headless Chromium.

    python benchmarks/explorer.py [--records 500] [--repeats 20] [--out FILE.json]

Opens a notebook with the explorer over so many records (the committed ones; more are copies of
these under other names), chooses another budget, then other families, and back, and times each from
the control's event until the figure is drawn. Needs the extras `notebooks` and `browser`, and a
Chromium.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import common
import nbformat
from playwright.sync_api import Error, Page, sync_playwright

SHOW = """\
from dataclasses import replace
from itertools import islice
from xtclib import records
from xtclib.figures import choice
found = [*records.read("reviews"), *records.read("minilm")]
more = (replace(r, recipe=f"copy-{i}-{r.recipe}") for i in range(99) for r in found)
choice.explorer([*found, *islice(more, max(COUNT - len(found), 0))][:COUNT])"""
FILTER = """([control, values]) => new Promise(done => {
  const plot = document.querySelector('.jp-OutputArea .js-plotly-plot');
  const select = [...document.querySelectorAll('.jp-OutputArea select')][control];
  const begin = performance.now();
  plot.once('plotly_afterplot', () => done(performance.now() - begin));
  for (const option of select.options)
    option.selected = values ? values.includes(option.text.replaceAll('\\u00a0', ' ')) : true;
  if (!select.selectedOptions.length) throw new Error(`no option is named ${values}`);
  select.dispatchEvent(new Event('change', {bubbles: true}));
})"""
TURNS = {  # the control's place among the selects, and the values to choose in turns
    "budget": (1, ["A"], ["all"]),
    "families": (2, ["fewer bits"], None),
}


def main() -> None:
    args = common.options(__doc__, records=500, repeats=20, out="")
    with tempfile.TemporaryDirectory() as place:
        cell = nbformat.v4.new_code_cell(SHOW.replace("COUNT", str(args.records)))
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
        notebook = nbformat.v4.new_notebook(cells=[cell], metadata=kernel)
        nbformat.write(notebook, Path(place, "explorer.ipynb"))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        given = ("--no-browser", "--allow-root", "--ServerApp.token=", f"--port={port}",
                 "--ServerApp.port_retries=0", f"--ServerApp.root_dir={place}")  # fmt: skip
        lab = subprocess.Popen([sys.executable, "-m", "jupyterlab", *given],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            found = measure(f"http://127.0.0.1:{port}/lab/tree/explorer.ipynb?reset", args)
        finally:
            lab.terminate()
            lab.wait()
    common.write(args.out, found, "jupyterlab", "ipywidgets", "plotly", "playwright")


def measure(url: str, args) -> dict:
    """Milliseconds of each filter: the median and the quartiles, printed too."""
    found = {"records": args.records, "repeats": args.repeats}
    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=common.chromium(), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 1200, "height": 1400})
        opened(page, url)
        print(f"{'filter':<12}{'ms':>8}{'quartiles':>14}   {args.records} records")
        for name, (control, *values) in TURNS.items():
            times = []
            for turn in range(4 + 2 * args.repeats):
                times.append(page.evaluate(FILTER, [control, values[turn % 2]]))
                page.wait_for_timeout(300)  # as long as nobody is faster than
            times = times[4:]
            low, middle, high = statistics.quantiles(times, n=4)
            found[name] = {"median": middle, "quartiles": [low, high]}
            print(f"{name:<12}{middle:>8.0f}{low:>8.0f}–{high:.0f}")
        chromium.close()
    return found


def opened(page: Page, url: str) -> None:
    """The notebook in a page, its one cell run, its figure there."""
    for _ in range(60):  # until the server listens
        try:
            page.goto(url)
            break
        except Error:
            page.wait_for_timeout(500)
    page.locator(".jp-Notebook .jp-CodeCell").first.click(timeout=90_000)
    page.wait_for_timeout(3000)  # the kernel starts
    page.keyboard.press("Shift+Enter")
    page.wait_for_selector(".jp-OutputArea .js-plotly-plot .main-svg", timeout=120_000)
    page.wait_for_timeout(2000)


if __name__ == "__main__":
    main()
