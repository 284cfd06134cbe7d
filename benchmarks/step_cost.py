"""What a compression step costs against a plain fine-tuning step, interleaved in one process.

    python benchmarks/step_cost.py [--backbone FOLDER] [--batch 32] [--length 48] [--repeats 15]
                                   [--recipes NAME,NAME] [--device cuda]

Both sides run the same model (MiniLM by default), batch, precision and optimizer, gradient clipping
included: on the one side ``transformers.Trainer``'s own training step on labels, on the other a
stage of a recipe with its quantizers, its losses and the teacher's forward pass. Prints medians and
their ratio with the quartiles of the per-round ratios. Not a timed test.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable

import common
import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from xtclib import clock, recipes, teachers
from xtclib.costs.latency import random_ids
from xtclib.tasks import find_task
from xtclib.techniques import apply_all
from xtclib.training import DistillationTrainer, bf16_is_fast
from xtclib.training.device import keep_freed_memory


def stepper(trainer: Trainer, batch: dict):
    """One whole training step of a trainer, as a callable: loss, backward, clip, update."""
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = 1  # Trainer.train would set it
    model = trainer.accelerator.prepare(trainer.model)
    trainer.optimizer = trainer.accelerator.prepare(trainer.optimizer)

    def step() -> None:
        trainer.training_step(model, dict(batch))
        trainer.accelerator.clip_grad_norm_(model.parameters(), 1.0)
        trainer.optimizer.step()
        model.zero_grad()

    return step


def random_batch(vocabulary: int, batch: int, length: int) -> dict[str, torch.Tensor]:
    """Random ids with labels in turns, the same at every call; nothing is padding."""
    ids = random_ids(vocabulary, batch, length)
    inputs = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {"input_ids": ids, **inputs, "labels": torch.arange(batch) % 2}


def in_turns(steps: dict[str, Callable], repeats: int, warm: int = 3) -> dict[str, list[float]]:
    """Seconds of every step, all of them once a round, after rounds to warm up."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm + repeats):
        for name, step in steps.items():
            seconds = clock.time_of(step)
            if turn >= warm:
                times[name].append(seconds)
    return times


def main() -> None:
    given = {"backbone": "", "batch": 32, "length": 48, "repeats": 15, "device": "cpu"}
    options = common.options(__doc__, **given, recipes="xtc-1bit,xtc-2bit,xtc-half")
    keep_freed_memory(options.batch * options.length)  # as training does
    bf16, on_cpu = bf16_is_fast(options.device), options.device == "cpu"
    model = find_task("sst2").load_model(options.backbone or teachers.minilm())
    batch = random_batch(model.config.vocab_size, options.batch, options.length)
    shared = {"use_cpu": on_cpu, "report_to": "none", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as folder:
        plain = TrainingArguments(output_dir=folder, bf16=bf16, **shared)
        ours = TrainingArguments(output_dir=folder, **shared)
        steps = {"fine-tuning": stepper(Trainer(copy.deepcopy(model), plain), batch)}
        for name in options.recipes.split(","):
            stage = recipes.load(name).stages[-1]
            student = apply_all(copy.deepcopy(model), stage.techniques)
            trainer = DistillationTrainer(student, stage.objective, model, bf16=bf16, args=ours)
            steps[name] = stepper(trainer, batch)
        times = in_turns(steps, options.repeats)
    where = f"{torch.get_num_threads()} threads" if on_cpu else options.device
    print(
        f"batch {options.batch} × {options.length} tokens, {'bf16' if bf16 else 'fp32'}, "
        f"{where}, {options.repeats} rounds"
    )
    print(f"{'step':<16}{'ms':>9}{'ratio':>9}{'quartiles':>16}")
    base = np.array(times["fine-tuning"])
    for name, values in times.items():
        ratios = np.array(values) / base
        low, high = np.percentile(ratios, (25, 75))
        middle = np.median(values) / np.median(base)
        print(f"{name:<16}{1e3 * np.median(values):>9.0f}{middle:>9.2f}{low:>9.2f}–{high:.2f}")


if __name__ == "__main__":
    main()
