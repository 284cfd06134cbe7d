"""Writes RESULTS.md's tables and the README's table of systems from the committed records.

A page keeps what stands outside of its markers, `<!-- name -->` and `<!-- /name -->`.

python scripts/results.py
"""

from __future__ import annotations

import re
from collections import Counter
from statistics import mean

from xtclib import records as results
from xtclib.cache import ROOT
from xtclib.deployment import runtimes
from xtclib.files import write_text
from xtclib.recipes import recipe

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
TITLES = {
    "minilm": "Real MiniLM (6 layers, 90.9 MB), real GLUE",
    "mini": "Built-in tasks, 12-layer teacher",
}
SHOWN = (("sst2", "minilm"), ("mrpc", "minilm"), ("sst2", "mini"))
# What the README shows: one recipe a system, of those that differ in little.
SYSTEMS = {
    "XTC": ("xtc-2bit", "xtc-1bit", "xtc-1bit-half", "xtc-half"), "TernaryBERT": ("ternarybert",),
    "BinaryBERT": ("binarybert-twn",), "Q8BERT": ("q8bert",), "Q-BERT": ("qbert-4bit",),
    "post-training quantization": ("ptq-8bit",), "TinyBERT": ("tinybert-6l",), "PKD": ("pkd-6l",),
    "MiniLMv2": ("minilmv2-6l",), "BERT-of-Theseus": ("theseus-6l",), "DistilBERT": ("distilbert",),
    "MobileBERT": ("mobilebert",), "Well-Read Students": ("wellread-pd",),
    "DualTrain": ("dualtrain",), "BiLSTM": ("bilstm-kd",),
    "magnitude pruning": ("magnitude-downstream-50",), "RPP": ("rpp-50",),
    "movement pruning": ("movement-50",), "2:4 sparsity": ("two-of-four",),
    "head pruning": ("head-pruning",), "heads and neurons": ("prune-half",),
    "vocabulary pruning": ("vocab-pruning",),
}  # fmt: skip


def spread(values: list[float]) -> str:
    """Mean with the range over seeds, where there are several.

    >>> spread([80.0, 82.0])
    '81.0 (80.0–82.0)'
    """
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{mean(values):.1f} ({min(values):.1f}–{max(values):.1f})"


def latency(record: results.Record) -> float:
    """The student's time over its teacher's, medians."""
    times = record.latency["milliseconds"]
    return times["student"]["median"] / times["teacher"]["median"]


def majority(record: results.Record) -> float:
    """What always answering the most common label scores."""
    return mean(m["score"] for m in record.majority.values())


def longest(records: list[results.Record]) -> list[results.Record]:
    """Those of the budget with most steps.

    >>> longest([])
    []
    """
    steps = {r.budget: sum(stage["steps"] for stage in r.stages) for r in records}
    return [r for r in records if r.budget == max(steps, key=steps.__getitem__)]


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
        lines.append(
            f"| `{name}` | {budget if trains else 'none'} | {spread([r.score for r in group])} "
            f"| {mean(r.score - r.teacher_score for r in group):+.1f} "
            f"| {one.bytes / 1e6:.2f} | {one.ratio:.1f} | {mean(map(latency, group)):.2f} "
            f"| {len(group) if trains else '–'} |"
        )
    return "\n".join(lines)


def measured(profile: str) -> str:
    """How many records a profile has, from when, of which seeds and on what."""
    found = results.records(profile)

    def each(values) -> str:
        return ", ".join(f"{value} ({n})" for value, n in Counter(values).most_common())

    days = sorted(r.date for r in found)
    return (
        f"{len(found)} records in `data/results/{profile}`, {days[0]} to {days[-1]}. Seeds: "
        f"{each(r.seed for r in found)}.\nOn "
        f"{each('{processor} with {capability}'.format(**r.machine) for r in found)}; threads: "
        f"{each(r.machine['threads'] for r in found)}; "
        f"torch {each(r.versions['torch'] for r in found)}, "
        f"transformers {each(r.versions['transformers'] for r in found)}.\n"
    )


def section() -> str:
    """All tables of RESULTS.md, real data first."""
    parts = []
    for profile, title in TITLES.items():
        found = results.records(profile)
        parts += [f"## {title}\n", measured(profile)]
        for task in sorted({r.task for r in found}, key=lambda t: (t != "sst2", t)):
            chosen = [r for r in found if r.task == task]
            low = f"majority class {majority(chosen[0]):.1f}"
            parts.append(f"### {NAMES.get(task, task)} ({low})\n")
            for wanted, heading in FAMILIES.items():
                some = [r for r in chosen if recipe.load(r.recipe).family == wanted]
                parts += [f"{heading}\n", table(some) + "\n"] if some else []
    return "\n".join([*parts, deployed(), "", pruned(), "", compared()])


def systems() -> str:
    """The README's table: one row a published system or baseline, from its longest runs.

    SST-2 and MRPC as they are, where a recipe was measured on them; else the built-in SST-2.
    """
    lines = [
        "| system | recipe | what it does | × smaller | latency | score of its teacher's |",
        "|---|---|---|---|---|---|",
    ]
    found = {
        (task, profile): [r for r in results.records(profile) if r.task == task]
        for task, profile in SHOWN
    }
    for system, names in SYSTEMS.items():
        for name in names:
            book = recipe.load(name)
            groups = [longest([r for r in some if r.recipe == name]) for some in found.values()]
            groups = [group for group in groups if group]
            if len(groups) > 1:
                groups = [group for group in groups if group[0].profile == "minilm"]
            paper = re.search(r"arXiv:(\d+\.\d+)", book.source)
            linked = f"[{system}](https://arxiv.org/abs/{paper[1]})" if paper else system
            lines.append(
                f"| {linked} | `{name}` | {book.summary} | {groups[0][0].ratio:.1f} "
                f"| {mean(map(latency, groups[0])):.2f} "
                f"| {'; '.join(_cell(group, book.trains) for group in groups)} |"
            )
    floors = [f"{_short(some[0])} {majority(some[0]):.1f}" for some in found.values()]
    return "\n".join([*lines, "", f"Always the most common label: {', '.join(floors)}."])


def _short(record: results.Record) -> str:
    return NAMES[record.task].split()[0] if record.profile == "minilm" else "built-in"


def _cell(group: list[results.Record], trains: bool) -> str:
    first, seeds = group[0], f"{len(group)} seed{'s' * (len(group) > 1)}"
    spent = f"{first.budget.replace('steps', ' steps')}, {seeds}" if trains else "untrained"
    score = mean(r.score for r in group)
    return f"{_short(first)} {score:.1f} of {first.teacher_score:.1f} ({spent})"


def _benchmark(name: str) -> dict:
    return runtimes.read_measured(ROOT / "data" / "results" / "deployment" / f"{name}.json")


def pruned() -> str:
    """What pruning brings at BERT-base's shape."""
    found = _benchmark("pruning")
    lines = [
        f"## BERT-base's shape, pruned\n\nBatch {found['batch']}, length {found['length']}, "
        f"{found['machine']['threads']} threads; *encoder*: its bytes against the unpruned "
        "encoder's, both fp16; *file*:\nthe whole against fp32; embeddings, pooler and classifier "
        "are pruned by width only.\n",
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
        "## A distillation step\n\nAgainst a fine-tuning step of the same student plus the "
        "teacher's forward pass: MiniLM, 3 of 6 layers, "
        f"batch {found['batch']} × {found['length']},\n"
        f"{found['machine']['threads']} threads, medians and quartiles of {found['repeats']}.\n",
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
        f"## BERT-base's shape, 1 bit, in every runtime\n\n{found['machine']['threads']} threads, "
        f"length {length}, medians of {found['repeats']} in turns.\n",
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


def gallery(*names: str) -> str:
    """Figures with their alt text, as figures/README.md has them."""
    text = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    blocks = dict(part.split("\n", 1) for part in text.split("## ")[1:])
    return "\n".join(
        blocks[name]
        .strip()
        .replace('srcset="', 'srcset="figures/')
        .replace(' src="', ' src="figures/')
        for name in names
    )


def made() -> dict[tuple[str, str], str]:
    """What stands between two markers, by page and the markers' name."""
    return {
        ("README.md", "picture"): gallery(GALLERY[0]),
        ("README.md", "systems"): systems(),
        ("RESULTS.md", "results"): f"{section()}\n\n## Figures\n\n{gallery(*GALLERY)}",
    }


def main() -> None:
    """Updates the pages."""
    for (page, name), text in made().items():
        head, _, rest = (ROOT / page).read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
        end = f"<!-- /{name} -->"
        write_text(ROOT / page, f"{head}<!-- {name} -->\n{text}\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
