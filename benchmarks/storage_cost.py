"""What a smaller rest of the file costs: one trained student, each choice by itself.

    python benchmarks/storage_cost.py --glue-dir FOLDER [--task sst2] [--budget 2000steps]
                                      [--recipe xtc-1bit] [--out FILE.json]

Takes a student of profile ``minilm`` from the cache, or trains it, and stores its pooler, positions
and classifier at other widths *after* training. Prints size on disk, the metric over the whole dev
set, and how many labels stay. Recipes ``xtc-1bit-rest8`` and ``-rest1`` train the same choices in.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import common

import xtclib as xtc
from xtclib import artefact, recipes
from xtclib.deployment import runtimes
from xtclib.tasks import evaluation
from xtclib.techniques import Storage

CHOICES = {
    "as trained, fp16": {},
    "positions trimmed to 128": {"length": 128},
    "positions at 8 bits": {"positions": "int8-row"},
    "positions at 4 bits": {"positions": "int4-row"},
    "positions at 1 bit": {"positions": "binary-row"},
    "pooler at 8 bits": {"pooler": "int8-row"},
    "pooler at 4 bits": {"pooler": "int4-row"},
    "pooler at 1 bit": {"pooler": "binary-row"},
    "classifier at 8 bits": {"classifier": "int8-row"},
    "pooler and positions at 8 bits": {"pooler": "int8-row", "positions": "int8-row"},
    "50 × on disk: pooler at 1 bit, 128 positions at 8": {
        "pooler": "binary-row", "positions": "int8-row", "length": 128,
    },
}  # fmt: skip


def main() -> None:
    given = {"task": "sst2", "budget": "2000steps", "recipe": "xtc-1bit"}
    args = common.options(__doc__, glue_dir=None, **given, out="")
    run = xtc.compress(
        args.recipe, args.task, "minilm", args.budget, 0, args.glue_dir, progress=False
    )
    techniques = recipes.load(args.recipe).techniques
    ((name, split),) = run.data.evaluation.items()
    rows, base = [], None
    print(f"\n{args.recipe}, {args.task} {name}, {len(split.labels)} rows")
    for what, values in CHOICES.items():
        storage = Storage(**values)
        model = artefact.finalize(storage.apply(copy.deepcopy(run.student)), [*techniques, storage])
        logits = evaluation.predict(model, run.tokenizer, split)
        base = logits if base is None else base
        task = run.data.task
        score = task.score(task.decide(logits), split.labels)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            size = (Path(folder) / artefact.WEIGHTS).stat().st_size
        row = {"what": what, "storage": values, "bytes": size, "metrics": score,
               **runtimes.agreement(base, logits)}  # fmt: skip
        rows.append(row)
        print(f"{what:<50}{size / 1e6:>7.2f} MB{score['score']:>8.2f}{row['labels']:>8.2f} % of "
              f"labels stay, logits move by {row['median']:.1e}")  # fmt: skip
    about = {"recipe": args.recipe, "task": args.task, "budget": args.budget, "seed": 0}
    common.write(args.out, about | {"rows": rows})


if __name__ == "__main__":
    main()
