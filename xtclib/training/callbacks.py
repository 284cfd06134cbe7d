"""What happens beside the optimizer: schedules, the best checkpoint, progress, divergence."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.integrations import integration_utils
from transformers.trainer_callback import ProgressCallback

from xtclib import processes
from xtclib.bert import encoder_layers
from xtclib.files import seal, staged_folder, unknown, write_json
from xtclib.techniques.base import Technique

BEST = "best"  # of a run's folder
PROJECTIONS = "distillation_projections"  # a student's, while it trains
# By name: importing the notebook's one would need IPython.
PRINTERS = ("PrinterCallback", "ProgressCallback", "NotebookProgressCallback")


def turn(step: int, total: int, depth: int) -> int:
    """Which state is trained at a step, 0-based, of progressive transfer: 0 to ``depth`` in turn.

    >>> [turn(step, 6, 2) for step in range(6)]
    [0, 0, 1, 1, 2, 2]
    """
    return min(step * (depth + 1) // total, depth)


class InTurn(TrainerCallback):
    """Progressive transfer: the embeddings and layers of the student learn one after the other."""

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        parts = [model.base_model.embeddings, *encoder_layers(model), getattr(model, PROJECTIONS)]
        model.requires_grad_(False)
        for part in (parts[turn(state.global_step, state.max_steps, len(parts) - 2)], parts[-1]):
            part.requires_grad_(True)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        model.requires_grad_(True)


class Steps(TrainerCallback):
    """Calls what techniques do before and after each optimizer step."""

    def __init__(self, techniques: Sequence[Technique]) -> None:
        self.techniques = techniques

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        for technique in self.techniques:
            technique.before_step(model, state.global_step, state.max_steps)

    def on_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
        rate = optimizer.param_groups[0]["lr"]
        for technique in self.techniques:
            technique.after_step(model, state.global_step, state.max_steps, rate)


class StopOnDivergence(TrainerCallback):
    """Ends a run whose loss is no longer a number, with an error that says so."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            at, rate = f"the loss became {loss} at step {state.global_step}", args.learning_rate
            raise FloatingPointError(f"{at}: lower the learning rate (now {rate})")


class Sealed(TrainerCallback):
    """Has a checkpoint count once it lies on the disk with its sums; older ones then go.

    None is written of the last step, after which the student itself is kept.
    """

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save &= state.global_step < state.max_steps

    def on_save(self, args, state, control, **kwargs):
        processes.wait()  # each writes a file of its own
        if not processes.leads():
            return
        place = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seal(place)
        for older in place.parent.glob("checkpoint-*"):
            if older != place:
                shutil.rmtree(older)


class KeepBest(TrainerCallback):
    """Scores the finalized student now and then, and keeps the best weights beside the run."""

    def __init__(self, every: int, folder: Path, evaluate: Callable[[nn.Module], float],
                 settled: float) -> None:  # fmt: skip
        self.every, self.folder, self.evaluate, self.settled = every, folder, evaluate, settled
        self.weights, self.note = folder / BEST / "model.safetensors", folder / BEST / "score.json"

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        if state.global_step <= min(round(self.settled * state.max_steps), state.max_steps - 1):
            return  # still on its way to its size: a bigger student may not win
        if not processes.leads():
            return
        best = json.loads(self.note.read_text())["score"] if self.note.exists() else -math.inf
        found = self.evaluate(model)
        if found > best:
            tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
            with staged_folder(self.folder / BEST, replace=True) as partial:
                save_file(tensors, partial / self.weights.name)
                write_json(partial / self.note.name, {"score": found, "step": state.global_step})
                seal(partial)


class Progress(ProgressCallback):
    """Trainer's progress bar with the loss beside it instead of printed lines."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in (logs or {}):
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3g}")

    def on_train_begin(self, args, state, control, **kwargs):
        self.training_bar = tqdm(total=state.max_steps, desc="training", leave=False)
        self.current_step = 0


def check_report_to(name: str) -> None:
    """Raises ``ValueError`` for no integration of transformers, ``ImportError`` for one to install.

    >>> check_report_to("none")
    """
    if name == "none":
        return
    if name not in integration_utils.INTEGRATION_TO_CALLBACK:
        raise unknown("integration", name, ("none", *integration_utils.INTEGRATION_TO_CALLBACK))
    if name not in integration_utils.get_available_reporting_integrations():
        package = name.replace("_", "-")
        raise ImportError(f"{name!r} needs its package: pip install {package}, or choose 'none'")
