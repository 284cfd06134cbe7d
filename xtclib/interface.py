"""What every technique offers, and what it may ask of the task it is applied for."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xtclib.batches import Calibration
from xtclib.quantizers import Scheme


class Technique:
    """The interface; every method but ``apply`` has a default that does nothing.

    Schedules are two plain functions of the step, ``before_step`` and ``after_step``, rather than
    a ``TrainerCallback``: any training loop can call them.
    """

    name: ClassVar[str]
    prunes: ClassVar[bool] = False  # removes weights, heads, neurons, width or vocabulary

    def apply(self, model: PreTrainedModel, data: Calibration | None = None) -> PreTrainedModel:
        """The model with the technique on, ready to train. The input model is left as it is."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is applied")

    def reads(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, data: Calibration
    ) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """A teacher and a tokenizer that fit the student, where the technique changes token ids."""
        return model, tokenizer

    def before_step(self, model: PreTrainedModel, step: int, total: int) -> None:
        """Called before every optimizer step, 0-based, of ``total``."""

    def after_step(self, model: PreTrainedModel, step: int, total: int, rate: float) -> None:
        """Called after every optimizer step, with the learning rate it was done at."""

    def penalty(self, model: PreTrainedModel) -> Tensor | None:
        """What the technique adds to the loss."""
        return None

    def for_seed(self, seed: int) -> Technique:
        """The same technique for a run of this seed: what it draws by chance, it draws anew."""
        return replace(self, seed=self.seed + seed) if hasattr(self, "seed") else self

    @property
    def settled(self) -> float:
        """The share of the run after which the student is as small as it will be."""
        return 0.0

    @property
    def learns(self) -> bool:
        """Whether it has scores or penalties of its own, which need the Trainer's loss."""
        return False

    @property
    def starts_anew(self) -> bool:
        """Whether it draws weights that no pre-training has seen."""
        return False

    @property
    def stored(self) -> bool:
        """Whether a file needs to know of the technique to be read."""
        return False

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        """The trained model as it is stored."""
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        """Gives an empty model the finalized structure, in place, before weights are loaded."""

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        """An empty model with the structure that the technique will leave it, for its size."""
        self.rebuild(model)
        return model

    def to_dict(self) -> dict:
        """``{name: fields}``: what recipes and artefacts hold."""
        return {self.name: {f.name: _plain(getattr(self, f.name)) for f in fields(self)}}


def check_numbers(config: Technique, *names: str) -> None:
    """Raises ``ValueError`` for a field that is neither a number nor ``None``."""
    for name in names:
        value = getattr(config, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{name} of {config.name} must be a number, received {value!r}")


def check_whole(config: Technique, *names: str) -> None:
    """Raises ``ValueError`` for a field that is no whole number from 0."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(
                f"{name} of {config.name} is a whole number from 0, received {value!r}"
            )


def check_flags(config: Technique, *names: str) -> None:
    """Raises ``ValueError`` for a field that is not true or false: ``"no"`` would count as true."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, bool):
            raise ValueError(f"{name} of {config.name} must be true or false, received {value!r}")


def needs(data: Calibration | None, what: str) -> Calibration:
    """``data``, or a ``ValueError`` that says what it is needed for."""
    if data is None:
        raise ValueError(
            f"{what} looks at the task's rows: give `apply` an `xtclib.batches.Calibration` "
            "(`compress` does)"
        )
    return data


def _plain(value):
    if isinstance(value, Scheme):
        return {
            "scheme": str(value).partition("-")[0],
            **{
                k: v
                for k, v in asdict(value).items()
                if k in ("granularity", "groups", "clip", "learned") and v is not None
            },
        }
    return list(value) if isinstance(value, tuple) else value
