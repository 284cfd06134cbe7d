"""Tokens that go no further: who stays, by hand, and that a batch then answers as its rows."""

import copy
import math

import numpy as np
import pytest
import torch
from encoders import tiny
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertModel,
)

from xtclib import attention
from xtclib.bert import encoder_layers, logits_of
from xtclib.distillation import Objective
from xtclib.recipes import Stage
from xtclib.techniques import DropTokens, EarlyExit, LayerReduction, PruneHeads, apply_all
from xtclib.techniques.dynamic import tokens
from xtclib.techniques.dynamic.dropping import counted

HEADS = {
    "classes": AutoModelForSequenceClassification, "tags": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
}  # fmt: skip
DROPS = [DropTokens(keep=[0.8, 0.6, 0.3]), DropTokens(keep=[5, 0.5, 2]),
         DropTokens("threshold", [0.08, 0.12, 0.2])]  # fmt: skip


@pytest.fixture
def rows():
    """Ten rows of 1 to 12 tokens."""
    random = torch.Generator().manual_seed(1)
    lengths = torch.tensor([12, 1, 5, 9, 12, 2, 7, 3, 11, 4])
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = torch.randint(5, 200, (10, 12), generator=random) * mask
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def run(model, rows):
    return model(**rows)


# Who stays.


def test_received_attention_by_a_loop(rows):
    mask, length = rows["attention_mask"], 12
    scores = torch.randn(10, 3, length, length, generator=torch.Generator().manual_seed(0))
    shown = scores.masked_fill(mask[:, None, None] == 0, -torch.inf).softmax(-1)
    found = tokens.received(shown, mask)
    for row, real in enumerate(mask.sum(1).tolist()):
        for key in range(length):
            got = [float(shown[row, h, q, key]) for h in range(3) for q in range(real)]
            assert float(found[row, key]) == pytest.approx(np.mean(got), abs=1e-6)
    torch.testing.assert_close(found.sum(1), torch.ones(10))
    assert not found[mask == 0].any()


@pytest.mark.parametrize("keep", [1, 2, 5, 100, 1e-4, 0.25, 0.5, 0.9, 1.0])
def test_kept_by_rank_by_a_loop(keep, rows):
    mask = rows["attention_mask"]
    scores = torch.rand(10, 12, generator=torch.Generator().manual_seed(0))
    scores[:, 0] = 0.0  # the first is kept all the same
    before, lengths = scores.clone(), mask.sum(1)
    found = tokens.kept_by_rank(scores, mask, keep, lengths)
    for row, real in enumerate(lengths.tolist()):
        count = keep if isinstance(keep, int) else math.ceil(keep * real - 1e-6)
        best = sorted(range(1, real), key=lambda i: -float(before[row, i]))
        assert found[row].nonzero().flatten().tolist() == sorted([0, *best[: count - 1]])
        order = tokens.ranks(scores, mask)[row].tolist()
        assert [order.index(i) for i in range(real)] == [0, *best]
    assert torch.equal(scores, before)


# A model that drops.


@pytest.mark.parametrize(
    "technique", [DropTokens(keep=[1.0] * 3), DropTokens("threshold", [0] * 3)]
)
def test_dropping_nothing_is_the_model(technique, rows):
    model = tiny("BERT", 200)
    whole = run(attention.use(copy.deepcopy(model)), rows)
    found = run(technique.apply(model), rows)
    assert torch.equal(found.logits, whole.logits)
    lengths = rows["attention_mask"].sum(1)
    assert torch.equal(found["tokens"], lengths[:, None].expand(10, 3))
    assert not hasattr(model, "drops") and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("technique", DROPS, ids=["shares", "counts", "threshold"])
@pytest.mark.parametrize("family", ["BERT", "RoBERTa", "XLM-R", "ELECTRA"])
@pytest.mark.parametrize("head", HEADS)
def test_a_batch_answers_as_its_rows(head, family, technique, rows):
    base = tiny(family, 200)
    model = technique.apply(HEADS[head].from_config(base.config).eval())
    found, lengths = run(model, rows), rows["attention_mask"].sum(1)
    whole = logits_of(found)
    assert head == "classes" or whole.shape[:2] == (10, 12)
    for row, length in enumerate(lengths.tolist()):
        alone = run(model, {name: t[row : row + 1, :length] for name, t in rows.items()})
        mine = whole[row] if head == "classes" else whole[row, :length]
        assert (logits_of(alone)[0] - mine).abs().max() < 1e-5
        assert torch.equal(alone["tokens"][0], found["tokens"][row])
    left = torch.cat([lengths[:, None], found["tokens"]], 1)
    assert (left.diff() <= 0).all() and (left[:, -1] >= 1).all() and left[0, -1] < 6
    if technique is DROPS[0]:
        wanted = [[math.ceil(share * n - 1e-6) for share in technique.keep] for n in lengths]
        assert found["tokens"].tolist() == wanted


def test_dropped_tokens_get_back_what_they_were(rows):
    model = DROPS[0].apply(BertModel(tiny("BERT", 200).config).eval())
    seen, drops = [], model.drops

    def look(layer, args, output):
        places = torch.arange(12).expand(10, -1) if drops.places is None else drops.places
        seen.append((output[0], places, drops.mask.bool()))

    for layer in encoder_layers(model):
        layer.attention.register_forward_hook(look, prepend=True)  # before any goes
    found, wanted = run(model, rows), torch.zeros(10, 12, 32)
    for each, places, real in seen:
        for row in range(10):
            wanted[row, places[row, real[row]]] = each[row, real[row]]
    left = found["tokens"][:, -1]
    same = (found.last_hidden_state == wanted).all(-1) & rows["attention_mask"].bool()
    assert torch.equal(same.sum(1), rows["attention_mask"].sum(1) - left)
    in_a_tuple = model(**rows, return_dict=False)
    assert torch.equal(in_a_tuple[0], found.last_hidden_state)


def test_tokens_are_counted(rows):
    keep = counted(DropTokens(keep=[1.0] * 3).apply(tiny("BERT", 200)), [rows])
    assert keep == {"tokens": [1.0] * 3, "speed": 1.0}
    rows = {name: t[:1] for name, t in rows.items()}  # of 12 tokens
    found = counted(DropTokens(keep=[1.0, 0.5, 3]).apply(tiny("BERT", 200)), [rows])
    whole = 3 * (4 * 12 * 32**2 + 2 * 12**2 * 32 + 2 * 12 * 32 * 64)
    run_ = 2 * (4 * 12 * 32**2 + 2 * 12**2 * 32) + 4 * 6 * 32**2 + 2 * 6**2 * 32
    run_ += 2 * (12 + 6 + 3) * 32 * 64
    assert found == {"tokens": [1.0, 0.5, 0.25], "speed": round(whole / run_, 4)}


# What cannot be.


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(keep=[0.0] * 4), "a row keeps a token or more: give counts from 1, or shares up"),
        (dict(keep=[0] * 4), "received 0"),
        (dict(keep=[1.5] * 4), "keep of drop_tokens must be a whole number from 1, or a number"),
        (dict(keep=[0.5] * 3), "keep names 3 layers, and the model has 4: give a number for each"),
        (dict(keep=[]), "keep names 0 layers, and the model has 4"),
        (dict(by="threshold", keep=[2] * 4), "a threshold is from 0 to 1, received 2"),
        (dict(by="threshold", keep=[-0.1] * 4), "received -0.1"),
        (dict(by="ranks"), "unknown by of drop_tokens 'ranks': did you mean 'rank'"),
    ],
)
def test_what_it_cannot_do_it_says(how, says, bert):
    with pytest.raises(ValueError, match=says):
        DropTokens(**how).apply(bert)


@pytest.mark.parametrize("family", "DistilBERT MPNet DeBERTa-v3 ModernBERT ALBERT".split())
def test_relative_positions_and_other_layers_are_refused(family):
    with pytest.raises(TypeError, match="tokens are dropped from BERT, RoBERTa, XLM-R or ELECTRA"):
        DropTokens().apply(tiny(family, 200))


@pytest.mark.parametrize(
    ("techniques", "says"),
    [
        ([DropTokens(), DropTokens()], "drop_tokens cannot follow drop_tokens: one is enough"),
        ([EarlyExit(), DropTokens()], "drop_tokens cannot follow early_exit: choose one"),
        ([DropTokens(), LayerReduction()], "layer_reduction comes before drop_tokens: list it"),
        ([DropTokens(), PruneHeads()], "prune_heads comes before drop_tokens: list it first"),
    ],
)
def test_an_order_that_cannot_be_is_refused(techniques, says, bert):
    with pytest.raises(ValueError, match=says):
        apply_all(bert, techniques)


def test_states_are_not_compared_where_tokens_go():
    with pytest.raises(ValueError, match="hidden_states compares every token of a layer, and some"):
        Stage("one", [DropTokens()], Objective(labels=1, hidden_states=1))
    with pytest.raises(ValueError, match="drop_tokens learns|works while a stage trains"):
        Stage("one", [DropTokens()])


@pytest.mark.parametrize(
    "said",
    [None, 3, "rank", {}, {"by": "rank"}, {"by": ["rank"], "keep": [1] * 4},
     {"by": "rank", "keep": [1] * 3}, {"by": "rank", "keep": ["2"] * 4},
     {"by": "rank", "keep": [True] * 4}, {"by": "rank", "keep": [1.5] * 4},
     {"by": "threshold", "keep": [math.nan] * 4}, {"by": "threshold", "keep": [None] * 4}],
)  # fmt: skip
def test_altered_tokens_are_named(said, bert):
    bert.config.tokens = said
    with pytest.raises(ValueError, match="config.json says tokens=|received "):
        DropTokens().rebuild(bert)
