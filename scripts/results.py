"""Writes RESULTS.md's tables and the README's table of systems from the committed records.

A page keeps what stands outside of its markers, `<!-- name -->` and `<!-- /name -->`.

python scripts/results.py
"""

from __future__ import annotations

import csv
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from statistics import mean

import numpy as np

from xtclib import recipes
from xtclib import records as results
from xtclib.cache import ROOT
from xtclib.deployment import runtimes
from xtclib.files import write_text
from xtclib.study import design, effectiveness
from xtclib.study.pairs import interval

EFFECTIVE = results.RESULTS / "effectiveness.csv"
ON_GPU = results.RESULTS / "gpu"
ENCODERS = ROOT / "data" / "encoders.md"  # by scripts/encoders.py

GALLERY = (
    "reviews-benchmark", "reviews-reasons", "reviews-budgets", "minilm-size-accuracy", "deployment",
    "reviews-pruning", "losses-compared", "quantization",
)  # fmt: skip
FAMILIES = {
    "quantized": "Few bits for each weight:",
    "shaped": "Fewer or other layers, taught in one way or another:",
    "factorized": "Matrices as products of two thin ones, then distilled:",
    "shared": "Layers that share their weights, then distilled:",
    "words": "Word tables in other forms, then distilled:",
    "apart": "Two texts read apart in the lower layers:",
    "dynamic": "Rows that leave early, tokens that are dropped:",
    "pruned": "Weights, heads, neurons or tokens removed:",
}
NAMES = {"reviews": "Reviews", "ratings": "Ratings, their mean", "sst2": "SST-2", "cola": "CoLA",
         "mrpc": "MRPC test", "mnli": "MNLI",
         "qa": "Questions (XQuAD-en dev)"}  # fmt: skip
TITLES = {
    "reviews": "MiniLM (6 layers, 90.9 MB) on movie reviews",
    "minilm": "The same on GLUE",
}
SHOWN = (("reviews", "reviews"), ("sst2", "minilm"), ("mrpc", "minilm"))
REASONS = {
    "reviews-flipped": "three in ten labels wrong, the teacher's too",
    "reviews-few": "500 training rows",
    "reviews-weak": "all rows, a teacher of 500",
    "reviews-three": "three classes",
}
# What the README shows: one recipe a system, of those that differ in little.
SYSTEMS = {
    "XTC": ("xtc-2bit", "xtc-1bit", "xtc-1bit-half"), "TernaryBERT": ("ternarybert",),
    "BinaryBERT": ("binarybert-twn",), "Q8BERT": ("q8bert",), "Q-BERT": ("qbert-4bit",),
    "post-training quantization": ("ptq-8bit",), "TinyBERT": ("tinybert-6l",), "PKD": ("pkd-6l",),
    "MiniLMv2": ("minilmv2-6l",), "BERT-of-Theseus": ("theseus-6l",), "DistilBERT": ("distilbert",),
    "ALBERT": ("albert-shared",), "GPTQ": ("gptq-3bit",), "SmoothQuant": ("smooth-8bit",),
    "magnitude pruning": ("magnitude-downstream-50",), "RPP": ("rpp-50",),
    "movement pruning": ("movement-50",),
    "head pruning": ("head-pruning",), "heads and neurons": ("prune-half",),
    "K-prune": ("kprune-50",),
    "vocabulary pruning": ("vocab-pruning",), "data-aware SVD": ("drone-50",),
    "DeFormer": ("deformer-9of12",), "FastBERT": ("fastbert",), "PoWER-BERT": ("power-bert",),
    "LTP": ("ltp",),
}  # fmt: skip


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean with the range over seeds, where there are several.

    >>> spread([80.0, 82.0])
    '81.0 (80.0–82.0)'
    """
    shown = [f"{value:.{digits}f}" for value in (mean(values), min(values), max(values))]
    return shown[0] if len(values) == 1 else f"{shown[0]} ({shown[1]}–{shown[2]})"


def tabled(columns: str, rows: list[list]) -> str:
    """A table; columns are parted by ``, `` and cells are shown as they are.

    >>> print(tabled("bits, MB", [[1, "3.6"]]))
    | bits | MB |
    |---|---|
    | 1 | 3.6 |
    """
    names = columns.split(", ")
    lines = [f"| {' | '.join(map(str, row))} |" for row in [names, *rows]]
    return "\n".join([lines[0], "|" + "---|" * len(names), *lines[1:]])


def latency(records: list[results.Record]) -> str:
    """The students' time over their teachers', mean over records of medians over repeats.

    Runs of a study are timed after it; until then there is a dash.
    """
    times = [r.latency["milliseconds"] for r in records if r.latency]
    ratios = [t["student"]["median"] / t["teacher"]["median"] for t in times]
    return f"{mean(ratios):.2f}" if ratios else "–"


def majority(record: results.Record) -> float:
    """What always answering the most common label scores."""
    return mean(m["score"] for m in record.majority.values())


def longest(records: list[results.Record]) -> list[results.Record]:
    """Of each recipe on each task, the records of its longest budget, by the steps it took.

    Budgets with a rate of their own are a study of rates, and no recipe's usual.
    """
    records = [r for r in records if "@" not in r.budget]
    most: dict[tuple[str, str], int] = {}
    for r in records:
        most[r.task, r.recipe] = max(steps(r), most.get((r.task, r.recipe), 0))
    return [r for r in records if steps(r) == most[r.task, r.recipe]]


def steps(record: results.Record) -> int:
    """Optimizer steps of a record, all its stages together."""
    return sum(stage.get("steps", 0) for stage in record.stages)


def table(records: list[results.Record]) -> str:
    """One row a recipe and budget: score, loss against the teacher, size, latency, seeds."""
    groups: dict[tuple[str, str], list[results.Record]] = {}
    for record in records:
        groups.setdefault((record.recipe, record.budget), []).append(record)
    first, size = records[0], records[0].teacher_bytes / 1e6
    rows = [["*teacher*", "", f"{first.teacher_score:.1f}", "", f"{size:.1f}", 1, 1, ""]]
    for (name, budget), group in sorted(groups.items(), key=lambda g: (-g[1][0].bytes, g[0])):
        one, trains = group[0], recipes.load(name).trains
        rows.append([
            f"`{name}`", budget if trains else "none", spread([r.score for r in group]),
            f"{mean(r.score - r.teacher_score for r in group):+.1f}", f"{one.bytes / 1e6:.2f}",
            f"{one.ratio:.1f}", latency(group), len(group) if trains else "–",
        ])  # fmt: skip
    columns = "recipe, budget, score, against teacher, MB, times smaller, latency, seeds"
    return tabled(columns, rows)


def dynamic(records: list[results.Record]) -> str:
    """What leaving early or dropping tokens saves: in operations, and on a clock, by batch."""
    rows = []
    for name, budget in dict.fromkeys((r.recipe, r.budget) for r in records):
        group = [r for r in records if (r.recipe, r.budget) == (name, budget)]
        found = [clocked(r) for r in group]
        lost = spread([r.score - r.teacher_score for r in group])
        rows.append(
            [f"`{name}`", budget, lost, *(spread(each, 2) for each in zip(*found, strict=True))]
        )
    told = "Times fewer operations, and times as fast on a clock, one row or eight at once:"
    columns = "recipe, budget, against teacher, operations, batch 1, batch 8"
    return f"{told}\n\n{tabled(columns, rows)}"


def clocked(record: results.Record) -> tuple[float, float, float]:
    """How much less is run of a record's rows, and how much faster they are, alone and by eight."""
    if tokens := record.measures.get("tokens"):
        times = [tokens[f"ms_{n}"]["whole"] / tokens[f"ms_{n}"]["dropped"] for n in (1, 8)]
        return tokens["speed"], times[0], times[1]
    exits = record.measures["exits"]
    at = {point["threshold"]: point for point in exits["curve"]}
    here, never = at[exits["chosen"]["threshold"]], at["never"]
    return (exits["chosen"]["speed"], never["ms_1"] / here["ms_1"], never["ms_8"] / here["ms_8"])


def measured(profile: str) -> str:
    """How many records a profile has, from when, of which seeds and on what."""
    found = results.read(profile)

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
        f"{waiting(profile)}\n"
    )


def waiting(profile: str) -> str:
    """The recipes of a profile in the plan of which there is no record yet, in a sentence."""
    planned = {run.recipe for run in design.load(results.RESULTS / "plan.yaml").runs(profile)}
    left = sorted(planned - {r.recipe for r in results.read(profile)})
    names = ", ".join(f"`{name}`" for name in left)
    return textwrap.fill(f"Not measured yet: {names}.", 108, break_on_hyphens=False) if left else ""


def section() -> str:
    """All tables of RESULTS.md, real data first."""
    parts = []
    for profile, title in TITLES.items():
        found = results.read(profile)
        parts += [f"## {title}\n", measured(profile)]
        variants = reasons(found)
        for task in sorted({r.task for r in found} - {*variants}, key=[*NAMES].index):
            chosen = [r for r in found if r.task == task]
            low = f"majority class {majority(chosen[0]):.1f}"
            parts.append(f"### {NAMES.get(task, task)} ({low})\n")
            for wanted, heading in FAMILIES.items():
                some = [r for r in chosen if recipes.load(r.recipe).family == wanted]
                parts += [f"{heading}\n", table(some) + "\n"] if some else []
            moved = [r for r in chosen if r.measures.get("exits") or r.measures.get("tokens")]
            parts += [dynamic(moved) + "\n"] if moved else []
        for task, words in variants.items():
            parts += [f"### Reviews, {words}\n", table([r for r in found if r.task == task]), ""]
    return "\n".join([*parts, deployed(), "", pruned(), "", compared()])


def reasons(found: list[results.Record]) -> dict[str, str]:
    """The tasks among records that change a reason why a teacher helps, and what they change."""
    return {name: words for name, words in REASONS.items() if name in {r.task for r in found}}


def systems() -> str:
    """The README's table: one row a published system or baseline, from its longest runs."""
    found = [[r for r in results.read(p) if r.task == task] for task, p in SHOWN]
    rows = []
    for system, name in ((system, name) for system, names in SYSTEMS.items() for name in names):
        book = recipes.load(name)
        groups = [longest([r for r in some if r.recipe == name]) for some in found]
        groups = [group for group in groups if group]
        if not groups:  # it waits to be measured
            continue
        paper = re.search(r"arXiv:(\d+\.\d+)", book.source)
        rows.append([
            f"[{system}](https://arxiv.org/abs/{paper[1]})" if paper else system, f"`{name}`",
            book.summary, f"{groups[0][0].ratio:.1f}", latency(groups[0]),
            "; ".join(_cell(group, book.trains) for group in groups),
        ])  # fmt: skip
    floors = ", ".join(f"{_short(some[0])} {majority(some[0]):.1f}" for some in found)
    columns = "system, recipe, what it does, × smaller, latency, score of its teacher's"
    return f"{tabled(columns, rows)}\n\nAlways the most common label: {floors}."


def _short(record: results.Record) -> str:
    return NAMES[record.task].split()[0]


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
    rows = [
        [row["what"], *(f"{row[name]:.2f}" for name in ("time", "operations", "encoder")),
         f"{row['bytes'] / 1e6:.1f}", f"{row['file']:.2f}"]
        for row in found["rows"]
    ]  # fmt: skip
    return (
        f"## BERT-base's shape, pruned\n\nBatch {found['batch']}, length {found['length']}, "
        f"{found['machine']['threads']} threads; *encoder*: its bytes against the unpruned "
        "encoder's, both fp16; *file*:\nthe whole against fp32; embeddings, pooler and classifier "
        "are pruned by width only.\n\n"
        + tabled("what is gone, time, operations, encoder, MB of the file, file", rows)
    )


def compared() -> str:
    """What a distillation step costs, by what it compares."""
    found = _benchmark("distillation-terms")
    rows = [
        [r["step"].replace("_", " "), f"{r['ratio']:.2f}", f"{r['low']:.2f}–{r['high']:.2f}"]
        for r in found["rows"]
        if r["step"] not in ("fine-tuning", "teacher's forward")
    ]
    return (
        "## A distillation step\n\nAgainst a fine-tuning step of the same student plus the "
        "teacher's forward pass: MiniLM,\n3 of 6 layers, "
        f"batch {found['batch']} × {found['length']}, {found['machine']['threads']} threads, "
        f"medians and quartiles of {found['repeats']}.\n\n"
        + tabled("what it compares, ratio, quartiles", rows)
    )


def deployed(batch: int = 1, length: int = 128) -> str:
    """One row a runtime: file, speed, milliseconds; of BERT-base's shape at one bit."""
    found = _benchmark("bert-base")
    at = {(r["runtime"], r["batch"]): r for r in found["rows"] if r["length"] == length}
    rows = []
    for name in (name for name, size in at if size == batch):
        row, many = at[name, batch], at[name, 8]
        rows.append([
            name, f"{found['sizes'][name] / 1e6:.1f}",
            f"{row['median']:.0f} ({row['low']:.0f}–{row['high']:.0f})",
            f"{1 / row['ratio']:.1f}", f"{1 / many['ratio']:.1f}",
        ])  # fmt: skip
    columns = f"runtime, MB, ms at batch {batch}, × as fast, × as fast at batch 8"
    return (
        f"## BERT-base's shape, 1 bit, in every runtime\n\n{found['machine']['threads']} threads, "
        f"length {length}, medians of {found['repeats']} in turns.\n\n{tabled(columns, rows)}"
    )


def gallery(*names: str) -> str:
    """Figures with their alt text, as figures/README.md has them."""
    text = (ROOT / "figures" / "README.md").read_text(encoding="utf-8")
    blocks = dict(part.split("\n", 1) for part in text.split("## ")[1:])
    shown = "\n".join(blocks[name].strip() for name in names)
    return re.sub(r'(?<=\bsrc)(set)?="', r'\1="figures/', shown)


def encoders() -> str:
    """The table of encoders, those that are alike in one row."""
    head, line, *rows = ENCODERS.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    alike: dict[str, list[str]] = {}
    for row in rows:
        _, name, cells = row.split("|", 2)
        alike.setdefault(cells, []).append(name.strip())
    return "\n".join([head, line, *(f"| {', '.join(n)} |{c}" for c, n in alike.items())])


def effective() -> str:
    """The case study's lines, each beside what is nearest to it here."""
    rows = []
    for line in effectiveness.lines():
        inside, cpu, points = (line.published[n] for n in ("inside", "CPU", "difference"))
        scores = [line.scores.get(task) for task in effectiveness.PLACES]
        times = line.faster.get(1), line.faster.get(8), line.faster_gpu.get(1)
        rows.append([
            line.row, line.family, line.paper, f"{inside:g}", "–" if cpu is None else f"{cpu:g}",
            f"{points:+.1f}", f"{line.recipe}{'' if line.own else ' ~'}", f"{100 * line.size:.1f}",
            f"{100 * line.size_inside:.1f}", *("–" if t is None else f"{t:.2f}" for t in times),
            *("–" if s is None else f"{s[2]:.1f} of {s[5]:.1f} ({s[1]})" for s in scores),
            f"{line.difference:+.1f}", line.verdict,
        ])  # fmt: skip
    columns = ("row, family, paper, size inside %, × on CPU, points, here, size %, size inside %, "
               "× alone, × by eight, × on GPU, SST-2, MRPC, reviews, points, verdict")  # fmt: skip
    return tabled(columns, rows)


def on_gpu() -> str:
    """Runs on a GPU beside a processor's of the same recipe, budget and seed."""
    here = {(r.recipe, r.budget, r.seed): r.score for r in results.read("reviews", task="reviews")}
    pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for r in results.read("reviews", ON_GPU):
        found = here[r.recipe, r.budget, r.seed], r.score
        pairs.setdefault((r.recipe, r.budget), []).append(found)
    apart = [np.array([there - cpu for cpu, there in group]) for group in pairs.values()]
    rows = [
        [f"`{recipe}`", budget, *map(spread, zip(*group, strict=True)), f"{some.mean():+.1f}"]
        for ((recipe, budget), group), some in zip(pairs.items(), apart, strict=True)
    ]
    low, high = interval(apart)
    mean_of_all = f"{np.mean(apart):+.2f} ({low:+.2f} to {high:+.2f})"
    return tabled("recipe, budget, processor, GPU, points apart",
                  [*rows, [f"all {len(pairs)}", "", "", "", mean_of_all]])  # fmt: skip


def made() -> dict[tuple[str, str], str]:
    """What stands between two markers, by page and the markers' name."""
    return {
        ("README.md", "picture"): gallery(GALLERY[0]),
        ("README.md", "systems"): systems(),
        ("README.md", "encoders"): encoders(),
        ("OWN_DATA.md", "tagger"): gallery("tagger"),
        ("OWN_DATA.md", "encoder"): gallery("encoder"),
        ("RESULTS.md", "effectiveness"): effective(),
        ("RESULTS.md", "gpu"): on_gpu(),
        ("RESULTS.md", "results"): f"{section()}\n\n## Figures\n\n{gallery(*GALLERY)}",
    }


def main() -> None:
    """Updates the pages, and the table of effectiveness as a file."""
    with EFFECTIVE.open("w", encoding="utf-8", newline="") as file:
        lines = map(effectiveness.cells, effectiveness.lines())
        csv.writer(file, lineterminator="\n").writerows([effectiveness.HEAD, *lines])
    for (page, name), text in made().items():
        start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
        head, rest = (ROOT / page).read_text(encoding="utf-8").split(start)
        write_text(ROOT / page, f"{head}{start}{text}{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
