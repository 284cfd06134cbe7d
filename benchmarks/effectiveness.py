"""How much faster the table of effectiveness's recipes are than their teacher, on this machine.

    python benchmarks/effectiveness.py [--threads 1] [--repeats 0] [--out FILE] [--of NAMES]
                                       [--device cuda]

``--of NAMES`` measures these alone; what FILE holds of others stays in it, as after a run that was
cut off. The table's columns of a GPU are read from
`data/results/deployment/effectiveness-cuda.json`.

MiniLM (6 layers), batch 1 and 8 of 32 tokens, each recipe's student in turns with the teacher.
Weights are random, which changes no time, but where the rows decide how much is computed: those
students are trained (or read from the cache) and timed on real rows of the reviews. DeFormer saves
on passages that it has read before: `decomposition.py` times that. On a processor, beside each time
stands what `xtc advise` predicts from layers, and how far that is off the student's time alone: the
median of three rounds.
"""

from __future__ import annotations

import json
from operator import truediv
from pathlib import Path
from statistics import median

import common
import torch

from xtclib import bert, compress
from xtclib.artefact import ledger
from xtclib.costs import latency, layer_times
from xtclib.recipes import recipe as recipes
from xtclib.study import effectiveness, profiles
from xtclib.tasks.base import batched

LENGTH, BATCHES, ROUNDS = 32, (1, 8), 3
PASSES = 9  # over 64 rows, where the rows decide


def by_structure(config, recipe: str, repeats: int | None, device: str) -> dict:
    """Times of a recipe's empty model, filled, and of the teacher's, in turns; the prediction."""
    planned = ledger.planned(config, recipes.load(recipe).techniques)
    models = {"teacher": layer_times.filled(ledger.planned(config, [])).to(device),
              "student": layer_times.filled(planned).to(device)}  # fmt: skip
    found = {}
    for batch in BATCHES:
        times = latency.of_models(models, batch, LENGTH, repeats)["milliseconds"]
        if device != "cpu":  # layers are looked up as a processor's
            found[str(batch)] = times
            continue
        # In turns too: a machine whose clock drifts between the two is not what layers tell.
        pairs = []
        for _ in range(ROUNDS):
            alone = latency.of_models({"student": models["student"]}, batch, LENGTH, repeats)
            told = layer_times.predicted(planned, batch, LENGTH, again=True)
            pairs.append((alone["milliseconds"]["student"]["median"], told))
        found[str(batch)] = {**times, "alone": [a for a, _ in pairs],
                             "predicted": [t for _, t in pairs]}  # fmt: skip
    return found


def by_row(recipe: str, repeats: int | None, device: str) -> dict:
    """Times of a trained student and its teacher on rows of the reviews, in turns."""
    run = compress(recipe, progress=False, say=lambda _: None)
    models, found = {"teacher": run.teacher.model, "student": run.student}, {}
    models = {name: model.to(device) for name, model in models.items()}
    for batch in BATCHES:
        rows = batched(run.data, run.tokenizer, LENGTH, batch, 64)
        found[str(batch)] = latency.of_models(models, batch, LENGTH, repeats, rows)["milliseconds"]
    return found


def main() -> None:
    """Measures every recipe of the table; a line each."""
    names = [recipe for recipe, _ in effectiveness.LINES.values()]
    given = common.options(__doc__, threads=1, repeats=0, out="", device="cpu",
                           of=",".join(names))  # fmt: skip
    torch.set_num_threads(given.threads)
    config = bert.read_config(profiles.backbone_for("minilm"))
    before = json.loads(Path(given.out).read_text()) if Path(given.out).is_file() else {}
    if (before.get("threads"), before.get("device")) != (given.threads, given.device):
        before = {}
    times, faster, off = (before.get(kind, {}) for kind in ("times", "faster", "off"))
    for name in given.of.split(","):
        if name == "deformer-9of12":
            continue
        rows = any(t.by_row for t in recipes.load(name).techniques)
        found = (by_row(name, given.repeats or PASSES, given.device) if rows else
                 by_structure(config, name, given.repeats or None, given.device))  # fmt: skip
        times[name] = found
        faster[name] = {
            b: t["teacher"]["median"] / t["student"]["median"] for b, t in found.items()
        }
        off[name] = {b: 100 * (median(map(truediv, t["predicted"], t["alone"])) - 1)
                     for b, t in found.items() if "predicted" in t}  # fmt: skip
        told = ", ".join(f"batch {b}: {ratio:.2f} ×" for b, ratio in faster[name].items())
        told += "".join(f", prediction {apart:+.1f} %" for apart in off[name].values())
        print(f"{name:<26}{told}", flush=True)
        # After every line: a machine that is lent may go before the last one.
        common.write(given.out, {"times": times, "faster": faster, "off": off, "length": LENGTH,
                                 "threads": given.threads, "device": given.device})  # fmt: skip


if __name__ == "__main__":
    main()
