"""Training: a ``transformers.Trainer`` whose loss compares a student with its teacher.

:func:`train` takes a student, what it is taught (:class:`Lesson`) and how it is run (:class:`Run`).
Resume, mixed precision, many processes, progress bars and logging come with ``Trainer``. Batches
are grouped by length and padded to their own longest row.
"""

from __future__ import annotations

import copy
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import set_seed
from transformers.utils import SAFE_WEIGHTS_NAME

from xtclib import attention, processes
from xtclib.bert import encoder_layers, is_berts
from xtclib.cache import set_aside, writing
from xtclib.distillation.objective import Objective, distillation_loss
from xtclib.distillation.terms import Reader, Signals, projections
from xtclib.files import SUMS, fault, unknown
from xtclib.tasks.base import Task, TaskData
from xtclib.tasks.classification import CLASSES
from xtclib.tasks.evaluation import evaluate
from xtclib.tasks.rows import LengthGroupedSampler, Split, widened
from xtclib.techniques.base import Seen, Technique
from xtclib.training import callbacks
from xtclib.training.budget import Budget
from xtclib.training.callbacks import PROJECTIONS, KeepBest
from xtclib.training.device import default_device, in_bf16, keep_freed_memory

CHECKPOINTS = 5  # in a run


@dataclass(frozen=True)
class Lesson:
    """What a student is taught: a task's rows, by an objective, for as long as a budget says.

    Without an objective the model gives its own loss. ``techniques`` are those whose schedules and
    penalties run along; ``finalize`` gives a trained model as it will be stored, by which the best
    checkpoint is chosen where the budget keeps that. ``pad``: rows to their batch's ``longest``, or
    to the budget's ``max_length``.
    """

    data: TaskData
    tokenizer: PreTrainedTokenizerBase
    budget: Budget
    objective: Objective | None = None
    teacher: PreTrainedModel | None = None
    techniques: Sequence[Technique] = ()
    finalize: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model
    pad: Literal["longest", "max_length"] = "longest"


@dataclass(frozen=True)
class Run:
    """How a training is run. Checkpoints lie in ``folder``, and a killed one goes on from there.

    ``precision``: ``auto`` (bf16 autocast where the processor has it), ``bf16`` or ``fp32``.
    ``report_to``: an integration of transformers that gets the logs, such as ``tensorboard``.
    Raises ``ValueError`` for an unknown precision or integration, ``ImportError`` for one that is
    not installed.
    """

    folder: Path
    seed: int = 0
    precision: str = "auto"
    device: str | None = None
    progress: bool = True
    report_to: str = "none"

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "fp32"):
            raise unknown("precision", self.precision, ("auto", "bf16", "fp32"))
        callbacks.check_report_to(self.report_to)
        object.__setattr__(self, "folder", Path(self.folder))
        object.__setattr__(self, "device", self.device or default_device())

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16."""
        return in_bf16(self.precision, self.device or default_device())


class DistillationTrainer(Trainer):
    """Trains a student by an objective, with a frozen teacher where the objective needs one.

    Without an objective the model gives its own loss: a dictionary of terms, whose sum it is.
    Projections are parts of the student while it trains, so that they are saved and resumed too.
    """

    def __init__(self, model: nn.Module, objective: Objective | None,
                 teacher: PreTrainedModel | None = None, sampler: Sampler | None = None,
                 bf16: bool = False, techniques: Sequence[Technique] = (), task: Task = CLASSES,
                 **kwargs) -> None:  # fmt: skip
        if objective is None or not objective.needs_teacher:
            teacher = None
        elif teacher is None:
            raise ValueError("this objective compares with a teacher, but none was given")
        else:
            task.check(objective, model, teacher)
            found = projections(objective.matches, model.base_model, teacher.base_model)
            setattr(model, PROJECTIONS, found)
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
        self.task, self.teacher, self._pairs = task, None, {}
        self.terms: dict[str, Tensor] = {}
        self._counted = 0  # batches in `terms`
        if objective is not None and teacher is not None:
            self._pairs = objective.pairs(model, teacher)
            self.teacher = prepare_teacher(teacher, self.args.device, bf16)
            self._read_teacher = Reader(self.teacher, objective.reads)
        self._read = Reader(model, objective.reads, bf16) if objective else None

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
        terms, seen = self._terms(model, dict(inputs))
        penalties = [p for t in self.techniques if (p := t.penalty(model, seen)) is not None]
        if penalties:
            terms["penalty"] = sum(penalties)
        for name, value in terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value.detach()
        self._counted += 1
        return sum(terms.values())

    def _terms(self, model: nn.Module, inputs: dict) -> tuple[dict[str, Tensor], Seen | None]:
        """Every term of the loss on a batch, by name, and the batch as techniques see it."""
        if self.objective is None or self._read is None:
            with self._autocast():
                return model(**inputs), None
        labels, teacher = inputs.pop("labels"), None
        if self.teacher is not None:
            # Not inference mode: its tensors cannot be saved for the student's backward.
            with torch.no_grad():
                teacher, _ = self._shown(self.teacher, self._read_teacher, inputs, labels)
        student, wanted = self._shown(model, self._read, inputs, labels)
        terms = distillation_loss(
            self.objective, student, teacher, wanted, inputs["attention_mask"], self._now(),
            getattr(self.model, PROJECTIONS, None), self.task,
        )  # fmt: skip
        return terms, Seen(student.output, wanted, self.task)

    def _shown(self, model, read: Reader, inputs: dict, labels: Tensor) -> tuple[Signals, Tensor]:
        """What a model shows of a batch, its logits where an answer is wanted, and these labels."""
        with self._autocast(), self.task.answering(model, labels):
            signals = read(model, **inputs)
        logits, labels = self.task.answers(signals.output, labels, inputs["attention_mask"])
        signals.logits = logits.float()
        return signals, labels

    def close(self) -> None:
        """Leaves the student as an ordinary model, without hooks and projections."""
        if self._read is not None:
            self._read.close()
        if hasattr(self.model, PROJECTIONS):
            delattr(self.model, PROJECTIONS)

    def _save(self, output_dir=None, state_dict=None):
        # A checkpoint is weights: of any module, with those that share a place written once.
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        save_model(self.model, str(Path(output_dir) / SAFE_WEIGHTS_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        load_model(self.model, Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)

    def _now(self) -> dict[str, list]:
        """The pairs of states that count in this step: all, or those of one layer."""
        if self.objective is None or not self.objective.progressive:
            return self._pairs
        step, total = self.state.global_step, self.state.max_steps
        state = callbacks.turn(step, total, len(encoder_layers(self.model)))
        return {name: [p for p in pairs if p[0] == state] for name, pairs in self._pairs.items()}

    def _autocast(self):
        return torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.bf16)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """Adds each term's mean since the last log."""
        if "loss" in logs and self.terms:
            logs |= {f"loss_{n}": float(value) / self._counted for n, value in self.terms.items()}
            self.terms, self._counted = {}, 0
        super().log(logs, *args, **kwargs)


def prepare_teacher(teacher: PreTrainedModel, device, bf16: bool) -> PreTrainedModel:
    """A frozen copy of a teacher in eval mode.

    Its linear weights are in the training precision, not to be cast again at every step.
    """
    teacher = copy.deepcopy(teacher).to(device).eval().requires_grad_(False)
    if is_berts(teacher):
        attention.use(teacher)
    if bf16:
        for module in teacher.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    return teacher


def train(student: nn.Module, lesson: Lesson, run: Run) -> tuple[nn.Module, dict]:
    """Trains ``student`` in place and returns it with notes on the training.

    A folder that holds a checkpoint of the same run is continued from there, to the same result.
    Raises ``FloatingPointError`` if the loss diverges, ``ValueError`` for an objective that needs
    another teacher.
    """
    processes.join()
    keep_freed_memory(lesson.budget.batch_size * lesson.budget.max_length)
    taught, held_out = _held_out(lesson.data, lesson.budget, run.seed)
    rows = lesson.data.task.tokenize(taught, lesson.tokenizer, lesson.budget.max_length)
    if lesson.budget.dropout is not None:
        set_dropout_(student, lesson.budget.dropout)
    set_seed(run.seed)
    arguments = _arguments(lesson.budget, run, len(rows))
    best = _best(lesson, run, arguments.max_steps, held_out)
    config = getattr(student, "config", None)
    use_cache = getattr(config, "use_cache", None)
    trainer = _trainer(student, lesson, run, arguments, rows, best)
    checkpoint = processes.agreed(lambda: _last_checkpoint(run.folder))
    try:
        with writing(run.folder):
            trainer.train(resume_from_checkpoint=checkpoint)
        processes.wait()
        if best is not None and best.weights.exists():
            student.load_state_dict(load_file(best.weights))
    finally:
        trainer.close()
        if config is not None and use_cache is not None:  # Trainer's is of training alone
            config.use_cache = use_cache
    return student.eval(), _notes(lesson, run, trainer, best, checkpoint is not None)


def _arguments(budget: Budget, run: Run, rows: int) -> TrainingArguments:
    """A budget and a run in Trainer's words."""
    total = budget.total_steps(rows)
    return TrainingArguments(
        output_dir=str(run.folder), run_name=run.folder.name, max_steps=total,
        per_device_train_batch_size=budget.batch_size, learning_rate=budget.learning_rate,
        weight_decay=budget.weight_decay, max_grad_norm=budget.clip,
        warmup_steps=round(budget.warmup * total), use_cpu=run.device == "cpu", seed=run.seed,
        data_seed=run.seed, save_steps=max(-(-total // CHECKPOINTS), 1),
        logging_steps=max(total // 20, 1), logging_nan_inf_filter=False, report_to=run.report_to,
        disable_tqdm=not run.progress, remove_unused_columns=False,
        dataloader_pin_memory=run.device != "cpu",
        # Several processes share each batch, so that its size does not depend on how many.
        accelerator_config={"split_batches": True},
    )  # fmt: skip


def _best(lesson: Lesson, run: Run, total: int, held_out: Split | None) -> KeepBest | None:
    """What keeps the best checkpoint, by the lesson's own metric, where the budget asks for it."""
    objective = lesson.objective
    answers = objective and (objective.labels or objective.logits)  # layers alone do not tell it
    if not answers or lesson.budget.keep == "last":
        return None
    data, length = lesson.data, lesson.budget.max_length
    splits = data.evaluation if held_out is None else {"held-out": held_out}

    def scored(model: nn.Module) -> float:
        model = lesson.finalize(copy.deepcopy(model))
        found = evaluate(model, lesson.tokenizer, data, length, splits)
        return float(np.mean([s["score"] for s in found.values()]))

    settled = max((t.settled for t in lesson.techniques), default=0.0)
    return KeepBest(max(total // lesson.budget.evaluations, 1), run.folder, scored, settled)


def _trainer(student: nn.Module, lesson: Lesson, run: Run, arguments: TrainingArguments,
             rows: Dataset, best: KeepBest | None) -> DistillationTrainer:  # fmt: skip
    """A Trainer with what runs beside the optimizer, whose batches repeat when it is resumed."""
    objective, task = lesson.objective, lesson.data.task
    beside = [callbacks.StopOnDivergence(), callbacks.Steps(lesson.techniques)]
    beside += [callbacks.Sealed(), *([best] if best else [])]
    beside += [callbacks.InTurn()] if objective and objective.progressive else []
    sampler = LengthGroupedSampler(rows.lengths, lesson.budget.batch_size, run.seed)

    def collate(batch: list[dict]) -> dict[str, Tensor]:
        draw = zlib.crc32(repr((run.seed, sampler.epoch, batch[0])).encode())
        found = task.collate(batch, lesson.tokenizer, draw)
        if lesson.pad == "longest":
            return found
        return widened(found, lesson.budget.max_length, lesson.tokenizer.pad_token_id)

    trainer = DistillationTrainer(
        student, objective, lesson.teacher, sampler, run.bf16, lesson.techniques, task,
        args=arguments, train_dataset=rows, data_collator=collate, callbacks=beside,
    )  # fmt: skip
    for callback in list(trainer.callback_handler.callbacks):  # one bar, no tables in notebooks
        if type(callback).__name__ in callbacks.PRINTERS:
            trainer.remove_callback(callback)
        if getattr(callback, "logging_dir", "") is None:  # TensorBoard's: the run's folder goes
            callback.logging_dir = f"runs/{run.folder.name}"
    if run.progress:
        trainer.add_callback(callbacks.Progress)
    return trainer


def _last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint of a run that was cut off; what was cut off while written goes.

    One that no longer is what was written sets the run aside, to begin anew.
    """
    places = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    whole = [place for place in places if (place / SUMS).is_file()]
    best = folder / callbacks.BEST
    for place in (*whole[-1:], *([best] if best.exists() else ())):
        if why := fault(place):
            set_aside(folder, f"{place.name}, {why}")
            return None
    for place in places:
        if place not in whole:
            shutil.rmtree(place)
    return str(whole[-1]) if whole else None


def _notes(lesson: Lesson, run: Run, trainer: Trainer, best: KeepBest | None, resumed: bool):
    """What a record holds of a training, as a dict."""
    losses = [
        {k: round(v, 6) for k, v in entry.items() if k == "step" or k.startswith("loss")}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    return {
        "steps": trainer.args.max_steps, "rows": len(trainer.train_dataset),
        "precision": "bf16" if run.bf16 else "fp32", "device": run.device,
        "keep": lesson.budget.keep, "resumed": resumed, "losses": losses,
        **({"best": json.loads(best.note.read_text())} if best else {}),
    }  # fmt: skip


def set_dropout_(model: nn.Module, probability: float) -> nn.Module:
    """Sets every dropout of a model, in place, and returns it."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
    return model


def _held_out(data: TaskData, budget: Budget, seed: int) -> tuple[Split, Split | None]:
    """For ``keep='held-out'``: the task's own, or some of the training rows."""
    if budget.keep != "held-out":
        return data.train, None
    return data.train.parted(seed) if data.held_out is None else (data.train, data.held_out)
