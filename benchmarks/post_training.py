"""What compressing without training takes on this machine, and whether a budget of time is met.

    python benchmarks/post_training.py --out data/results/deployment/post-training.json

On the teacher of the reviews. The seconds in which each recipe's techniques are applied, with the
rows that they read; then `prune_to_budget` at shares of the encoder's milliseconds (8 rows of 32
tokens): the encoder's time that is left, measured beside the whole one's, in turns. Idle machines
only.
"""

from __future__ import annotations

import time
from functools import partial

import common
import torch

from xtclib import recipes
from xtclib.bert import encoder_layers
from xtclib.clock import in_turns
from xtclib.study import profiles
from xtclib.tasks import Calibration
from xtclib.techniques import PruneToBudget, apply_all

NAMES = "gptq-4bit gptq-3bit gptq-2bit smooth-8bit kwon-50 kprune-50 ptq-4bit".split()


def through(model: torch.nn.Module, x: torch.Tensor) -> None:
    """The encoder's layers, one after the other."""
    for layer in encoder_layers(model):
        found = layer(x)
        x = found if isinstance(found, torch.Tensor) else found[0]


def main() -> None:
    arguments = common.options(__doc__, shares="0.7,0.5,0.4", repeats=30, out="")
    profile = profiles.profile("reviews")
    data = profiles.data_for("reviews", profile)
    teacher = profiles.teacher_for("reviews", profile, data, progress=False)
    model, rows = teacher.model.to("cpu").eval(), Calibration(data, teacher.tokenizer, 64)
    threads, spent = torch.get_num_threads(), []
    print(f"{threads} threads\n{'':<14}{'rows':>6}{'seconds':>9}")
    for name in NAMES:
        chosen = recipes.load(name).techniques
        start = time.perf_counter()
        apply_all(model, chosen, rows)
        seconds = round(time.perf_counter() - start, 1)
        spent.append({"recipe": name, "rows": max(t.looks_at for t in chosen), "seconds": seconds})
        print(f"{name:<14}{spent[-1]['rows']:>6}{seconds:>9.1f}")
    budgets, x = [], torch.randn(8, 32, model.config.hidden_size)
    print(f"{'wanted':<10}{'left':>8}")
    for keep in map(float, arguments.shares.split(",")):
        technique = PruneToBudget(keep, of="milliseconds", tune="none", rows=64)
        runs = {"whole": model, "pruned": technique.apply(model, rows).eval()}
        with torch.inference_mode():
            times = in_turns({n: partial(through, m, x) for n, m in runs.items()},
                             arguments.repeats)  # fmt: skip
        left = times["pruned"]["median"] / times["whole"]["median"]
        budgets.append({"wanted": keep, "left": round(left, 4), "milliseconds": times})
        print(f"{keep:<10.0%}{left:>8.1%}")
    common.write(arguments.out, {"threads": threads, "spent": spent, "budgets": budgets})


if __name__ == "__main__":
    main()
