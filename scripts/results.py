"""Writes the README's results tables from the committed records, between its two markers.

python scripts/readme_results.py [--check]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

from xtclib import records as results
from xtclib.deployment import runtimes
from xtclib.files import write_text
from xtclib.recipes import recipe

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- results -->", "<!-- /results -->"
GALLERY = (
    "minilm-size-accuracy", "deployment", "minilm-pruning", "minilm-distillation",
    "losses-compared", "mini-budgets", "quantization",
)  # fmt: skip
FAMILIES = {
    "quantized": "Few bits for each weight:",
    "shaped": "Fewer or other layers, taught in one way or another:",
    "pruned": "Weights, heads, neurons or tokens removed:",
}
NAMES = {"sst2": "SST-2", "cola": "CoLA", "mrpc": "MRPC test", "mnli": "MNLI"}


def spread(values: list[float]) -> str:
    """Mean with the range over seeds, where there are several.

    >>> spread([80.0, 82.0])
    '81.0 (80.0–82.0)'
    """
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def table(records: list[results.Record]) -> str:
    """One row a recipe and budget: score, loss against the teacher, size, latency, seeds."""
    groups: dict[tuple[str, str], list[results.Record]] = {}
    for record in records:
        groups.setdefault((record.recipe, record.budget), []).append(record)
    first, size = records[0], records[0].teacher_bytes / 1e6
    lines = [
        "| recipe | budget | score | against teacher | MB | times smaller | latency | seeds |",
        "|---|---|---|---|---|---|---|---|",
        f"| *teacher* | | {first.teacher_score:.1f} | | {size:.1f} | 1 | 1 | |",
    ]
    order = sorted(groups.items(), key=lambda item: (-item[1][0].bytes, item[0]))
    for (name, budget), group in order:
        one = group[0]
        trains = recipe.load(name).trains
        times = [
            r.latency["milliseconds"]["student"]["median"]
            / r.latency["milliseconds"]["teacher"]["median"]
            for r in group
        ]
        lines.append(
            f"| `{name}` | {budget if trains else 'none'} | {spread([r.score for r in group])} "
            f"| {mean(r.score - r.teacher_score for r in group):+.1f} | {one.bytes / 1e6:.2f} "
            f"| {one.ratio:.1f} | {mean(times):.2f} | {len(group) if trains else '–'} |"
        )
    return "\n".join(lines)


def section() -> str:
    """All tables, real data first."""
    parts = []
    for profile, title in (
        ("minilm", "Real MiniLM (6 layers, 90.9 MB), real GLUE, one CPU"),
        ("mini", "Built-in tasks and 12-layer teacher"),
    ):
        found = results.records(profile)
        tasks = sorted({r.task for r in found}, key=lambda t: (t != "sst2", t))
        if not tasks:
            continue
        parts.append(
            f"<details><summary><b>{title}</b></summary>\n"
            if profile == "mini"
            else f"**{title}**\n"
        )
        for task in tasks:
            chosen = [r for r in found if r.task == task]
            low = mean(m["score"] for m in chosen[0].majority.values())
            parts.append(f"{NAMES.get(task, task)} (majority class {low:.1f}):\n")
            for wanted, heading in FAMILIES.items():
                some = [r for r in chosen if recipe.load(r.recipe).family == wanted]
                parts += [f"{heading}\n", table(some) + "\n"] if some else []
        parts += ["</details>\n"] if profile == "mini" else []
    parts.append(
        "Score: the task's metrics in GLUE's convention, mean and range over seeds. MB: 10⁶ bytes "
        "of `model.safetensors`, read from disk: fp32 for teachers and students that are ordinary "
        "smaller models, fp16 for what is pruned, the bits of its name for what is quantized. "
        "Latency: the student's forward pass over its teacher's, measured in turns in fp32, mostly "
        "with one thread while other runs kept the machine busy."
    )
    return "\n".join([*parts, "", deployed(), "", pruned(), "", compared()])


def _benchmark(name: str) -> dict:
    return runtimes.read_measured(ROOT / "data" / "results" / "deployment" / f"{name}.json")


def pruned() -> str:
    """What pruning brings at BERT-base's shape."""
    found = _benchmark("pruning")
    lines = [
        f"**BERT-base's shape, pruned** (batch {found['batch']}, length {found['length']}, "
        f"{found['machine']['threads']} threads; *encoder*: its bytes against the unpruned "
        "encoder's, both fp16; *file*: the whole against fp32; embeddings, pooler and classifier "
        "are pruned by width only)\n",
        "| what is gone | time | operations | encoder | file, MB | file |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['what']} | {row['time']:.2f} | {row['operations']:.2f} | {row['encoder']:.2f} "
        f"| {row['bytes'] / 1e6:.1f} | {row['file']:.2f} |"
        for row in found["rows"]
    ]
    return "\n".join(lines)


def compared() -> str:
    """What a distillation step costs, by what it compares."""
    found = _benchmark("distillation-terms")
    rows = [row for row in found["rows"] if row["step"] != "fine-tuning"]
    lines = [
        "**A distillation step** against a fine-tuning step of the same student plus the teacher's "
        f"forward pass (MiniLM, 3 of 6 layers, batch {found['batch']} × {found['length']}, "
        f"{found['machine']['threads']} threads, medians and quartiles of {found['repeats']})\n",
        "| what it compares | ratio | quartiles |",
        "|---|---|---|",
    ]
    lines += [
        f"| {row['step'].replace('_', ' ')} | {row['ratio']:.2f} "
        f"| {row['low']:.2f}–{row['high']:.2f} |"
        for row in rows
        if row["step"] != "teacher's forward"
    ]
    return "\n".join(lines)


def deployed(batch: int = 1, length: int = 128) -> str:
    """One row a runtime: file, speed, milliseconds; of BERT-base's shape at one bit."""
    found = _benchmark("bert-base")
    rows = [r for r in found["rows"] if (r["batch"], r["length"]) == (batch, length)]
    many = {r["runtime"]: r for r in found["rows"] if (r["batch"], r["length"]) == (8, length)}
    lines = [
        f"**BERT-base's shape, 1 bit, in every runtime** ({found['machine']['threads']} threads, "
        f"length {length}, medians of {found['repeats']} in turns)\n",
        f"| runtime | file, MB | ms, batch {batch} | × as fast | × as fast, batch 8 |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        name = row["runtime"]
        lines.append(
            f"| {name} | {found['sizes'][name] / 1e6:.1f} | {row['median']:.0f} "
            f"({row['low']:.0f}–{row['high']:.0f}) | {1 / row['ratio']:.1f} "
            f"| {1 / many[name]['ratio']:.1f} |"
        )
    return "\n".join(lines)


def gallery() -> str:
    """The chosen figures with their alt text, as figures/README.md has them."""
    text = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    blocks = dict(part.split("\n", 1) for part in text.split("## ")[1:])
    return "\n".join(
        blocks[name]
        .strip()
        .replace('srcset="', 'srcset="figures/')
        .replace(' src="', ' src="figures/')
        for name in GALLERY
    )


def main() -> None:
    """Updates the README, or checks that it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, _, rest = text.partition(START)
    _, _, tail = rest.partition(END)
    new = f"{head}{START}\n{section()}\n\n{gallery()}\n{END}{tail}"
    if options.check and new != text:
        sys.exit("README.md's results are not those of data/results: run `make figures`")
    if not options.check:
        write_text(readme, new)


if __name__ == "__main__":
    main()
