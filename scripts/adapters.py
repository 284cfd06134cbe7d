"""Makes the teachers of the profile `reviews` that the repository ships: adapters of MiniLM.

The backbone is fine-tuned as a whole on the task, and what it learned is kept as a product of thin
matrices (LoRA's form: Hu et al. 2021, arXiv:2106.09685): the difference of each linear layer of the
encoder and of the word vectors, cut by SVD, and the classifier. An adapter trained as such leaves
the word vectors alone and scored 86.2 on the reviews, where this one has 86.9. What is written is
fp16 and under 1 MB. About 10 minutes of one core each; `--task reviews` makes one. `--full`, run
afterwards, scores teachers fine-tuned by three seeds and writes that beside: what it gives away.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import peft
import torch
from safetensors.torch import load_file, save_file

from xtclib import teachers
from xtclib.files import staged_folder, write_json
from xtclib.study import profiles
from xtclib.tasks import TaskData
from xtclib.tasks.evaluation import evaluate, predict

RANK, WORD_RANK = 8, 4
LORA = {"r": RANK, "lora_alpha": RANK,  # a scale of one: the product is the difference
        "target_modules": ["query", "key", "value", "dense", "word_embeddings"],
        "exclude_modules": ["pooler.dense"],
        "rank_pattern": {"word_embeddings": WORD_RANK},
        "alpha_pattern": {"word_embeddings": WORD_RANK}}  # fmt: skip


def thin(difference: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A matrix of (rows, columns) as (rows, rank) times (rank, columns), the nearest by SVD."""
    u, s, vh = torch.linalg.svd(difference, full_matrices=False)
    root = s[:rank].sqrt()  # shared by both, so that fp16 holds them alike
    return u[:, :rank] * root, root[:, None] * vh[:rank]


@torch.no_grad()
def fill(adapter: torch.nn.Module, tuned: torch.nn.Module) -> None:
    """Sets a new adapter's products to what the fine-tuned model learned over its backbone."""
    weights = dict(tuned.named_parameters())
    for name, layer in adapter.base_model.model.named_modules():
        if isinstance(layer, peft.tuners.lora.Embedding):
            learned = weights[f"{name}.weight"] - layer.base_layer.weight
            rows, columns = thin(learned, WORD_RANK)
            layer.lora_embedding_A["default"].copy_(rows.T)
            layer.lora_embedding_B["default"].copy_(columns.T)
        elif isinstance(layer, peft.tuners.lora.Linear):
            learned = weights[f"{name}.weight"] - layer.base_layer.weight
            rows, columns = thin(learned, RANK)
            layer.lora_B["default"].weight.copy_(rows)
            layer.lora_A["default"].weight.copy_(columns)
    kept = adapter.base_model.model.classifier.modules_to_save["default"]
    kept.load_state_dict(tuned.classifier.state_dict())


def make(task: str) -> Path:
    """Fine-tunes a task's teacher and writes it whole as an adapter; returns its folder."""
    chosen = profiles.profile("reviews")
    data, backbone = profiles.data_for(task, chosen), profiles.backbone_for(chosen)
    budget = chosen.teacher
    full = teachers.fine_tuned(backbone, data, budget)
    config = peft.LoraConfig(task_type="SEQ_CLS", **LORA)
    model = peft.get_peft_model(data.task.load_model(backbone), config)
    fill(model, full.model)
    target = teachers.ADAPTERS / task
    with staged_folder(target, replace=True) as partial:
        model.save_pretrained(partial, save_embedding_layers=False)
        (partial / "README.md").unlink(missing_ok=True)
        about = partial / "adapter_config.json"  # names where the backbone lay
        said = json.loads(about.read_text()) | {"base_model_name_or_path": teachers.MINILM_HUB}
        write_json(about, said)
        file = partial / "adapter_model.safetensors"
        save_file({name: t.half() for name, t in load_file(file).items()}, file)
        write_json(partial / "made_from.json", {
            "backbone": teachers.weights_id(backbone), "data": data.fingerprint,
            "source": data.source, "budget": asdict(budget), "seed": 0,
            "rank": {"linear": RANK, "words": WORD_RANK},
        })  # fmt: skip
    test = data.evaluation["test"]
    splits = {"test": test, "first 100": test.select(range(100))}
    teacher = teachers.shipped(backbone, data)
    score = evaluate(teacher.model, teacher.tokenizer, data, budget.max_length, splits)
    write_json(target / "score.json", score)
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    print(f"{task}: {json.dumps(score)}, {size:.2f} MB at {target}")
    return target


def confidence(teacher: teachers.Teacher, data: TaskData) -> float | None:
    """The mean share that a teacher gives the class it chooses, on the test rows; of classes."""
    if data.task.num_labels < 2:
        return None
    rows, length = data.evaluation["test"], profiles.profile("reviews").teacher.max_length
    logits = predict(teacher.model, teacher.tokenizer, rows, length)
    return float(torch.from_numpy(logits).softmax(-1).amax(-1).mean())


def compare(task: str, seeds: range = range(3)) -> None:
    """Scores of fully fine-tuned teachers on the adapter's test rows, and how sure both are."""
    chosen = profiles.profile("reviews")
    data, backbone = profiles.data_for(task, chosen), profiles.backbone_for(chosen)
    shipped = teachers.shipped(backbone, data)
    scores, sure = [], {"adapter": confidence(shipped, data), "full": []}
    for seed in seeds:
        full = teachers.fine_tuned(backbone, data, chosen.teacher, seed)
        length = chosen.teacher.max_length
        scores.append(evaluate(full.model, full.tokenizer, data, length)["test"]["score"])
        sure["full"].append(confidence(full, data))
        found = {"seeds": list(seeds)[: len(scores)], "scores": scores, "confidence": sure}
        write_json(teachers.ADAPTERS / task / "full.json", found)
        print(f"{task}, fully fine-tuned, seed {seed}: {scores[-1]:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", choices=["reviews", "ratings"], action="append")
    parser.add_argument("--full", action="store_true", help="measure fully fine-tuned ones")
    options = parser.parse_args()
    for name in options.task or ["reviews", "ratings"]:
        compare(name) if options.full else make(name)
