"""What several test modules make up."""

import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from xtclib.recipes.recipe import from_dict
from xtclib.records import Record
from xtclib.training.trainer import Lesson, Run, train


def taught(student, tokenizer, data, objective, budget, folder, teacher=None, techniques=(),
           finalize=lambda model: model, **run):  # fmt: skip
    """`train` by positions, quietly, on the CPU and in fp32: a student and its notes."""
    lesson = Lesson(data, tokenizer, budget, objective, teacher, techniques, finalize)
    run = {"precision": "fp32", "device": "cpu", "progress": False, **run}
    return train(student, lesson, Run(folder, **run))


def made(recipe="xtc-1bit", score=90.0, size=500_000, task="sst2", budget="A", seed=0, **other):
    """A made-up record: nothing in it was measured."""
    times = {"teacher": {"low": 9.0, "median": 10.0, "high": 12.0},
             "student": {"low": 4.0, "median": 5.0, "high": 6.0}}  # fmt: skip
    values = dict(
        recipe=recipe, recipe_hash="0", task=task, profile="mini", budget=budget, seed=seed,
        metrics={"dev": {"accuracy": score, "score": score}},
        teacher_metrics={"dev": {"accuracy": 94.0, "score": 94.0}},
        majority={"dev": {"accuracy": 50.0, "score": 50.0}},
        untrained={"dev": {"accuracy": 52.0, "score": 52.0}}, bytes=size, folder_bytes=size,
        teacher_bytes=10_000_000, parameters=1, teacher_parameters=2, flops=1, teacher_flops=2,
        latency={"batch": 8, "length": 32, "repeats": 10, "device": "cpu", "threads": 1,
                 "milliseconds": times},
        seconds=1.0,
        stages=[{"name": "one", "steps": 300, "losses": [
            {"step": s, "loss": 3 / s, "loss_logits": 1 / s, "loss_hidden_states": 1 / s**0.5,
             "loss_attention_scores": 0.0} for s in (1, 150, 300)]}],
        data="made up", data_fingerprint="0", teacher_key="0", left_out="", selected_on="last",
        note="", versions={}, machine={}, commit="", date="", training_budget={"steps": 300},
    )  # fmt: skip
    return Record(**values | other)


def one_layer():
    """xtc-1bit after all layers but one are gone: what it makes is exported soon."""
    bits = {"weights": "binary", "embeddings": "binary-row", "activations": "int8-token"}
    techniques = [{"layer_reduction": {"layers": 1}}, {"quantize": bits}]
    objective = {"logits": 1, "attention_scores": 1, "hidden_states": 1}
    stage = {"one": {"techniques": techniques, "objective": objective}}
    return from_dict("one-layer", {"stages": [stage]})


def roberta(**other):
    """A random RoBERTa of one layer and one segment, whose 42 positions read 40 tokens."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                 intermediate_size=16, max_position_embeddings=42, type_vocab_size=1)  # fmt: skip
    return RobertaForSequenceClassification(RobertaConfig(**sizes | other)).eval()


def far(model, teacher, rows):
    """The squared error of a model's logits against its teacher's, over calibration rows."""
    total = 0.0
    for batch in rows.batches():
        batch.pop("labels")
        with torch.no_grad():
            total += float((model(**batch).logits - teacher(**batch).logits).square().sum())
    return total
