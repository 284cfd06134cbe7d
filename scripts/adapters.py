"""Makes the teachers of the profile `reviews` that the repository ships: adapters of MiniLM.

LoRA (Hu et al. 2021, arXiv:2106.09685) on every linear layer of the encoder, with a classifier of
its own; the pooler stays. What is written is fp16 and under 1 MB. About 20 minutes of one core
each; `--task reviews` makes one. `--full` fine-tunes all of the backbone instead, by three
seeds, and writes beside the adapter what those score: what the adapter gives away.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file

from xtclib import teachers
from xtclib.distillation import Objective
from xtclib.files import staged_folder, write_json
from xtclib.study import profiles
from xtclib.tasks.evaluation import evaluate
from xtclib.training import Budget, Lesson, Run, train

BUDGET = Budget(epochs=3, learning_rate=1e-3, max_length=64)
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["query", "key", "value", "dense"],
        "exclude_modules": ["pooler.dense"]}  # fmt: skip


def make(task: str) -> Path:
    """Fine-tunes an adapter for a task and writes it whole; returns its folder."""
    chosen = profiles.profile("reviews")
    data, backbone = profiles.data_for(task, chosen), profiles.backbone_for(chosen)
    tokenizer = teachers.load_tokenizer(backbone, BUDGET.max_length)
    config = peft.LoraConfig(task_type="SEQ_CLS", **LORA)
    torch.manual_seed(0)
    model = peft.get_peft_model(data.task.load_model(backbone), config)
    with tempfile.TemporaryDirectory() as folder:
        lesson = Lesson(data, tokenizer, BUDGET, Objective(labels=1))
        _, notes = train(model, lesson, Run(Path(folder)))
    target = teachers.ADAPTERS / task
    with staged_folder(target, replace=True) as partial:
        model.save_pretrained(partial)
        (partial / "README.md").unlink(missing_ok=True)
        about = partial / "adapter_config.json"  # names where the backbone lay
        said = json.loads(about.read_text()) | {"base_model_name_or_path": teachers.MINILM_HUB}
        write_json(about, said)
        file = partial / "adapter_model.safetensors"
        save_file({name: t.half() for name, t in load_file(file).items()}, file)
        write_json(partial / "made_from.json", {
            "backbone": teachers.weights_id(backbone), "data": data.fingerprint,
            "source": data.source, "budget": asdict(BUDGET), "seed": 0,
            "training": {k: notes[k] for k in ("steps", "rows", "precision")},
        })  # fmt: skip
    teacher = teachers.shipped(backbone, data)
    test = data.evaluation["test"]
    splits = {"test": test, "first 100": test.select(range(100))}
    score = evaluate(teacher.model, teacher.tokenizer, data, BUDGET.max_length, splits)
    write_json(target / "score.json", score)
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    print(f"{task}: {json.dumps(score)}, {size:.2f} MB at {target}")
    return target


def compare(task: str, seeds: range = range(3)) -> None:
    """Scores of fully fine-tuned teachers on the adapter's test rows, kept beside it."""
    chosen = profiles.profile("reviews")
    data, backbone = profiles.data_for(task, chosen), profiles.backbone_for(chosen)
    scores = []
    for seed in seeds:
        full = teachers.fine_tuned(backbone, data, chosen.teacher, seed)
        length = chosen.teacher.max_length
        scores.append(evaluate(full.model, full.tokenizer, data, length)["test"]["score"])
        found = {"seeds": list(seeds)[: len(scores)], "scores": scores}
        write_json(teachers.ADAPTERS / task / "full.json", found)
        print(f"{task}, fully fine-tuned, seed {seed}: {scores[-1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["reviews", "ratings"], action="append")
    parser.add_argument("--full", action="store_true", help="measure fully fine-tuned ones")
    options = parser.parse_args()
    for name in options.task or ["reviews", "ratings"]:
        compare(name) if options.full else make(name)
