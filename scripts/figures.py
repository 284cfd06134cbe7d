"""The gallery: figures of the committed records, as SVG for light and dark pages.

python scripts/figures.py                  # data/results → figures/
python scripts/figures.py --out build/figures
"""

import argparse
import importlib.util
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import plotly.io as pio
import torch
from results import REASONS, longest, steps

from xtclib import recipes, records
from xtclib.cache import ROOT
from xtclib.costs.breakdown import break_down, by_length
from xtclib.deployment import runtimes
from xtclib.distillation import losses
from xtclib.figures import (
    choice,
    costs,
    deformer,
    deployment,
    distillation,
    dynamic,
    embeddings,
    factorization,
    heads,
    pruning,
    quantization,
    style,
    training,
)  # fmt: skip
from xtclib.figures import records as plots
from xtclib.records import RESULTS, Record, common
from xtclib.study import effectiveness

WIDTH = 700
LENGTHS = [16, 64, 128, 256, 512, 1024, 2048, 3072, 4096]
CORE = ("xtc-", "cut-", "finetune-")  # shaped ones that stand beside the quantized too
PRUNERS = ("magnitude-downstream", "nip", "rpp", "movement")


def one_comparison(found: list[Record]) -> list[Record]:
    """The tasks that all runs share, or else the one with most recipes, and of those most runs."""
    shared = common(found)
    if shared or not found:
        return shared
    tasks = sorted({r.task for r in found})
    by_task = {task: [r for r in found if r.task == task] for task in tasks}
    return max(by_task.values(), key=lambda some: (len({r.recipe for r in some}), len(some)))


def usual_budget(found: list[Record]) -> str:
    """The budget at which most recipes that train were measured."""
    trained = {(r.budget, r.recipe) for r in found if steps(r)}
    return Counter(budget for budget, _ in sorted(trained)).most_common(1)[0][0] if trained else ""


def not_shorter(found: list[Record]) -> list[Record]:
    """Without recipes that were only trained shorter than most: they would look worse for it."""
    ours = [r.training_budget for r in found if r.budget == usual_budget(found) and steps(r)]
    least = length(ours[0]) if ours else (0, 0)
    return [r for r in found if not steps(r) or length(r.training_budget) >= least]


def length(budget: dict) -> tuple[float, float]:
    """A budget's epochs and steps, for comparing."""
    return budget.get("epochs") or 0, budget.get("steps") or 0


def gallery(results: Path) -> dict:
    """Figures by name: those without records, then those of every profile that has some."""
    weights = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    figures = {
        "quantization": quantization.quantization_curve(weights, ["binary", "ternary", "int4"]),
        "error-by-bits": quantization.error_by_bits(weights),
        "layer-map": distillation.layer_map(6, 12, losses.layer_map(6, 12)),
        "losses-compared": distillation.what_is_matched(systems(), 6, 12),
        "breakdown": costs.shares(break_down("bert-base")),
        "lengths": costs.over_lengths(by_length("bert-base", LENGTHS)),
        "glue-against-size": costs.glue_against_size(),
        "glue-against-gflops": costs.glue_against_gflops(),
    }
    path = results / "deployment" / "bert-base.json"
    if path.is_file():
        found = runtimes.read_measured(path)
        rows = [r for r in found["rows"] if (r["batch"], r["length"]) == (1, 128)]
        figures["deployment"] = deployment.size_and_speed(rows, found["sizes"])
        figures["deployment-speed"] = deployment.speed(found["rows"])
    path = results / "deployment" / "heads.json"
    if path.is_file():
        found = runtimes.read_measured(path)
        figures["tagger"] = heads.spans_found(found["tagger"])
        figures["encoder"] = heads.vectors_kept(found["encoder"])
    path = results / "deployment" / "decomposition.json"
    if path.is_file():
        found = runtimes.read_measured(path)
        figures["thin-matrices"] = factorization.clock(found["thin"])
        figures["passages"] = deformer.faster(found["deformer"])
    path = results / "deployment" / "tables.json"
    if path.is_file():
        starts: dict[str, list] = {}
        for row in runtimes.read_measured(path)["starts"]:
            point = row["setting"], row["bytes"], row["error"]
            starts.setdefault(row["method"], []).append(point)
        figures["word-tables"] = embeddings.tables(starts)
    path = results / "deployment" / "dynamic.json"
    if path.is_file():
        figures["regrouping"] = dynamic.regrouped(runtimes.read_measured(path)["exits"], "2")
    if (results / "effectiveness.csv").is_file():
        figures["effectiveness"] = choice.effectiveness(effectiveness.lines(results))
    for profile in sorted(p.name for p in results.glob("*") if p.is_dir()):
        measured = records.read(profile, results)
        pruned = [r for r in measured if plots.family_of(r.recipe) == "pruned"]
        shaped = one_comparison([r for r in measured if plots.family_of(r.recipe) == "shaped"])
        shaped = [r for r in shaped if r.budget == usual_budget(shaped)]
        found = [
            r
            for r in measured
            if plots.family_of(r.recipe) == "quantized" or r.recipe.startswith(CORE)
        ]
        if pruned:
            figures.update(over_sparsity(profile, pruned))
        if len({r.recipe for r in shaped}) > len(CORE):
            figures[f"{profile}-distillation"] = plots.bars(shaped)
        if not found:
            continue
        figures.update(why_a_teacher_helps(profile, measured))
        one, usual = one_comparison(measured), usual_budget(measured)
        alike = [r for r in one if r.budget == usual or not steps(r)]
        figures[f"{profile}-benchmark"] = plots.benchmark(alike)
        if any(r.measures.get("applied", {}).get("rows") for r in alike):
            figures[f"{profile}-effort"] = training.effort(alike)
        best = not_shorter(one_comparison(longest(found)))
        figures[f"{profile}-size-accuracy"] = plots.size_accuracy(best, plots.published())
        figures[f"{profile}-recipes"] = plots.bars(best)
        budgets: dict[tuple[str, str], set[str]] = {}
        plain = [r for r in found if "@" not in r.budget]  # others are studies of rates
        for r in plain:
            budgets.setdefault((r.task, r.recipe), set()).add(r.budget)
        several = [r for r in plain if len(budgets[r.task, r.recipe]) > 1]
        if several:
            figures[f"{profile}-budgets"] = training.budgets(one_comparison(several))
        timed = [r for r in best if r.latency]  # a study's runs are timed after it
        timed = [r for r in timed if r.latency["threads"] == timed[0].latency["threads"]]
        figures[f"{profile}-latency"] = plots.latency(timed)
        trained = [r for r in best if any(s["losses"] for s in r.stages)]
        if trained:
            first = [r for r in trained if r.recipe == "xtc-1bit"] or trained
            figures[f"{profile}-loss"] = training.loss_curves(first[0])
    return figures


def why_a_teacher_helps(profile: str, found: list[Record]) -> dict:
    """The same students where a reason why a teacher helps was changed, and as they are."""
    changed = {words: [r for r in found if r.task == task] for task, words in REASONS.items()}
    names = {"finetune-half", "logits-half", "xtc-half"}
    changed = {w: some for w, some in changed.items() if {r.recipe for r in some} == names}
    if not changed:
        return {}
    plain = [r for r in found if r.task == profile and r.recipe in names and r.budget == "A"]
    same = {"as they are": plain, **changed}
    return {f"{profile}-reasons": plots.conditions(same)}


def systems() -> dict:
    """The objectives of the systems whose losses are compared."""
    names = {"PKD": "pkd-6l", "TinyBERT": "tinybert-6l", "MiniLMv2": "minilmv2-6l",
             "DistilBERT": "distilbert", "XTC": "xtc-half"}  # fmt: skip
    stages = {name: recipes.load(recipe).stages for name, recipe in names.items()}
    return {name: [s.objective for s in told if s.objective] for name, told in stages.items()}


def over_sparsity(profile: str, found: list[Record]) -> dict:
    """Scores over sparsity where they were measured at several, else of the recipes."""
    one = one_comparison(found)
    swept = [r for r in one if pruning.unnumbered(r.recipe) in PRUNERS]
    if len({r.recipe for r in swept}) < 2:
        return {f"{profile}-pruning": plots.bars(longest(one))}
    budget = max(swept, key=steps).budget
    swept = [r for r in swept if r.budget == budget]
    return {f"{profile}-pruning": pruning.over_sparsity(swept, PRUNERS)}


def readme(figures: dict) -> str:
    """The gallery's page: each figure in the reader's theme, with its words as alt text."""
    parts = ["# Figures\n\nMade by `make figures` from the records in `data/results`.\n"]
    for name, figure in figures.items():
        words = style.alt(figure).replace('"', "&quot;").replace("<", "&lt;")
        parts.append(
            f"## {name}\n\n<picture>\n"
            f'  <source media="(prefers-color-scheme: dark)" srcset="{name}-dark.svg">\n'
            f'  <img src="{name}.svg" width="{WIDTH}" alt="{words}">\n</picture>\n'
        )
    return "\n".join(parts)


def render(figures: dict, out: Path) -> None:
    """Writes NAME.svg, NAME-dark.svg and README.md; ``RuntimeError`` without kaleido or Chromium.

    Nothing in ``out`` is touched if drawing fails.
    """
    if importlib.util.find_spec("kaleido") is None:
        raise RuntimeError("figures need kaleido: pip install -e '.[export]'")
    images = {
        f"{name}{'-dark' * dark}.svg": style.themed(figure, dark)
        for name, figure in figures.items()
        for dark in (False, True)
    }
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, file) for file in images]
        drawn, heights = list(images.values()), [f.layout.height for f in images.values()]
        try:
            pio.write_images(drawn, files, width=[WIDTH] * len(files), height=heights)
        except Exception as error:  # kaleido's own errors differ by version
            first = (str(error).strip().splitlines() or [""])[0]
            raise RuntimeError(
                f"kaleido drew nothing ({type(error).__name__}: {first}): it needs Chromium or "
                "Chrome; install one, or run `plotly_get_chrome`"
            ) from error
        out.mkdir(parents=True, exist_ok=True)
        for file in files:
            text = file.read_text(encoding="utf-8")
            # Plotly names parts by chance: numbered, the same figure is the same file.
            by_chance = dict.fromkeys(re.findall(r"(?:defs-|trace)([0-9a-f]{6})\b", text))
            for number, name in enumerate(by_chance):
                text = text.replace(name, f"{file.stem}-{number}")
            (out / file.name).write_text(text, encoding="utf-8")
    (out / "README.md").write_text(readme(figures), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=ROOT / "figures")
    args = parser.parse_args()
    figures = gallery(args.results)
    if not any("-size-" in name for name in figures):
        print("no records in the results folder: the gallery shows none (`make results`)")
    try:
        render(figures, args.out)
    except RuntimeError as error:
        print(f"figures: {error}", file=sys.stderr)
        return 1
    print(f"{len(figures)} figures, light and dark, in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
