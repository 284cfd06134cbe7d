"""Factorization as a technique: which matrices become two, of what rank, nearest in what sense."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from xtclib.bert import encoder_linears, replace_module_
from xtclib.config import Count, Share, config, short
from xtclib.tasks.rows import Calibration
from xtclib.techniques import measured
from xtclib.techniques.base import (
    Technique,
    check_finite,
    check_plain,
    needs,
    refuse_packed,
    register,
    word_table,
)
from xtclib.techniques.factorization.decompositions import (
    Spectrum,
    allocate,
    break_even,
    check_rank,
    rank_for,
    svd,
    weighted_svd,
    whitened_svd,
)
from xtclib.techniques.factorization.layers import LowRankEmbedding, LowRankLinear
from xtclib.techniques.sharing.layers import Again


@register
@config
class Factorize(Technique):
    """Writes every matrix of the encoder as a product of two thin ones, ``W ≈ up·down``.

    Of one of: ``rank``; ``share``, the part of each matrix's values that its factors hold (half
    unless told); ``energy``, the part of ``Σ σ²`` that stays. ``allocate: sensitivity`` gives the
    share to the whole encoder and divides it by how far the answers move when one matrix alone is
    factorized. ``criterion``: ``svd``; ``fisher``, by the task's gradients; ``data``, by the
    inputs. ``words``: the share of the word table that stays, as a narrower table and a matrix.
    A matrix whose factors would hold as much as itself stays whole. List it after what cuts parts
    and before ``quantize`` and ``sparsify``.

    Sources: :mod:`.decompositions`; for a table Lan et al. 2020 (ALBERT), arXiv:1909.11942,
    section 3.1.
    """

    name: ClassVar[str] = "factorize"
    family: ClassVar[str] = "factorized"
    reshapes: ClassVar[bool] = True
    percent: ClassVar[str | None] = "share"
    criterion: Literal["svd", "fisher", "data"] = "svd"
    share: Share | None = None
    rank: Count | None = None
    energy: Share | None = None
    allocate: Literal["evenly", "sensitivity"] = "evenly"
    words: Share | None = None
    stored = True

    def __post_init__(self) -> None:
        given = {n: v for n in ("share", "rank", "energy") if (v := getattr(self, n)) is not None}
        if len(given) > 1:
            raise ValueError(
                f"factorize takes share, rank or energy, one of them; received {given}"
            )
        if self.allocate == "sensitivity" and given and self.share is None:
            raise ValueError(f"allocate: sensitivity divides a share, received {given}: give share")

    @property
    def looks_at(self) -> int:
        reads = self.criterion != "svd" or self.allocate == "sensitivity"
        return Calibration.rows if reads else 0

    @property
    def _share(self) -> float:
        return self.share or 0.5

    def apply(self, model: PreTrainedModel, data: Calibration | None = None,
              spectra: dict[str, Spectrum] | None = None) -> PreTrainedModel:  # fmt: skip
        """``spectra``: those of :meth:`spectra`, where they were found before: they take long."""
        refuse_packed(model)
        if any(isinstance(module, LowRankLinear) for module in model.modules()):
            raise ValueError("the model is factorized already: one factorize takes all that goes")
        check_plain(model, self.name, Again)
        check_finite(model, "cannot factorize this model")
        model = copy.deepcopy(model)
        linears = encoder_linears(model)
        for linear in linears.values():
            check_rank(self.rank, *linear.weight.shape)
        spectra = spectra or self.spectra(model, data)
        for name, rank in self._ranks(model, spectra, data).items():
            linear = linears[name]
            if rank < break_even(*linear.weight.shape):
                new = LowRankLinear.of(*spectra[name].factors(rank), linear.bias)
                replace_module_(model, name, new.train(linear.training))
        if self.words is not None:
            table = word_table(model, self.name)
            rows, up = svd(table.weight.detach()).factors(rank_for(self.words, *table.weight.shape))
            model.set_input_embeddings(LowRankEmbedding.of(rows, up.T, table.padding_idx))
        return model

    def spectra(
        self, model: PreTrainedModel, data: Calibration | None = None
    ) -> dict[str, Spectrum]:
        """The SVD of each matrix of the encoder in the criterion's metric, by its full name."""
        weights = {name: linear.weight.detach() for name, linear in encoder_linears(model).items()}
        if self.criterion == "svd":
            return {name: svd(weight) for name, weight in weights.items()}
        rows = needs(data, f"factorize by {self.criterion}")
        if self.criterion == "fisher":
            importance = measured.fisher(model, rows.batches(), rows.data.task)
            return {
                name: weighted_svd(weight, importance[name]) for name, weight in weights.items()
            }
        moments = measured.second_moments(model, rows.batches())
        return {name: whitened_svd(weight, moments[name]) for name, weight in weights.items()}

    def _ranks(self, model: PreTrainedModel, spectra: dict[str, Spectrum],
               data: Calibration | None) -> dict[str, int]:  # fmt: skip
        shapes = {name: linear.weight.shape for name, linear in encoder_linears(model).items()}
        if self.energy is not None:
            return {name: one.rank_of(self.energy) for name, one in spectra.items()}
        ranks = {name: self._rank(*shape) for name, shape in shapes.items()}
        if self.allocate == "evenly":
            return ranks
        rows = needs(data, "allocate: sensitivity")
        changed = {n: torch.matmul(*one.factors(ranks[n])) for n, one in spectra.items()}
        far = measured.moved(model, changed, rows.batches(), rows.data.task)
        lost = {name: max(float(one.tail()[ranks[name]]), 1e-30) for name, one in spectra.items()}
        found = allocate(list(spectra.values()), [(*shapes[n],) for n in spectra], self._share,
                         [far[name] / lost[name] for name in spectra])  # fmt: skip
        return dict(zip(spectra, found, strict=True))

    def _rank(self, rows: int, columns: int) -> int:
        return self.rank or rank_for(self._share, rows, columns)

    def finalize(self, model: PreTrainedModel) -> PreTrainedModel:
        kinds = (LowRankLinear, LowRankEmbedding)
        found = {n: m.rank for n, m in model.named_modules() if isinstance(m, kinds)}
        model.config.ranks = found
        return model

    def rebuild(self, model: PreTrainedModel) -> None:
        ranks = getattr(model.config, "ranks", None)
        if not isinstance(ranks, dict):
            raise ValueError(f"config.json says ranks={short(ranks)}, expected names with numbers")
        places = dict(model.named_modules())
        for name, rank in ranks.items():
            module = places.get(name)
            most = min(module.weight.shape) if isinstance(module, (nn.Linear, nn.Embedding)) else 0
            if type(rank) is not int or not 1 <= rank <= most:
                given = f"config.json says rank {short(rank)} of {short(name)}"
                raise ValueError(f"{given}, expected 1 to {most}: copy the artefact again")
            kind = LowRankLinear if isinstance(module, nn.Linear) else LowRankEmbedding
            replace_module_(model, name, kind.like(module, rank))

    outline = rebuild

    def plan(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.energy is not None:
            raise ValueError("which ranks keep an energy is in the weights: plan with a share")
        names = {module: name for name, module in model.named_modules()}
        ranks = {n: self._rank(*la.weight.shape) for n, la in encoder_linears(model).items()}
        if self.words is not None:
            table = word_table(model, self.name)
            ranks[names[table]] = rank_for(self.words, *table.weight.shape)
        model.config.ranks = ranks
        self.rebuild(model)
        return model
