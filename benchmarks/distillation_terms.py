"""What each distillation term costs: a step against fine-tuning plus the teacher's forward pass.

    python benchmarks/distillation_terms.py [--backbone FOLDER] [--batch 32] [--length 48]
                                            [--out FILE.json]

The student has half the layers. Every round runs, in turns and in one process, a fine-tuning step
of the student, the teacher's forward pass (its own attention kernel, no gradient), and a step with
each term. Prints medians, and step ÷ (fine-tuning + forward) with its quartiles over rounds.
Not a timed test.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import TrainingArguments

from xtclib import records, teachers
from xtclib.distillation import TERMS, Objective
from xtclib.files import write_json
from xtclib.tasks import find_task
from xtclib.techniques import LayerReduction
from xtclib.training import DistillationTrainer, bf16_is_fast

sys.path.insert(0, str(Path(__file__).parent))
from step_cost import in_turns, random_batch, stepper  # noqa: E402 - the same step as there


def objectives() -> dict[str, Objective]:
    """Every term alone, and what recipes combine."""
    heads = {"weight": 1, "heads": 12}
    alone = {
        name: Objective(**{name: heads if "relations" in name else 1})
        for name in ("logits", *TERMS)
    }
    relations = {f"{name}_relations": heads for name in ("query", "key", "value")}
    return alone | {
        "XTC, one stage": Objective(logits=1, hidden_states=1, attention_scores=1),
        "PKD": Objective(labels=0.5, logits=0.5, patience=10),
        "MiniLMv2": Objective(**relations),
        "all but relations": Objective(
            labels=1, logits=1, **{n: 1 for n in TERMS if "relations" not in n}
        ),
    }


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default=None, help="default: MiniLM")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--out", help="a JSON file")
    options = parser.parse_args()

    bf16 = bf16_is_fast()
    model = find_task("sst2").load_model(options.backbone or teachers.minilm()).eval()
    student = LayerReduction().apply(model)
    batch = random_batch(model.config.vocab_size, options.batch, options.length)
    common = {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
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
        ours = TrainingArguments(output_dir=folder, **common)
        labels = DistillationTrainer(
            copy.deepcopy(student), Objective(labels=1), bf16=bf16, args=ours
        )  # faster than a plain Trainer, whose attention is slow backwards in bf16
        steps = {"fine-tuning": stepper(labels, batch), "teacher's forward": forward}
        for name, objective in objectives().items():
            trainer = DistillationTrainer(
                copy.deepcopy(student), objective, model, bf16=bf16, args=ours
            )
            steps[name] = stepper(trainer, batch)
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
    if options.out:
        about = {"batch": options.batch, "length": options.length, "bf16": bf16}
        write_json(
            options.out,
            {**about, "repeats": options.repeats, "rows": rows, **records.circumstances()},
        )


if __name__ == "__main__":
    main()
