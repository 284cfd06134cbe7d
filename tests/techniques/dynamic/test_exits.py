"""Exits: off they change nothing, on they answer a batch as its rows, and who left runs no more."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from encoders import tiny
from made import taught
from transformers import BertForQuestionAnswering

from xtclib.artefact import format
from xtclib.bert import encoder_layers
from xtclib.distillation import Objective
from xtclib.tasks.glue import TASKS
from xtclib.techniques import (
    DeFormer,
    DropTokens,
    EarlyExit,
    LayerReduction,
    PruneHeads,
    Quantize,
    apply_all,
)
from xtclib.techniques.base import Seen
from xtclib.techniques.dynamic import criteria
from xtclib.techniques.dynamic.exits import all_exits
from xtclib.training import Budget

FAMILIES = "BERT RoBERTa DistilBERT MPNet ELECTRA DeBERTa-v2 DeBERTa-v3 ModernBERT".split()
KINDS = "single_label_classification", "regression", "multi_label_classification"


@pytest.fixture
def rows():
    """As many rows as the tiny DeBERTas have relative positions."""
    random = torch.Generator().manual_seed(1)
    mask = (torch.arange(12) < torch.randint(2, 13, (16, 1), generator=random)).long()
    ids = torch.randint(5, 200, (16, 12), generator=random) * mask
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def run(model, rows, threshold, **more):
    model.config.exits["threshold"] = threshold
    return model(**rows, **more)


@torch.no_grad()
def middle(model, rows):
    """A threshold between two of the exits' probabilities, over which half of them are."""
    with all_exits(model):
        return float(model(**rows)["exit_logits"].softmax(-1).amax(-1).quantile(0.5))


def by_probability(model, **other):
    return EarlyExit(criterion="probability", **other).apply(model)


# Batches and rows.


@pytest.mark.parametrize("criterion", criteria.CRITERIA)
def test_never_is_the_whole_model_and_always_the_first_exit(criterion, bert, rows):
    model = EarlyExit(criterion=criterion).apply(bert)
    never, always = run(model, rows, "never"), run(model, rows, "always")
    with all_exits(model):
        seen = model(**rows)
    assert torch.equal(never.logits, bert(**rows).logits)
    assert torch.equal(always.logits, seen["exit_logits"][0])
    assert seen["exit_logits"].shape == (3, 16, 2) and torch.equal(seen.logits, never.logits)
    assert never["layers"].tolist() == [4] * 16 and always["layers"].tolist() == [1] * 16


@pytest.mark.parametrize("pooling", ["first", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_answers_as_its_rows(family, pooling, rows):
    model = by_probability(tiny(family, 200), pooling=pooling)
    threshold = middle(model, rows)
    found = run(model, rows, threshold)
    for row, length in enumerate(rows["attention_mask"].sum(1)):
        alone = run(model, {n: t[row : row + 1, :length] for n, t in rows.items()}, threshold)
        assert (alone.logits[0] - found.logits[row]).abs().max() < 1e-5
        assert alone["layers"].item() == found["layers"][row]
    assert found["layers"].unique().tolist() == [1, 2, 3]
    with torch.no_grad():
        assert torch.equal(model(*rows.values()).logits, found.logits)  # by their places


def test_layers_run_on_the_rows_that_go_on(bert, rows):
    model, seen = by_probability(bert, after=[1, 3]), []
    threshold = middle(model, rows)
    for layer in encoder_layers(model):
        layer.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    left = run(model, rows, threshold)["layers"]
    assert seen == [16, *(int((left > n).sum()) for n in (1, 1, 3))] and seen[1] > seen[3] > 0
    seen.clear()
    run(model, rows, "always")
    assert seen == [16]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_of_the_whole_batch(kind, make_bert, rows):
    bert, random = make_bert(4, 1 if kind == KINDS[1] else 3), torch.Generator().manual_seed(0)
    bert.config.problem_type = kind
    model = EarlyExit(criterion="patience").apply(bert)
    labels, by_hand = (
        (torch.arange(16) % 3, F.cross_entropy),
        (torch.randn(16, generator=random), lambda z, y: F.mse_loss(z[:, 0], y)),
        (torch.rand(16, 3, generator=random).round(), F.binary_cross_entropy_with_logits),
    )[KINDS.index(kind)]
    for threshold in ("always", 1, "never"):
        found = run(model, rows, threshold, labels=labels)
        torch.testing.assert_close(found.loss, by_hand(found.logits, labels))
        loss, logits = run(model, rows, threshold, labels=labels, return_dict=False)
        assert torch.equal(loss, found.loss) and torch.equal(logits, found.logits)
        assert torch.equal(run(model, rows, threshold, return_dict=False)[0], logits)
    assert len(run(model, rows, 1)["layers"].unique()) > 1


def test_a_copy_is_its_own(bert, rows):
    model = by_probability(bert)
    before, other = run(model, rows, middle(model, rows)), copy.deepcopy(model)
    assert torch.equal(other(**rows).logits, before.logits) and not hasattr(bert, "exits")
    assert not torch.equal(run(other, rows, "always").logits, before.logits)
    assert torch.equal(model(**rows).logits, before.logits)


@pytest.mark.parametrize("before", [[], [LayerReduction([0, 1, 3])], [Quantize()]],
                         ids=["alone", "layers", "binary"])  # fmt: skip
def test_it_is_saved_and_opened(before, bert, rows, tokenizer, tmp_path):
    techniques = [*before, EarlyExit(criterion="probability", head="pooler", pooling="mean")]
    model = format.finalize(apply_all(bert, techniques), techniques)
    wanted = run(model, rows, middle(model, rows))
    assert len(wanted["layers"].unique()) > 1
    format.save(model, tokenizer, tmp_path / "out")
    found, _ = format.load(tmp_path / "out")
    assert found.config.exits == model.config.exits
    answer = found(**rows)
    assert all(torch.equal(answer[name], wanted[name]) for name in ("logits", "layers"))


@pytest.mark.slow
def test_it_opens_in_a_fresh_process(bert, batch, tokenizer, tmp_path, fresh_logits):
    technique = EarlyExit(criterion="probability", threshold=0.7, pooling="mean")
    model = format.finalize(technique.apply(bert), [technique])
    format.save(model, tokenizer, tmp_path / "out")
    found = model(**batch)
    assert min(found["layers"]) < 4 and fresh_logits(tmp_path / "out") == found.logits.tolist()


# Training.


@pytest.mark.parametrize("training", ["two-stage", "self-distillation"])
def test_nothing_but_the_exits_learns(training, bert, data, tokenizer, tmp_path):
    technique = EarlyExit(training=training)
    model = technique.apply(bert)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    budget = Budget(steps=3, batch_size=8, learning_rate=1e-2, max_length=16)
    taught(model, tokenizer, data, Objective(labels=1), budget, tmp_path, techniques=[technique])
    changed = {n for n, p in model.named_parameters() if not p.equal(before[n])}
    assert changed == {f"exits.{name}" for name, _ in model.exits.named_parameters()}
    assert all(p.requires_grad for p in technique.finalize(model).parameters())


@pytest.mark.parametrize("training", ["two-stage", "joint", "alternating", "self-distillation"])
@pytest.mark.parametrize("criterion", ["entropy", "learned"])
def test_penalties_by_hand(criterion, training, make_bert, rows):
    technique = EarlyExit(criterion=criterion, training=training, after=[1, 3])
    model = technique.apply(make_bert(4, dropout=0.0)).train()
    output, labels = model(**rows), torch.arange(16) % 2
    seen = Seen(output, labels, TASKS["sst2"])
    logits, last = output["exit_logits"], output.logits
    assert technique.penalty(model) is None and logits.shape == (2, 16, 2)
    each = [F.cross_entropy(z, labels) for z in logits]
    p, q = logits.softmax(-1), last.softmax(-1)
    wanted = {
        "two-stage": [sum(each)] * 2,
        "joint": [each[0] / 4 + each[1] * 3 / 4] * 2,
        "alternating": [torch.tensor(0.0), sum(each)],
        "self-distillation": [(p * (p / q).log()).sum(-1).mean(-1).sum()] * 2,
    }[training]
    if criterion == "learned":
        certain = output["exit_certainty"]
        right = (logits.argmax(-1) == labels).float()
        wanted = [each + ((certain - right) ** 2).mean(-1).sum() for each in wanted]
    for step in (0, 1):
        technique.before_step(model, step, 10)
        torch.testing.assert_close(technique.penalty(model, seen), wanted[step])


# What cannot be.


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(after=[1, 4]), "of 4: the last has the model's own classifier, choose from 1 to 3"),
        (dict(after=[]), "no exits: name at least one layer, or leave out `after`"),
        (dict(after=[2, 2]), "their numbers must rise, without repeats"),
        (dict(after=[3, 1]), "exits after layers [3, 1] of 4: their numbers must rise"),
        (dict(threshold=2), "a threshold of entropy is from 0 to 1, or never or always: rec"),
        (dict(threshold=-0.1), "threshold of early_exit must be a number from 0 to 1"),
        (dict(criterion="patience", threshold=4), "patience is 1 to 3, the number of exits"),
        (dict(speed=0.5), "a speed is 1 or more times the full model's, received 0.5"),
        (dict(speed=2.0, loss=1.0), "takes one of loss, speed, depth, threshold; received {'l"),
        (dict(speed=4.5), "speed 4.5 is out of reach: these exits give 1 to 4 times, 1 to"),
        (dict(after=[2], depth=1), "depth 1 is out of reach: these exits give 1 to 2 times, 2"),
        (dict(labels=1), "entropy is of classes, and the model gives a number: choose the crit"),
        (dict(labels=1, criterion="learned", training="self-distillation"),
         "self-distillation compares one class of several, not regression"),
    ],
    ids=lambda how: "-".join(how) if isinstance(how, dict) else "",
)  # fmt: skip
def test_what_it_cannot_do_it_says(how, says, make_bert):
    bert = make_bert(4, how.get("labels", 2))
    with pytest.raises(ValueError) as error:
        EarlyExit(**{k: v for k, v in how.items() if k != "labels"}).apply(bert)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("techniques", "says"),
    [
        ([EarlyExit(), EarlyExit()], "early_exit cannot follow early_exit: one is enough"),
        ([DropTokens(), EarlyExit()], "early_exit cannot follow drop_tokens: choose one"),
        ([DeFormer(2), EarlyExit()], "early_exit cannot follow deformer: choose one"),
        ([EarlyExit(), DeFormer(2)], "deformer cannot follow early_exit: choose one"),
        ([EarlyExit(), LayerReduction()], "layer_reduction comes before early_exit: list it first"),
        ([EarlyExit(), PruneHeads()], "prune_heads comes before early_exit: list it first"),
    ],
)
def test_an_order_that_cannot_be_is_refused(techniques, says, bert):
    with pytest.raises(ValueError, match=says):
        apply_all(bert, techniques)


def test_models_without_a_place_for_exits_are_refused(bert):
    with pytest.raises(TypeError, match="one layer in turns.* choose a model whose layers are its"):
        EarlyExit().apply(tiny("ALBERT", 200))
    with pytest.raises(TypeError, match="BertForQuestionAnswering gives no answer for a whole row"):
        EarlyExit().apply(BertForQuestionAnswering(bert.config))


@pytest.mark.parametrize(
    ("altered", "says"),
    [(None, "says exits=None, expected after, head"), ("on", "says exits='on'"),
     ({"after": []}, "no exits"), ({"after": [1, 9]}, "choose from 1 to 3")]
    + [({name: value}, "config.json says exits=") for name, value in (
        ("after", "12"), ("after", [1, True]), ("head", 1), ("pooling", ["mean"]),
        ("criterion", {}), ("tolerance", "0.5"), ("speeds", 3), ("speeds", [[0.5, "fast"]]))]
    + [({"threshold": value}, "threshold of entropy") for value in ("soon", None, math.nan, True)]
    + [({"criterion": "patience", "threshold": value}, "patience is 1 to 3")
       for value in (math.inf, math.nan, 1.5, [1])],
)  # fmt: skip
def test_altered_exits_are_named(altered, says, bert):
    said = EarlyExit().apply(bert).config.exits
    bert.config.exits = {**said, **altered} if isinstance(altered, dict) else altered
    with pytest.raises(ValueError, match=says):
        EarlyExit().rebuild(bert)


def test_a_batch_that_failed_leaves_nothing_behind(bert, batch):
    model = EarlyExit(threshold=1.0).apply(bert).eval()
    model.config.exits["threshold"] = "always"
    broken = model.classifier.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**batch)
    broken.remove()
    assert len(list(encoder_layers(model))) == model.config.num_hidden_layers
    assert model(**batch)["layers"].tolist() == [1] * len(batch["input_ids"])
