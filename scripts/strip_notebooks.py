"""Keep in a notebook what a reader of its diff needs, and drop the rest.

    python scripts/strip_notebooks.py notebooks/*.ipynb            rewrite in place
    python scripts/strip_notebooks.py --check notebooks/*.ipynb    only report, exit 1

Text outputs of cells marked `# NBVAL_CHECK_OUTPUT` stay (nbval compares them), all other outputs
go. Execution counts stay, since nbval compares no cell without one; so do cell ids and tags.
"""

import argparse
import sys
from pathlib import Path

import nbformat

MARK = "# NBVAL_CHECK_OUTPUT"
CELL_METADATA = ("tags", "slideshow")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def marked(cell) -> bool:
    """Does nbval compare this cell's output?"""
    lines = (line.strip() for line in cell.source.splitlines())
    return MARK in lines or "nbval-check-output" in cell.metadata.get("tags", [])


def text_only(output):
    """The output with nothing but its text, or None if there is none."""
    if output.output_type == "stream":
        return output if output.name == "stdout" else None
    text = output.get("data", {}).get("text/plain")
    if text is None:
        return None
    output.data = {"text/plain": text}
    output.metadata = {}
    return output


def strip_(notebook) -> list[str]:
    """Strip in place; returns what a person has to mend."""
    problems = []
    notebook.metadata = nbformat.from_dict(METADATA)
    for index, cell in enumerate(notebook.cells):
        kept = {key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        keep = marked(cell)
        cell.outputs = [text for out in cell.outputs if keep and (text := text_only(out))]
        if keep and (cell.execution_count is None or not cell.outputs):
            problems.append(f"cell {index} is marked {MARK} but was never run, or printed nothing")
    return problems


def serialize(notebook) -> str:
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def write(path: Path, text: str) -> None:
    """The whole text or, cut off, the old file; `xtclib.files` would load torch for it."""
    partial = path.with_suffix(".tmp")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path)
    parser.add_argument("--check", action="store_true", help="change nothing, report")
    args = parser.parse_args(argv)
    bad = 0
    for path in args.notebooks:
        before = path.read_text(encoding="utf-8")
        notebook = nbformat.reads(before, as_version=4)
        problems = strip_(notebook)
        after = serialize(notebook)
        if before != after and args.check:
            problems.append("has outputs or metadata to strip: run `make strip`")
        elif before != after:
            write(path, after)
            print(f"{path}: {len(before):,} to {len(after):,} characters")
        for problem in problems:
            print(f"{path}: {problem}", file=sys.stderr)
        bad += bool(problems)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
