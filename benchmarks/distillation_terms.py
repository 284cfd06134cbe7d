"""What each distillation term costs: a step against fine-tuning plus the teacher's forward pass.

    python benchmarks/distillation_terms.py [--backbone FOLDER] [--batch 32] [--length 48]
                                            [--out FILE.json]

The student has half the layers of the teacher, MiniLM by default. Every round runs, in turns and in
one process, a fine-tuning step of the student, the teacher's forward pass (its own attention
kernel, no gradient), and a step with each term. Prints medians, and step ÷ (fine-tuning + forward)
with its quartiles over rounds. Not a timed test.
"""

from __future__ import annotations

import copy
import tempfile

import common
import numpy as np
import torch
from step_cost import in_turns, random_batch, stepper  # the same step as there
from transformers import TrainingArguments

from xtclib import teachers
from xtclib.distillation import TERMS, Objective
from xtclib.tasks import find_task
from xtclib.techniques import LayerReduction
from xtclib.training import DistillationTrainer, bf16_is_fast


def objectives() -> dict[str, Objective]:
    """Every term alone, and what recipes combine."""
    heads = {"weight": 1, "heads": 12}
    weights = {name: heads if "relations" in name else 1 for name in ("logits", *TERMS)}
    alone = {name: Objective(**{name: weight}) for name, weight in weights.items()}
    relations = {f"{name}_relations": heads for name in ("query", "key", "value")}
    return alone | {
        "XTC, one stage": Objective(logits=1, hidden_states=1, attention_scores=1),
        "PKD": Objective(labels=0.5, logits=0.5, patience=10),
        "MiniLMv2": Objective(**relations),
        "all but relations": Objective(labels=1, **{n: w for n, w in weights.items() if w == 1}),
    }


def main() -> None:
    options = common.options(__doc__, backbone="", batch=32, length=48, repeats=11, out="")
    bf16 = bf16_is_fast()
    model = find_task("sst2").load_model(options.backbone or teachers.minilm()).eval()
    student = LayerReduction().apply(model)
    batch = random_batch(model.config.vocab_size, options.batch, options.length)
    teacher = copy.deepcopy(model)
    if bf16:
        for module in teacher.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)
    given = {name: value for name, value in batch.items() if name != "labels"}

    def forward() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            teacher(**given)

    with tempfile.TemporaryDirectory() as folder:
        ours = TrainingArguments(folder, use_cpu=True, report_to="none", disable_tqdm=True)

        def step(*taught):
            trainer = DistillationTrainer(copy.deepcopy(student), *taught, bf16=bf16, args=ours)
            return stepper(trainer, batch)

        # Ours is faster than a plain Trainer, whose attention is slow backwards in bf16.
        steps = {"fine-tuning": step(Objective(labels=1)), "teacher's forward": forward}
        steps |= {name: step(objective, model) for name, objective in objectives().items()}
        times = in_turns(steps, options.repeats)
    print(
        f"{len(student.bert.encoder.layer)} of {len(model.bert.encoder.layer)} layers, batch "
        f"{options.batch} × {options.length} tokens, {'bf16' if bf16 else 'fp32'}, "
        f"{torch.get_num_threads()} threads, {options.repeats} rounds"
    )
    print(f"{'step':<26}{'ms':>7}{'ratio':>9}{'quartiles':>14}")
    base = np.array(times["fine-tuning"]) + np.array(times["teacher's forward"])
    rows = []
    for name, values in times.items():
        low, middle, high = np.percentile(np.array(values) / base, (25, 50, 75)).round(4).tolist()
        ms = 1e3 * float(np.median(values))
        rows.append({"step": name, "ms": round(ms, 1), "ratio": middle, "low": low, "high": high})
        print(f"{name:<26}{ms:>7.0f}{middle:>9.2f}{low:>9.2f}–{high:.2f}")
    about = {"batch": options.batch, "length": options.length, "bf16": bf16}
    common.write(options.out, about | {"repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
