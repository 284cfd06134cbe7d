"""Training one stage: a ``transformers.Trainer`` whose loss compares a student with its teacher.

Resume, mixed precision, many processes, progress bars and logging come with ``Trainer``. Batches
are grouped by length and padded to their own longest row.
"""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from xtclib import attention
from xtclib.bert import encoder_layers
from xtclib.distillation import terms as matching
from xtclib.distillation.objective import Objective, distillation_loss
from xtclib.distillation.terms import Reader
from xtclib.tasks.evaluation import evaluate
from xtclib.tasks.glue import Split, TaskData
from xtclib.tasks.rows import LengthGroupedSampler, Rows, collate
from xtclib.techniques.base import Technique
from xtclib.training.budget import Budget
from xtclib.training.callbacks import (
    PRINTERS,
    PROJECTIONS,
    _InTurn,
    _KeepBest,
    _Progress,
    _Steps,
    _StopOnDivergence,
    only,
    turn,
)
from xtclib.training.device import bf16_is_fast, default_device, keep_freed_memory


class DistillationTrainer(Trainer):
    """Trains a student by an objective, with a frozen teacher where the objective needs one.

    The teacher is put in eval mode, runs without gradients, and keeps its linear weights in the
    training precision so that they are not cast again at every step.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        objective: Objective,
        teacher: PreTrainedModel | None = None,
        sampler: Sampler | None = None,
        bf16: bool = False,
        techniques: Sequence[Technique] = (),
        **kwargs,
    ) -> None:
        # One process has one accelerate state, and refuses a second precision: a bf16 Trainer that
        # ran earlier in the same notebook must not stop this one.
        AcceleratorState._reset_state()
        super().__init__(model=model, **kwargs)
        # Autocast is entered here rather than through `args.bf16`, whose wrapper would copy every
        # hidden state and score to fp32 and back.
        self.bf16 = bf16
        # The loss is a mean over the batch: let Trainer divide it under gradient accumulation.
        self.loss_is_scaled_for_ga = False
        self.objective, self._sampler, self.techniques = objective, sampler, techniques
        self.terms: dict[str, float] = {}
        self._counted = 0  # batches in `terms`
        self.teacher, self._pairs = None, {}
        if objective.needs_teacher:
            if teacher is None:
                raise ValueError("this objective compares with a teacher, but none was given")
            objective.check(model, teacher)
            self._pairs = objective.pairs(model, teacher)
            self.teacher = prepare_teacher(teacher, self.args.device, bf16)
            self._read_teacher = Reader(self.teacher, objective.reads)
        self._read = Reader(model, objective.reads, bf16)

    def create_optimizer(self, model=None):
        """Trainer's, with a group of its own for the scores of masks and gates: a faster rate."""
        optimizer = super().create_optimizer(model)
        rates: dict[float | None, list] = {}
        for module in self.model.modules():
            if getattr(module, "scores", None) is not None:
                rates.setdefault(module.score_learning_rate, []).append(module.scores)
        apart = {id(scores) for found in rates.values() for scores in found}
        for group in optimizer.param_groups if rates else ():
            group["params"] = [p for p in group["params"] if id(p) not in apart]
        rates.pop(None, None)  # scores that their technique moves itself
        for rate, found in rates.items():
            optimizer.add_param_group({"params": found, "lr": rate, "weight_decay": 0.0})
        return optimizer

    def _get_train_sampler(self, train_dataset=None):
        return self._sampler or super()._get_train_sampler(train_dataset)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        teacher = None
        if self.teacher is not None:
            # Not inference mode: its tensors cannot be saved for the student's backward.
            with torch.no_grad(), self._autocast():
                teacher = self._read_teacher(self.teacher, **inputs)
        with self._autocast():
            student = self._read(model, **inputs)
        student.logits = student.logits.float()
        terms = distillation_loss(
            self.objective, student, teacher, labels, inputs["attention_mask"], self._now(),
            getattr(self.model, PROJECTIONS, None),
        )  # fmt: skip
        penalties = [t.penalty(model) for t in self.techniques]
        if any(penalty is not None for penalty in penalties):
            terms["penalty"] = sum(penalty for penalty in penalties if penalty is not None)
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value.detach()
        self._counted += 1
        loss = sum(terms.values())
        return (loss, student.output) if return_outputs else loss

    def close(self) -> None:
        """Leaves the student as an ordinary model, without hooks."""
        self._read.close()

    def _now(self) -> dict[str, list]:
        """The pairs of states that count in this step: all, or those of one layer."""
        if not self.objective.progressive:
            return self._pairs
        step, total = self.state.global_step, self.state.max_steps
        return only(self._pairs, turn(step, total, len(encoder_layers(self.model))))

    def _autocast(self):
        if not self.bf16:
            return contextlib.nullcontext()
        return torch.autocast(self.args.device.type, dtype=torch.bfloat16)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds each term's mean since the last log."""
        if "loss" in logs and self.terms:
            logs |= {
                f"loss_{name}": float(value) / self._counted for name, value in self.terms.items()
            }
            self.terms, self._counted = {}, 0
        super().log(logs, *args, **kwargs)


def prepare_teacher(teacher: PreTrainedModel, device, bf16: bool) -> PreTrainedModel:
    """A frozen copy of a teacher in eval mode, its linear weights in the training precision."""
    teacher = attention.use(copy.deepcopy(teacher)).to(device).eval().requires_grad_(False)
    if bf16:
        for module in teacher.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    return teacher


def train_stage(
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TaskData,
    objective: Objective,
    budget: Budget,
    folder: str | Path,
    teacher: PreTrainedModel | None = None,
    seed: int = 0,
    precision: str = "auto",
    progress: bool = True,
    finalize: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
    device: str | None = None,
    checkpoints: int = 5,
    techniques: Sequence[Technique] = (),
) -> tuple[PreTrainedModel, dict]:
    """Trains ``student`` and returns it with notes on the training; resumes in ``folder``.

    ``precision``: ``auto`` (bf16 autocast where the processor has it), ``bf16`` or ``fp32``.
    A folder that holds a checkpoint of the same run is continued from there, to the same result.
    ``techniques`` are those applied in this stage: their schedules and penalties run along.
    Raises ``FloatingPointError`` if the loss diverges, ``ValueError`` for an unknown precision.
    """
    if precision not in ("auto", "bf16", "fp32"):
        raise ValueError(f"unknown precision {precision!r}: choose 'auto', 'bf16' or 'fp32'")
    folder = Path(folder)
    device = device or default_device()
    keep_freed_memory()
    bf16 = precision == "bf16" or (precision == "auto" and bf16_is_fast(device))
    train, held_out = _cut_held_out(data.train, budget, seed)
    rows = Rows.tokenize(train, tokenizer, budget.max_length)
    total = budget.total_steps(len(rows))
    if budget.dropout is not None:
        set_dropout_(student, budget.dropout)
    set_seed(seed)
    args = TrainingArguments(
        output_dir=str(folder),
        max_steps=total,
        per_device_train_batch_size=budget.batch_size,
        learning_rate=budget.learning_rate,
        weight_decay=budget.weight_decay,
        max_grad_norm=budget.clip,
        warmup_steps=round(budget.warmup * total),
        lr_scheduler_type="linear",
        use_cpu=device == "cpu",
        seed=seed,
        data_seed=seed,
        save_strategy="steps" if checkpoints else "no",
        save_steps=max(-(-total // max(checkpoints, 1)), 1),
        save_total_limit=1,
        logging_steps=max(total // 20, 1),
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=not progress,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=device != "cpu",
    )
    callbacks: list[TrainerCallback] = [_StopOnDivergence(), _Steps(techniques)]
    best = None
    # A stage of layers alone does not train the answer, by which checkpoints are told apart.
    if budget.keep != "last" and (objective.labels or objective.logits):
        splits = {"held-out": held_out} if budget.keep == "held-out" else data.evaluation

        def scored(model: nn.Module) -> float:
            model = finalize(copy.deepcopy(model))
            found = evaluate(model, tokenizer, data, budget.max_length, splits)
            return float(np.mean([s["score"] for s in found.values()]))

        settled = max((t.settled for t in techniques), default=0.0)
        best = _KeepBest(max(total // budget.evaluations, 1), folder, scored, settled)
        callbacks.append(best)
    if objective.progressive:
        callbacks.append(_InTurn())
    if objective.needs_teacher and teacher is not None:
        objective.check(student, teacher)
        found = matching.projections(objective.matches, student, teacher)
        setattr(student, PROJECTIONS, found)  # so that they are saved and resumed with it
    regression = data.task.is_regression
    trainer = DistillationTrainer(
        student,
        objective,
        teacher,
        LengthGroupedSampler(rows.lengths, budget.batch_size, seed),
        bf16,
        techniques,
        args=args,
        train_dataset=rows,
        callbacks=callbacks,
        data_collator=lambda batch: collate(batch, tokenizer.pad_token_id, regression),
    )
    for callback in list(trainer.callback_handler.callbacks):  # one bar, no tables in notebooks
        if type(callback).__name__ in PRINTERS:
            trainer.remove_callback(callback)
    if progress:
        trainer.add_callback(_Progress)
    for partial in folder.glob("checkpoint-*"):  # the state is written last
        if not (partial / "trainer_state.json").is_file():
            shutil.rmtree(partial)
    checkpoint = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        if best is not None and best.weights.exists():
            student.load_state_dict(load_file(best.weights))
    finally:
        trainer.close()
        if hasattr(student, PROJECTIONS):
            delattr(student, PROJECTIONS)
    notes = {
        "steps": total,
        "rows": len(rows),
        "precision": "bf16" if bf16 else "fp32",
        "device": device,
        "keep": budget.keep,
        "resumed": checkpoint is not None,
        "losses": [
            {k: round(v, 6) for k, v in entry.items() if k == "step" or k.startswith("loss")}
            for entry in trainer.state.log_history
            if "loss" in entry
        ],
    }
    if best is not None:
        notes["best"] = json.loads(best.note.read_text())
    return student.eval(), notes


def set_dropout_(model: nn.Module, probability: float) -> nn.Module:
    """Sets every dropout of a model, in place, and returns it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
    return model


def _cut_held_out(train: Split, budget: Budget, seed: int) -> tuple[Split, Split | None]:
    """For ``keep='held-out'``: a twentieth of the training rows, at most 1000, kept apart."""
    if budget.keep != "held-out":
        return train, None
    count = min(max(len(train) // 20, 1), 1000)
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    return train.select(order[count:]), train.select(order[:count])
