"""Which layers and signals a distillation term compares."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from xtclib.attention import use
from xtclib.bert import encoder_layers
from xtclib.distillation.objective import Objective, distillation_loss
from xtclib.distillation.terms import TERMS, Match, Reader, projections
from xtclib.recipes import recipe as recipes
from xtclib.techniques import BiLSTM, Bottleneck, Compact, DistilBert, PruneHeads
from xtclib.techniques.pruning.depth import LayerReduction


def losses(objective, student, teacher, batch, maps=None):
    shown = [Reader(m, objective.reads)(m, **batch) for m in (student, teacher)]
    pairs = objective.pairs(student, teacher)
    return distillation_loss(objective, *shown, None, batch["attention_mask"], pairs, maps)


@pytest.mark.parametrize(
    "match, depths, pairs",
    [
        (Match("patience"), (6, 12), [(1, 2), (2, 4), (3, 6), (4, 8), (5, 10)]),
        (Match("patience"), (3, 12), [(1, 4), (2, 8)]),
        (Match("patience", layers="last"), (6, 12), [(1, 7), (2, 8), (3, 9), (4, 10), (5, 11)]),
        (Match("patience", layers="last"), (3, 12), [(1, 10), (2, 11)]),
        (Match("hidden_states"), (2, 4), [(0, 0), (1, 2), (2, 4)]),
        (Match("hidden_states", states="layers"), (2, 4), [(1, 2), (2, 4)]),
        (Match("embeddings"), (2, 4), [(0, 0)]),
        (Match("cosine"), (2, 4), [(2, 4)]),
        (Match("attention_scores"), (2, 4), [(1, 2), (2, 4)]),
        (Match("key_relations", layers=[3]), (2, 4), [(2, 3)]),
        (Match("hidden_states", layers=(0, 0, 3)), (2, 4), [(0, 0), (1, 0), (2, 3)]),
    ],
)
def test_pairs_of_states(match, depths, pairs):
    assert match.pairs(*depths) == pairs


@pytest.mark.parametrize("term", TERMS)
def test_every_term_is_zero_for_a_student_equal_to_its_teacher(bert, batch, term):
    heads = {"heads": 4} if "relations" in term else {}
    objective = Objective(**{term: {"weight": 3, **heads}})
    (found,) = losses(objective, bert, bert, batch).values()
    assert abs(float(found)) < 1e-6


@pytest.mark.parametrize("term", TERMS)
def test_every_term_sees_another_student_and_teaches_it(bert, make_bert, batch, term):
    heads = {"heads": 4} if "relations" in term else {}
    objective, student = Objective(**{term: {"weight": 1, **heads}}), make_bert(2, seed=3)
    (found,) = losses(objective, student, bert, batch).values()
    found.backward()
    assert float(found) > 1e-4
    assert all(p.grad is None for p in student.classifier.parameters())
    learns = student.bert.embeddings.word_embeddings.weight.grad
    assert float(learns.abs().max()) > 0
    reached = [layer.attention.self.query.weight.grad for layer in encoder_layers(student)]
    last = term not in ("embeddings", "patience")
    assert (reached[0] is not None) == (term != "embeddings")
    assert (reached[1] is not None) == (last and term not in ("key_relations", "value_relations"))


def test_weights_and_options_are_handed_on(bert, make_bert, batch):
    student = make_bert(2, seed=3)
    one = losses(Objective(patience=1), student, bert, batch)["patience"]
    plain = losses(Objective(patience={"weight": 8, "per_dimension": True}), student, bert, batch)
    assert float(plain["patience"]) == pytest.approx(8 / 32 * float(one), rel=1e-5)


def test_pkd_is_the_releases_loss(make_bert, batch):
    """Its β weighs the mean over batch, layers and width; its KL is a mean over classes too."""
    student, teacher = make_bert(3, seed=3), make_bert(12)
    recipe = recipes.load("pkd-3l").stages[0].objective
    found = losses(replace(recipe, labels=0.0), student, teacher, batch)
    s, t = (m(**batch, output_hidden_states=True) for m in (student, teacher))
    first = [torch.stack([o.hidden_states[i][:, 0] for i in states], 1)
             for o, states in ((s, (1, 2)), (t, (4, 8)))]  # fmt: skip
    normal = [x / x.norm(dim=2, keepdim=True) for x in first]
    assert float(found["patience"]) == pytest.approx(500 * float(F.mse_loss(*normal)), rel=1e-5)
    softened = F.log_softmax(s.logits / 5, 1), F.softmax(t.logits / 5, 1)
    kl = F.kl_div(*softened, reduction="none").mean() * 25
    assert float(found["logits"]) == pytest.approx(0.5 * float(kl), rel=1e-4)


def test_pkd_as_the_paper_sums_layers_and_dimensions(make_bert, batch):
    student, teacher = make_bert(3, seed=3), make_bert(12)
    summed = losses(Objective(patience=1), student, teacher, batch)["patience"]
    averaged = {"weight": 1, "per_layer": True, "per_dimension": True}
    mean = losses(Objective(patience=averaged), student, teacher, batch)["patience"]
    assert float(summed) == pytest.approx(2 * 32 * float(mean), rel=1e-5)  # layers, dimensions


def test_masked_keys_are_zero_in_both_models_as_in_tinyberts_release(bert, make_bert, batch):
    student = make_bert(2, seed=3)
    batch = {name: F.pad(x, (0, 9)) for name, x in batch.items()}  # as rows padded to a length
    form = {"hidden_states": 1, "attention_scores": 1, "layer_map": "release"}
    found = {kind: losses(Objective(**form, masked=kind), student, bert, batch)
             for kind in (True, False, "keys")}  # fmt: skip
    s, t = (use(m)(**batch, output_hidden_states=True, output_attentions=True)
            for m in (student, bert))  # fmt: skip
    hidden = masked = 0.0
    for i in range(3):
        hidden += float(F.mse_loss(s.hidden_states[i], t.hidden_states[2 * i]))
    gone = (batch["attention_mask"] == 0)[:, None, None].expand_as(s.attentions[0])
    for i in range(2):
        scores = [torch.where(gone, 0.0, x) for x in (s.attentions[i], t.attentions[2 * i + 1])]
        masked += float(F.mse_loss(*scores))
    for kind in (False, "keys"):
        assert float(found[kind]["hidden_states"]) == pytest.approx(hidden, rel=1e-5)
    assert float(found["keys"]["attention_scores"]) == pytest.approx(masked, rel=1e-5)
    assert float(found[False]["attention_scores"]) > 1.2 * masked
    assert float(found[True]["hidden_states"]) != pytest.approx(hidden, rel=1e-2)


def test_zeroed_scores_are_refused_where_they_would_be_softened():
    with pytest.raises(ValueError, match="scores to 0, which attention_divergence would take"):
        Objective(attention_divergence=1, masked="keys")
    with pytest.raises(ValueError, match="masked of objective must be true, false or 'keys'"):
        Objective(logits=1, masked="key")


def test_the_releases_map_follows_the_layers_that_were_kept(make_bert, bert12):
    objective = Objective(hidden_states=1, attention_scores=1, layer_map="release")
    student = LayerReduction([0, 2, 3, 5, 6, 8, 9, 11]).apply(bert12)
    states = objective.pairs(student, bert12)
    assert [j for _, j in states["hidden_states"]] == [-1, 1, 3, 4, 6, 7, 9, 10, 12]
    assert [j - 1 for _, j in states["attention_scores"]] == [0, 2, 3, 5, 6, 8, 9, 11]
    again = LayerReduction([1, 3]).apply(student)  # of a student: 2 and 5 of twelve
    assert [j for _, j in objective.pairs(again, bert12)["hidden_states"]] == [1, 3, 6]
    assert [j for _, j in objective.pairs(again, student)["hidden_states"]] == [0, 2, 4]
    new = make_bert(5)
    assert [j for _, j in objective.pairs(new, bert12)["hidden_states"]] == [0, 2, 4, 6, 8, 10]


def test_relations_are_those_of_the_layers_projections(bert, batch):
    shown = Reader(bert, {"queries", "values"})(bert, **batch, output_hidden_states=True)
    for state in (1, 4):
        layer = encoder_layers(bert)[state - 1].attention.self
        before = shown.output.hidden_states[state - 1]
        torch.testing.assert_close(shown.at("queries", state), layer.query(before))
        torch.testing.assert_close(shown.at("values", state), layer.value(before))


def test_a_closed_reader_leaves_no_hooks(bert, batch):
    reader = Reader(bert, {"keys"})
    reader(bert, **batch)
    reader.close()
    assert not any(m._forward_hooks for m in bert.modules())


def test_a_projection_takes_one_width_to_the_other(bert, batch):
    student = Compact(hidden=0.5).apply(bert)
    objective = Objective(hidden_states={"weight": 1, "projection": True})
    maps = projections(objective.matches, student, bert)
    assert [tuple(p.shape) for p in maps.parameters()] == [(32, 16)]
    found = losses(objective, student, bert, batch, maps)["hidden_states"]
    found.backward()
    assert float(maps["hidden_states"].weight.grad.abs().max()) > 0
    same = projections(objective.matches, bert, bert)["hidden_states"].weight
    assert torch.equal(same, torch.eye(32))
    assert len(projections(Objective(hidden_states=1).matches, bert, bert)) == 0


@pytest.mark.parametrize("student", [DistilBert(), Bottleneck()], ids=["distilbert", "mobilebert"])
def test_other_architectures_show_their_layers_too(bert, batch, student):
    student = student.apply(bert)
    terms = {"hidden_states": 1, "attention_scores": 1, "attention_divergence": 1}
    found = losses(
        Objective(**terms, value_relations={"weight": 1, "heads": 4}), student, bert, batch
    )
    assert all(float(value) > 0 for value in found.values()) and len(found) == 4


@pytest.mark.parametrize(
    "student, objective, message",
    [
        (
            Compact(hidden=0.5),
            {"hidden_states": 1},
            "student is 16 wide and its teacher 32: add",
        ),
        (
            PruneHeads(0.5, "magnitude"),
            {"attention_scores": 1},
            "layer 0 of the student has 1",
        ),
        (
            BiLSTM(4, 4, 4),
            {"patience": 1},
            "the student, a BiLSTMClassifier, has none",
        ),
        (LayerReduction(layers=1), {"patience": 1}, "a student of 1 layer has none: choose other"),
        (Compact(), {"key_relations": {"weight": 1, "heads": 5}}, "5 relation heads do not divide"),
        (
            Compact(hidden=0.5),
            {"key_relations": {"weight": 1, "heads": 32}},
            "width of 16",
        ),
        (
            LayerReduction(),
            {"cosine": {"weight": 1, "layers": [5]}},
            "names 5, but the teacher has",
        ),
        (
            LayerReduction(),
            {"key_relations": {"weight": 1, "layers": [0]}},
            "names 0, .* 1 to 4",
        ),
        (
            LayerReduction(),
            {"hidden_states": {"weight": 1, "layers": [1]}},
            "names 1 of .* but 3",
        ),
    ],
)
def test_models_that_cannot_be_compared(bert, student, objective, message):
    with pytest.raises(ValueError, match=message):
        Objective(**objective).check(student.apply(bert), bert)


@pytest.mark.parametrize(
    "value, message",
    [
        ({"weight": -1}, "weight of term patience must be .* at least 0, received -1"),
        (True, "weight of term patience must be a number"),
        ({"weigth": 1}, "unknown key of patience 'weigth': did you mean 'weight'"),
        ({"weight": 1, "layers": "skip"}, "unknown layers of term patience 'skip'"),
        ({"weight": 1, "states": "firsts"}, "unknown states of term patience 'firsts'"),
    ],
)
def test_bad_terms(value, message):
    with pytest.raises(ValueError, match=message):
        Match.read("patience", value)
    with pytest.raises(ValueError, match="key_relations compares no hidden states: leave out"):
        Match("key_relations", projection=True)


def test_a_term_reads_back_as_it_was_told():
    for value in (
        2,
        {"weight": 2, "layers": [1, 2]},
        {"weight": 1, "heads": 4, "states": "layers"},
    ):
        match = Match.read("key_relations", value)
        assert match.to_plain() == value and Match.read("key_relations", match.to_plain()) == match
    assert Objective(key_relations=1, cosine=1).reads == {"keys", "hidden_states"}


def test_a_closed_reader_gives_the_attention_back(bert):
    before = bert.config._attn_implementation
    reader = Reader(bert, {"attention_scores"})
    assert bert.config._attn_implementation == "xtc" != before
    reader.close()
    assert bert.config._attn_implementation == before


def test_progressive_transfer_needs_a_term_for_every_state(bert):
    objective = Objective(attention_divergence=1, progressive=True)
    with pytest.raises(ValueError, match=r"no term compares \[0\] .*: add hidden_states"):
        objective.check(bert, bert)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"labels": True}, "labels of objective must be a number"),
        (
            {"logits": 1, "temperature": "5"},
            "temperature of objective must be .* above 0, received '5'",
        ),
        ({"logits": 1, "temperature": float("inf")}, "temperature of objective must be a number"),
        (
            {"patience": {"weight": 1, "layers": 3}},
            "layers of term patience must be .* or must be a list, received 3",
        ),
        ({"patience": {"weight": 1, "states": ["last"]}}, "states of term patience must be"),
        (
            {"logits": 1, "masked": "no"},
            "masked of objective must be true, false or .keys., received 'no'",
        ),
        ({"logits": 1, "per_class": 0}, "per_class of objective must be true or false, received 0"),
        (
            {"hidden_states": 1, "progressive": "no"},
            "progressive of objective must be true or false",
        ),
        (
            {"hidden_states": {"projection": "no"}},
            "projection of term hidden_states must be true or",
        ),
        ({"attention_scores": {"states": "all"}}, "the embeddings are in none: choose the states"),
        ({"key_relations": {"states": "embeddings"}}, "the embeddings are in none"),
    ],
)
def test_values_of_other_kinds(values, message):
    with pytest.raises(ValueError, match=message):
        Objective(**values)


def test_logits_are_compared_between_models_of_the_same_labels_in_the_same_order(bert):
    other = copy.deepcopy(bert)
    names = [bert.config.id2label[i] for i in range(bert.config.num_labels)]
    other.config.id2label = dict(enumerate(names[::-1]))
    with pytest.raises(ValueError, match="give both the same labels in the same order"):
        Objective(logits=1).check(other, bert)
    Objective(hidden_states=1).check(other, bert)  # layers give no answers
    Objective(logits=1).check(other, bert, answers=False)  # words, not labels
    other.config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    Objective(logits=1).check(other, bert)  # no names are fine
    other.config.id2label = {i: f"LABEL_{i}" for i in range(3)}
    with pytest.raises(ValueError, match="give both the same labels"):
        Objective(logits=1).check(other, bert)


def test_a_student_that_reads_other_token_ids_is_refused(bert):
    other = copy.deepcopy(bert)
    other.config.vocab_size += 1
    message = f"reads {bert.config.vocab_size + 1} tokens and its teacher {bert.config.vocab_size}"
    with pytest.raises(ValueError, match=message):
        Objective(hidden_states=1).check(other, bert)
