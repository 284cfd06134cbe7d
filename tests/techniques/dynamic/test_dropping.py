"""What is dropped is learned, softly, then kept: by hand, through training, on disk."""

import copy

import pytest
import torch
from encoders import tiny
from made import taught

from xtclib import attention
from xtclib.artefact import format
from xtclib.bert import attention_of, encoder_layers
from xtclib.distillation import Objective
from xtclib.techniques import DropTokens, LayerReduction, Quantize, apply_all
from xtclib.techniques.base import Seen
from xtclib.techniques.dynamic import tokens
from xtclib.training import Budget


@pytest.fixture
def rows():
    """Rows of 12, 1, 7 and 4 tokens."""
    mask = (torch.arange(12) < torch.tensor([12, 1, 7, 4])[:, None]).long()
    ids = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(1)) * mask
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def run(model, rows):
    return model(**rows)


def watched(model):
    """Every layer's probabilities, once a batch has run."""
    shown, drops = [], model.drops
    for layer in encoder_layers(model):
        attention_of(layer).received = lambda p: (shown.append(p.detach()), drops.look(p))
    return shown


def reopened(model, techniques, batch, tokenizer, folder):
    """A model saved and opened again, to the same answers."""
    model = format.finalize(model, techniques)
    format.save(model, tokenizer, folder)
    found, _ = format.load(folder)
    wanted, answer = run(model, batch), run(found, batch)
    assert all(torch.equal(answer[name], wanted[name]) for name in ("logits", "tokens"))
    assert found.config.tokens == model.config.tokens
    return found


def test_soft_retention_of_one_is_the_model(rows):
    technique, model = DropTokens(), tiny("BERT", 200)
    soft = technique.apply(model)
    technique.before_step(soft, 0, 10)
    found = run(soft, rows)
    assert torch.equal(found.logits, run(attention.use(model), rows).logits)
    assert torch.equal(found["tokens"][:, 2], rows["attention_mask"].sum(1)) and soft.drops.soft


def around(module):
    """What a module's own output was, and what hooks made of it."""
    seen = []

    def look(module, args, output):
        seen.append(output[0] if isinstance(output, tuple) else output)

    for prepend in (True, False):
        module.register_forward_hook(look, prepend=prepend)
    return seen


def test_what_is_kept_of_a_rank_is_learned(rows):
    technique = DropTokens(regularizer=0.5)
    model = technique.apply(tiny("BERT", 200))
    technique.before_step(model, 0, 10)
    shown, seen = watched(model), around(encoder_layers(model)[0].attention)
    scores = model.drops.scores
    scores.data = torch.rand(3, tokens.BINS, generator=torch.Generator().manual_seed(0))
    output = model(**rows)
    got, (before, after) = tokens.received(shown[0], rows["attention_mask"]), seen
    for row, real in enumerate(rows["attention_mask"].sum(1).tolist()):
        order = sorted(range(1, real), key=lambda i: -float(got[row, i]))
        assert torch.equal(after[row, 0], before[row, 0])
        for rank, place in enumerate(order, 1):
            kept = scores[0, rank * tokens.BINS // real]
            assert torch.equal(after[row, place], before[row, place] * kept)
    by_hand = 0.5 * sum((j + 1) * scores[j].mean() for j in range(3)) / 6
    torch.testing.assert_close(technique.penalty(model, Seen(output, None, None)), by_hand)


def test_a_soft_threshold_is_a_gate(rows):
    technique = DropTokens("threshold", regularizer=0.5, temperature=0.05, initial=0.3)
    model, mask = technique.apply(tiny("BERT", 200)), rows["attention_mask"].float()
    technique.before_step(model, 0, 10)
    shown, seen = watched(model), [around(layer) for layer in encoder_layers(model)]
    output = model(**rows)
    gate, masses = torch.ones(4, 12), []
    for probabilities, (before, after), theta in zip(shown, seen, (0.1, 0.2, 0.3), strict=True):
        own = ((tokens.received(probabilities, mask) - theta) / 0.05).sigmoid() * mask
        own[:, 0] = 1
        gate = gate * own
        masses.append((gate.sum(1) / mask.sum(1)).mean())
        torch.testing.assert_close(after, before * gate[..., None])
    found = technique.penalty(model, Seen(output, None, None))
    torch.testing.assert_close(found, 0.5 * sum(masses) / 3)


@pytest.mark.parametrize("by", ["rank", "threshold"])
def test_after_the_search_scores_stay(by, bert, data, tokenizer, tmp_path, monkeypatch, batch):
    technique, seen = DropTokens(by, rate=0.02), []

    def after_step(self, model, step, *others, own=DropTokens.after_step):
        own(self, model, step, *others)
        weight = model.bert.encoder.layer[3].output.dense.weight
        seen.append([t.detach().clone() for t in (model.drops.scores, weight)])

    monkeypatch.setattr(DropTokens, "after_step", after_step)
    budget = Budget(steps=6, batch_size=8, learning_rate=1e-3, max_length=16)
    model = technique.apply(bert)
    taught(model, tokenizer, data, Objective(labels=1), budget, tmp_path, techniques=[technique])
    scores, weights = zip(*seen, strict=True)
    assert not scores[0].equal(scores[2]) and all(s.equal(scores[2]) for s in scores[3:])
    assert all(s.min() >= 0 and s.max() <= 1 for s in scores) and not weights[3].equal(weights[5])
    found = reopened(model, [technique], batch, tokenizer, tmp_path / "out")
    means = scores[-1].mean(1) if by == "rank" else scores[-1]
    assert found.config.tokens["by"] == by and model.drops.scores is None
    assert found.config.tokens["keep"] == pytest.approx(means.tolist(), abs=1e-4)


@pytest.mark.parametrize("before", [[LayerReduction([0, 1, 3])], [Quantize()]],
                         ids=["layers", "binary"])  # fmt: skip
def test_it_comes_after_others_and_is_opened(before, make_bert, batch, tokenizer, tmp_path):
    techniques = [*before, DropTokens(keep=[0.8, 0.5, 2])]
    model = apply_all(make_bert(4 if before[0].name == "layer_reduction" else 3), techniques)
    found = reopened(model, techniques, batch, tokenizer, tmp_path / "out")
    assert run(found, batch)["tokens"].tolist() == [[6, 4, 2], [4, 2, 2], [2, 1, 1]]


def test_retention_never_rises(bert):
    model = DropTokens().apply(bert)
    model.drops.scores.data = torch.tensor([0.7, 0.9, 0.2, 0.0])[:, None].expand(-1, tokens.BINS)
    assert model.drops.keep() == [0.7, 0.7, 0.2, 1e-4]
    assert DropTokens().finalize(model).config.tokens["keep"] == [0.7, 0.7, 0.2, 1e-4]


@pytest.mark.parametrize("by", ["rank", "threshold"])
def test_one_that_searches_to_the_end_is_copied_and_kept(by, bert, batch, tokenizer, tmp_path):
    technique = DropTokens(by, search=1.0, initial=1.0)
    model = technique.apply(bert)
    technique.before_step(model, 0, 2)
    output = model(**batch)
    technique.penalty(model, Seen(output, None, None)).backward()
    technique.after_step(model, 0, 2, 0.1)
    assert copy.deepcopy(model).drops.soft and technique.penalty(model) is None
    found = reopened(model, [technique], batch, tokenizer, tmp_path / "out")
    assert found.config.tokens["keep"] == ([1.0] * 4 if by == "rank" else [0.25, 0.5, 0.75, 1.0])
