"""Pruning to a budget: the best that fits, put right by least squares, nothing trained."""

import copy
from itertools import product

import pytest
import torch
from made import far
from torch.nn.utils import parameters_to_vector

from xtclib.artefact import format
from xtclib.bert import encoder_layers, part
from xtclib.costs import breakdown
from xtclib.tasks.classification import CLASSES
from xtclib.tasks.rows import Calibration
from xtclib.techniques import PruneHeads, PruneToBudget, measured
from xtclib.techniques.pruning import budget as b
from xtclib.techniques.pruning import importance, surgery
from xtclib.techniques.pruning.surgery import HEADS, NEURONS


@pytest.fixture
def rows(data, tokenizer):
    return Calibration(data, tokenizer, 16, rows=24)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fisher_is_of_slopes_row_by_row(make_bert, rows):
    model = make_bert(layers=1).double()
    batches = [next(rows.batches())]
    for part_, name in ((HEADS, "attention output"), (NEURONS, "feed-forward out")):
        (block,) = importance.fisher(model, batches, CLASSES)[part_]
        matrix = part(encoder_layers(model)[0], name)
        count = len(block)
        slopes = torch.zeros(8, count, dtype=torch.float64)
        for unit in range(0, count, max(count // 4, 1)):
            near = []
            for step in (1e-5, -1e-5):
                new = copy.deepcopy(model)
                weight = part(encoder_layers(new)[0], name).weight
                weight.data.view(len(weight), count, -1)[:, unit] *= 1 + step
                batch = dict(batches[0])
                labels = batch.pop("labels")
                logits = new(**batch).logits
                near.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
            slopes[:, unit] = ((near[0] - near[1]) / 2e-5).detach()
        wanted = slopes.T @ slopes / 8
        seen = slopes.abs().sum(0) > 0
        assert seen.any() and matrix.in_features % count == 0
        found = block[seen][:, seen]
        assert found.numpy() == pytest.approx(wanted[seen][:, seen].numpy(), rel=1e-3, abs=1e-9)


def test_labels_may_be_drawn_from_the_answers(make_bert, rows):
    model, batches = make_bert(layers=1), list(rows.batches())
    scrambled = [{**each, "labels": 1 - each["labels"]} for each in batches]
    for seed in (0, None):
        own, other = (
            importance.fisher(model, each, CLASSES, seed) for each in (batches, scrambled)
        )
        for part_ in (HEADS, NEURONS):
            assert torch.equal(own[part_][0], other[part_][0]) == (seed is not None)


def test_the_choice_is_the_best_that_fits():
    blocks = {HEADS: [torch.diag(drawn(3, seed=i).square()) for i in range(2)],
              NEURONS: [torch.diag(drawn(4, seed=i).square()) for i in range(2, 4)]}  # fmt: skip
    costs = {HEADS: [30, 20, 10], NEURONS: [40, 30, 20, 10]}
    kept = b.chosen(blocks, costs, 0.5)

    def lost(block, keep):
        return float(block.diagonal().sort().values[: len(block) - keep].sum())

    def price(part_, keep):
        return costs[part_][len(costs[part_]) - keep]

    parts = [(part_, block) for part_ in blocks for block in blocks[part_]]
    best = min(
        sum(lost(block, n) for (_, block), n in zip(parts, counts, strict=True))
        for counts in product(*(range(1, len(block) + 1) for _, block in parts))
        if sum(price(part_, n) for (part_, _), n in zip(parts, counts, strict=True)) <= 70
    )
    counts = kept[HEADS] + kept[NEURONS]
    assert sum(lost(block, n) for (_, block), n in zip(parts, counts, strict=True)) == best
    assert sum(price(part_, n) for (part_, _), n in zip(parts, counts, strict=True)) <= 70
    with pytest.raises(ValueError, match=r"fit into 10% of the encoder: the least .* 28.6%"):
        b.chosen(blocks, costs, 0.1)


def test_an_exchange_never_makes_it_worse():
    for seed in range(20):
        root = drawn(8, 8, seed=seed)
        f = root @ root.T

        def lost(stay, f=f):
            gone = torch.ones(8, dtype=torch.float64)
            gone[stay] = 0
            return float(gone @ f @ gone)

        plain = f.diagonal().argsort(descending=True)[:4].sort().values.tolist()
        stay = b.rearranged(f, 4)
        assert lost(stay) <= lost(plain) + 1e-9
        assert stay == sorted(set(stay)) and len(stay) == 4


def test_masks_and_weights_are_least_squares():
    x, weight = drawn(300, 6), drawn(4, 6, seed=1)
    y = drawn(300, 4, seed=2) + x @ (weight * torch.tensor([1, 1, 0.5, 0.5, 2, 2.0])).T
    moment, wanted = x.T @ x / 300, y.T @ x / 300
    parts = torch.stack([x[:, i : i + 2] @ weight[:, i : i + 2].T for i in (0, 2, 4)], -1)
    best = torch.linalg.lstsq(parts.reshape(-1, 3), y.reshape(-1)).solution
    assert b.mask_of(weight, moment, wanted, 2) == pytest.approx(best, abs=0.02)
    new = measured.nearest(weight, moment, wanted, 0.01)
    assert new == pytest.approx(torch.linalg.lstsq(x, y).solution.T, abs=0.05)
    wild = b.mask_of(weight * 1e-3, moment, wanted, 2)
    assert torch.equal(wild, torch.ones(3, dtype=torch.float64))  # factors of hundreds


@pytest.mark.parametrize("labels", ["given", "drawn"])
def test_what_stays_is_put_right(labels, make_bert, rows):
    teacher = make_bert(layers=3)
    before = parameters_to_vector(teacher.parameters()).clone()
    lost = {}
    for tune in ("none", "masks", "weights"):
        model = PruneToBudget(0.6, labels=labels, tune=tune, rows=64, length=16).apply(
            teacher, rows
        )
        lost[tune] = far(model, teacher, rows)
    assert torch.equal(parameters_to_vector(teacher.parameters()), before)
    assert lost["weights"] < 0.8 * lost["none"] and lost["weights"] < lost["masks"]
    assert surgery.uneven(model) is not None


def test_operations_are_within_the_budget_and_the_file_opens(make_bert, rows, tokenizer, tmp_path):
    teacher = make_bert(layers=3)
    technique = PruneToBudget(0.5, rows=16, length=16)
    model = format.finalize(technique.apply(teacher, rows), [technique])

    def encoder(m):
        per = {HEADS: 4 * 16 * 32 * 16 + 2 * 16**2 * 16, NEURONS: 2 * 16 * 32}
        return sum(per[HEADS] * w[HEADS] + per[NEURONS] * w[NEURONS] for w in surgery.widths(m))

    assert 0.4 < encoder(model) / encoder(teacher) <= 0.5
    assert breakdown.parameters(model) < breakdown.parameters(teacher)
    folder = format.save(model, tokenizer, tmp_path / "pruned")
    format.check_reopens(model, folder)


def test_all_of_it_is_the_model_itself(make_bert, rows):
    teacher = make_bert(layers=2)
    whole = PruneToBudget(1.0, tune="none", rows=8).apply(teacher, rows)
    assert far(whole, teacher, rows) == 0


def test_a_budget_of_time_is_of_this_machine(make_bert, rows):
    teacher = make_bert(layers=2)
    costs = b.timed(teacher, 2, 16)
    assert len(costs[HEADS]) == 2 and len(costs[NEURONS]) == 64
    assert min(costs[HEADS] + costs[NEURONS]) >= 1
    few = PruneToBudget(0.01, of="milliseconds", rows=8)
    with pytest.raises(ValueError, match="no heads and neurons fit into 1% of the encoder"):
        few.apply(teacher, rows)


def test_layers_that_are_not_alike_are_refused(make_bert, rows):
    uneven = PruneHeads(0.5, scope="model").apply(make_bert(layers=2))
    with pytest.raises(ValueError, match="prune_to_budget comes before heads, neurons or width go"):
        PruneToBudget().apply(uneven, rows)


def test_a_model_goes_on_as_it_was_given(make_bert, rows):
    teacher = make_bert(layers=1)
    assert PruneToBudget(rows=8).apply(teacher.train(), rows).training
    assert not PruneToBudget(rows=8).apply(teacher.eval(), rows).training


def test_rows_are_needed(make_bert):
    with pytest.raises(ValueError, match="prune_to_budget looks at the task's rows"):
        PruneToBudget().apply(make_bert(layers=1))
