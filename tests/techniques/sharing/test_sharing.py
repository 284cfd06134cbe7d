"""Layers of one set of weights: what they compute, what is stored of them, what they go with."""

import copy
import json

import pytest
import torch
from made import taught
from torch import nn
from transformers import (
    AlbertConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MobileBertConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from xtclib import bert as parts
from xtclib.artefact import format, ledger
from xtclib.costs import breakdown
from xtclib.deployment.onnx import export_onnx
from xtclib.deployment.runtimes import OnnxModel
from xtclib.deployment.segments import SegmentedModel, export_segments
from xtclib.distillation import Objective
from xtclib.distillation.terms import Reader
from xtclib.recipes import recipe
from xtclib.study.compress import compress
from xtclib.tasks.rows import Calibration
from xtclib.techniques import (
    CNN,
    Compact,
    DeFormer,
    DropTokens,
    EarlyExit,
    Factorize,
    LayerReduction,
    LearnGates,
    PruneHeads,
    PruneNeurons,
    PruneWidth,
    Quantize,
    ReplaceModules,
    ShareLayers,
    Sparsify,
    Storage,
    apply_all,
)
from xtclib.techniques.measured import second_moments
from xtclib.techniques.sharing.layers import Again
from xtclib.techniques.sharing.sets import least_squares, sets_of
from xtclib.training.budget import Budget

PAIRS = [
    ShareLayers(part=part, groups=2, order=order)
    for part in ("all", "attention", "feed-forward")
    for order in ("consecutive", "cyclic")
]
NAMED = dict(ids=lambda t: "-".join(map(str, vars(t).values())))
SIZES = dict(vocab_size=200, hidden_size=16, num_hidden_layers=4, num_attention_heads=2,
             intermediate_size=32, initializer_range=0.3)  # fmt: skip


def logits(model, batch):
    with torch.no_grad():
        return parts.logits_of(model(**batch))


def apart(model):
    """The same values in an ordinary model: every layer with a copy of its own."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, Again):
            # The config stays the model's own, by which its attention is chosen.
            own = copy.deepcopy(module.leader, {id(model.config): model.config})
            parts.replace_module_(model, name, own)
    return model


def followers(model):
    return [name for name, module in model.named_modules() if isinstance(module, Again)]


@pytest.fixture
def rows(data, tokenizer):
    return Calibration(data, tokenizer, 16, rows=24)


# Which layers, and what they start from.


def test_every_layer_is_in_one_set():
    for depth in range(1, 13):
        for count in (n for n in range(1, depth + 1) if depth % n == 0):
            for order in ("consecutive", "cyclic"):
                found = sets_of(depth, count, order)
                assert sorted(sum(found, [])) == list(range(depth))
                for one, layers in enumerate(found):
                    by_turn = order == "cyclic"
                    assert {i % count if by_turn else i * count // depth for i in layers} == {one}


def test_the_fit_is_nearest_on_the_outputs_of_all():
    torch.manual_seed(0)
    inputs = [torch.randn(50, 6).double() * torch.arange(1, 7) for _ in range(3)]
    weights = [torch.randn(4, 6).double() for _ in range(3)]
    found = least_squares(weights, [x.T @ x / 50 for x in inputs], damping=1e-12)

    wide = torch.cat([x @ w.T for x, w in zip(inputs, weights, strict=True)])
    wanted = torch.linalg.lstsq(torch.cat(inputs), wide).solution.T
    assert (found - wanted).abs().max() < 1e-8
    assert least_squares([weights[0]] * 3, [x.T @ x for x in inputs]).allclose(weights[0])


def test_where_no_input_comes_the_mean_stays():
    weights = [torch.full((2, 3), float(i)) for i in (1, 2, 6)]
    assert torch.equal(least_squares(weights, [torch.zeros(3, 3)] * 3), torch.full((2, 3), 3.0))


def test_with_a_set_for_each_layer_nothing_changes(bert, batch, rows):
    for start in ("mean", "first", "least-squares"):
        found = ShareLayers(groups=4, start=start).apply(bert, rows)
        assert not followers(found) and torch.equal(logits(found, batch), logits(bert, batch))
        weights = bert.state_dict()
        assert all(torch.equal(t, weights[name]) for name, t in found.state_dict().items())


def test_a_set_starts_as_its_mean_its_first_or_its_fit(bert, rows):
    before = copy.deepcopy(bert.state_dict())
    name = "bert.encoder.layer.{}.attention.output.{}"
    found = {start: ShareLayers(groups=2, start=start, order="cyclic").apply(bert, rows)
             for start in ("mean", "first", "least-squares")}  # fmt: skip
    for inner in ("dense.weight", "dense.bias", "LayerNorm.weight"):
        ours = {start: m.state_dict()[name.format(1, inner)] for start, m in found.items()}
        one, other = before[name.format(1, inner)], before[name.format(3, inner)]
        assert torch.equal(ours["mean"], torch.stack([one, other]).mean(0))
        assert torch.equal(ours["first"], one)
        assert torch.equal(ours["least-squares"], ours["mean"]) == inner.startswith("Layer")
    assert all(torch.equal(t, before[name]) for name, t in bert.state_dict().items())


def test_the_fit_of_a_matrix_and_its_bias_is_nearer_than_the_mean(bert, rows):
    moments = second_moments(bert, rows.batches(), ones=True)
    plain = second_moments(bert, rows.batches())
    whole = {n: torch.cat([m.weight, m.bias[:, None]], 1).detach()
             for n, m in parts.encoder_linears(bert).items()}  # fmt: skip
    found = {
        start: ShareLayers(start=start).apply(bert, rows) for start in ("mean", "least-squares")
    }

    def lost(model, inner):
        one = model.get_submodule(f"bert.encoder.layer.0.{inner}")
        one, error = torch.cat([one.weight, one.bias[:, None]], 1).detach(), 0.0
        for i in range(4):
            name = f"bert.encoder.layer.{i}.{inner}"
            error += torch.einsum("oi,ij,oj->", one - whole[name], moments[name], one - whole[name])
        return float(error)

    for inner in ("attention.self.value", "attention.output.dense", "intermediate.dense"):
        assert lost(found["least-squares"], inner) < 0.9 * lost(found["mean"], inner)
    for name, second in moments.items():
        assert torch.allclose(second[:-1, :-1], plain[name], rtol=1e-4, atol=1e-4)
        assert float(second[-1, -1]) == pytest.approx(1)


# What it computes.


@pytest.mark.parametrize("technique", PAIRS, **NAMED)
def test_it_computes_what_copies_would(bert, batch, technique):
    found = technique.apply(bert)
    whole = apart(found)
    assert len(followers(found)) == (4 if technique.part == "feed-forward" else 2)
    assert not followers(whole) and len(whole.state_dict()) == len(bert.state_dict())
    assert torch.equal(logits(found, batch), logits(whole, batch))
    assert (logits(found, batch) - logits(bert, batch)).abs().max() > 1e-2
    assert sum(p.numel() for p in found.parameters()) < sum(p.numel() for p in bert.parameters())

    wanted = {"hidden_states", "attention_scores", "queries", "values"}
    seen = []
    for model in (found, whole):
        reader = Reader(model, wanted)
        shown = reader(model, **batch)
        reader.close()
        seen.append([shown.at(name, i) for name in sorted(wanted) for i in range(1, 5)])
        assert len(shown.output.hidden_states) == 5
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


@pytest.mark.parametrize("after", [[], [Quantize()]], ids=["whole", "one-bit"])
def test_gradients_of_all_turns_come_together(bert, batch, after):
    shared = ShareLayers(groups=2).apply(bert)
    found, whole = (apply_all(model, after) for model in (shared, apart(shared)))
    for model in (found, whole):
        model(**batch).logits.square().sum().backward()
    inner = "bert.encoder.layer.{}.intermediate.dense.weight"
    ours = found.get_parameter(inner.format(2)).grad
    theirs = [whole.get_parameter(inner.format(i)).grad for i in (2, 3)]
    torch.testing.assert_close(ours, theirs[0] + theirs[1])


def test_a_copy_follows_its_own_leader_and_moves_with_it(bert, batch):
    found = ShareLayers(part="attention").apply(bert)
    other = copy.deepcopy(found)
    for linear in parts.encoder_linears(other).values():
        linear.weight.data.mul_(0.5)
    assert torch.equal(logits(found, batch), logits(ShareLayers("attention").apply(bert), batch))
    assert torch.equal(logits(other, batch), logits(apart(other), batch))
    assert {m.leader for m in other.modules() if isinstance(m, Again)} == {
        other.bert.encoder.layer[0].attention
    }
    assert other.double().bert.encoder.layer[3].attention.self.query.weight.dtype == torch.float64


def test_a_layer_that_follows_has_the_parts_of_its_leader(bert):
    layers = parts.encoder_layers(ShareLayers().apply(bert))
    assert parts.part(layers[3], "query") is layers[0].attention.self.query
    assert parts.heads_of(layers[3]) == 2 and isinstance(layers[3], type(layers[0]))
    assert not list(layers[3].parameters()) and not hasattr(layers[3], "nothing")


def test_layers_have_hooks_of_their_own(bert, batch):
    """By which rows leave early, and lower layers read two segments apart."""
    found = ShareLayers().apply(bert)
    for technique in (EarlyExit(after=[2]), DeFormer(layers=2)):
        ours, theirs = technique.apply(found), technique.apply(apart(found))
        if hasattr(ours, "exits"):
            theirs.exits.load_state_dict(ours.exits.state_dict())
            ours.config.exits["threshold"] = theirs.config.exits["threshold"] = "always"
        types = {"token_type_ids": (torch.arange(7) > 1).long().expand(3, 7)}
        assert torch.equal(logits(ours, batch | types), logits(theirs, batch | types))
        assert not torch.equal(logits(ours, batch | types), logits(found, batch | types))


KINDS = {
    "roberta": RobertaConfig(**SIZES, max_position_embeddings=42),
    "xlm-roberta": XLMRobertaConfig(**SIZES, max_position_embeddings=42),
    "electra": ElectraConfig(**SIZES, embedding_size=8),
    "distilbert": DistilBertConfig(
        vocab_size=200, dim=16, n_layers=4, n_heads=2, hidden_dim=32, initializer_range=0.3
    ),
    "mpnet": MPNetConfig(**SIZES, max_position_embeddings=42),
    "deberta": DebertaV2Config(
        **SIZES, relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8,
        share_att_key=True, norm_rel_ebd="layer_norm",
    ),
    "mobilebert": MobileBertConfig(
        **SIZES, embedding_size=8, intra_bottleneck_size=8, num_feedforward_networks=2
    ),
    "modernbert": ModernBertConfig(**SIZES | {"num_hidden_layers": 6}, pad_token_id=0),
}  # fmt: skip


@pytest.mark.parametrize("part", ["all", "attention", "feed-forward"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_encoder_shares(kind, part, batch, rows, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(KINDS[kind]).eval()
    how = dict(groups=3, order="cyclic") if kind == "modernbert" else dict(groups=2)
    technique = ShareLayers(part, **how, start="least-squares")
    if (kind, part) == ("modernbert", "all"):
        with pytest.raises(ValueError, match=r"layers\.0 .*layers\.3 cannot share: .*Identity"):
            technique.apply(model, rows)
        return
    made = technique.apply(model, rows)
    whole = apart(made)
    assert torch.equal(logits(made, batch), logits(whole, batch))
    shows = "attention_scores" if kind == "mpnet" else "hidden_states"
    seen = [Reader(m, {shows})(m, **batch) for m in (made, whole)]
    depth = len(parts.encoder_layers(model))
    assert all(torch.equal(*(each.at(shows, i) for each in seen)) for i in range(1, depth + 1))
    made = format.finalize(made, [technique])
    made.save_pretrained(tmp_path)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(found, batch), logits(made, batch))
    entries, planned = ledger.byte_ledger(tmp_path), ledger.plan(model.config, [technique])
    assert {e.tensor: e.bytes for e in entries[:-1]} == {e.tensor: e.bytes for e in planned[:-1]}


# What is stored of it.

LISTS = [  # behind the number of layers, no more than are needed: export takes its time
    (2, [ShareLayers()]),
    (2, [ShareLayers("attention"), Quantize()]),
    (4, [LayerReduction(layers=2), PruneHeads(), ShareLayers(groups=0.5), Quantize()]),
    (2, [Factorize(share=1, words=0.5), ShareLayers(), Quantize(), Storage("int8-row")]),
    (4, [ShareLayers("feed-forward", order="cyclic", groups=2), Factorize(), Quantize("int8-row")]),
    (4, [ShareLayers(groups=2), Sparsify(0.5)]),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers, techniques", LISTS, ids=["-".join(t.name for t in ts) for _, ts in LISTS]
)
def test_it_is_saved_opened_exported_and_priced(
    make_bert, batch, layers, techniques, tokenizer, tmp_path
):
    onnx = pytest.importorskip("onnx")
    bert = make_bert(layers)
    made = format.finalize(apply_all(bert, techniques), techniques)
    format.save(made, tokenizer, tmp_path / "out")
    found = format.load(tmp_path / "out")[0]
    assert followers(found) == followers(made) != []
    assert torch.equal(logits(found, batch), logits(made, batch))

    entries, planned = ledger.byte_ledger(tmp_path / "out"), ledger.plan(bert.config, techniques)
    file = tmp_path / "out" / "model.safetensors"
    assert sum(e.bytes for e in entries) == file.stat().st_size
    owned = [n for n in followers(made) if any(e.tensor.startswith(n + ".") for e in entries)]
    assert owned == []
    sizes = [sum(e.bytes for e in each[:-1]) for each in (entries, planned)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)

    export_onnx(found, tmp_path / "m.onnx", "trained")
    exported = torch.as_tensor(OnnxModel(tmp_path / "m.onnx")(**batch).logits)
    rounds = any(t.name == "quantize" for t in techniques)
    assert torch.allclose(exported, logits(made, batch), atol=1e-2 if rounds else 1e-4)
    graph = onnx.load(str(tmp_path / "m.onnx")).graph
    shapes = [(tuple(i.dims), i.raw_data) for i in graph.initializer if len(i.dims) == 2]
    assert len(shapes) == len(set(shapes))  # each matrix once
    priced = breakdown.break_down(made.config, 1, 16)
    assert priced.flops() == breakdown.flops(made.config, 1, 16)
    assert priced.by("component").get("other", 0) == 0


@pytest.mark.slow
def test_rows_leave_layers_of_one_set_early(bert, batch, tokenizer, tmp_path):
    pytest.importorskip("onnxruntime")
    techniques = [ShareLayers(groups=2), EarlyExit(after=[1, 2])]
    made = apply_all(bert, techniques)
    torch.manual_seed(0)
    for head in made.exits.heads:
        nn.init.normal_(head.classifier.weight, 0, 1)
    made = format.finalize(made, techniques)
    format.save(made, tokenizer, tmp_path / "out")
    found = format.load(tmp_path / "out")[0]
    session = SegmentedModel(export_segments(found, tmp_path / "segments"))
    for threshold in ("never", 0.5, "always"):
        made.config.exits["threshold"] = found.config.exits["threshold"] = threshold
        session.threshold = threshold
        with torch.no_grad():
            wanted, opened, exported = (model(**batch) for model in (made, found, session))
        assert torch.equal(opened.logits, wanted.logits)
        assert exported["layers"].tolist() == wanted["layers"].tolist()
        torch.testing.assert_close(exported.logits, wanted.logits, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.fresh_process
def test_a_fresh_process_opens_it(bert, tokenizer, tmp_path):
    techniques = [ShareLayers("attention", 2), Quantize()]
    made = format.finalize(apply_all(bert, techniques), techniques)
    format.save(made, tokenizer, tmp_path / "out")
    format.check_reopens(made, tmp_path / "out", fresh=True)


@pytest.mark.parametrize("technique", PAIRS, **NAMED)
def test_it_costs_the_work_of_all_layers_and_the_weights_of_some(bert, technique):
    made = format.finalize(technique.apply(bert), [technique])
    found, whole = (breakdown.break_down(m.config, 1, 16) for m in (made, bert))
    assert found.parameters == sum(p.numel() for p in made.parameters()) < whole.parameters
    assert found.flops("everything") == whole.flops("everything")
    for ours, theirs in zip(found.parts, whole.parts, strict=True):
        assert (ours.component, ours.layer, ours.macs, ours.elementwise) == (
            theirs.component, theirs.layer, theirs.macs, theirs.elementwise
        )  # fmt: skip


def test_the_config_holds_the_technique_alone(bert, tokenizer, tmp_path):
    made = format.finalize(ShareLayers(groups=2).apply(bert), [ShareLayers(groups=2)])
    format.save(made, tokenizer, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "config.json").read_text())
    fields = {"part": "all", "groups": 2, "order": "consecutive", "start": "mean"}
    assert said["quantization_config"]["techniques"] == [{"share_layers": fields}]
    (tmp_path / "out" / "SHA256SUMS").unlink()
    for field, other in (("groups", 1), ("order", "cyclic"), ("groups", 3), ("part", "attention")):
        altered = copy.deepcopy(said)
        altered["quantization_config"]["techniques"][0]["share_layers"][field] = other
        (tmp_path / "out" / "config.json").write_text(json.dumps(altered))
        with pytest.raises(ValueError, match=r"config\.json says techniques=.* was written with"):
            format.load(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text(json.dumps(said | {"num_hidden_layers": 2}))
    with pytest.raises(ValueError, match=r"config\.json says num_hidden_layers=2"):
        format.load(tmp_path / "out")


def test_an_opened_one_trains_on_and_its_checkpoint_opens(bert, batch, tokenizer, tmp_path):
    techniques = [ShareLayers(groups=2), Quantize()]
    made = format.finalize(apply_all(bert, techniques), techniques)
    format.save(made, tokenizer, tmp_path / "out")
    found = format.trainable(format.load(tmp_path / "out")[0], pack=False).train()
    found(**batch, labels=torch.ones(3, dtype=torch.long)).loss.backward()
    assert all(p.grad.abs().sum() > 0 for n, p in found.named_parameters() if "layer.2.out" in n)
    found.save_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert followers(plain) == ["bert.encoder.layer.1", "bert.encoder.layer.3"]
    assert {type(m) for m in parts.encoder_linears(plain).values()} == {nn.Linear}


@pytest.mark.slow
def test_training_cut_off_goes_on_to_the_same_end(bert, data, tokenizer, tmp_path, monkeypatch):
    from xtclib.training import trainer

    objective = Objective(logits=1, attention_scores=1, hidden_states=1)

    def run(folder):
        student = apply_all(bert, [ShareLayers(groups=2), Quantize(activations=None)])
        return taught(student, tokenizer, data, objective, Budget(steps=6), folder, bert)

    whole, _ = run(tmp_path / "a")
    compute, calls = trainer.DistillationTrainer.compute_loss, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.DistillationTrainer, "compute_loss", killed)
        run(tmp_path / "b")
    resumed, notes = run(tmp_path / "b")
    assert notes["resumed"] and len(resumed.state_dict()) == len(whole.state_dict())
    pairs = zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.slow
def test_recipes_of_it_run(data):
    found = compress("albert-shared", "sst2", "smoke", progress=False)
    depth = found.student.config.num_hidden_layers
    assert len(followers(found.student)) == depth - 1 and depth > 1
    pairs = recipe.load("shared-pairs-1bit")
    assert [t.name for t in pairs.techniques] == ["share_layers", "quantize"]
    assert pairs.techniques[0].sets(4) == [[0, 1], [2, 3]]
    assert recipe.load("albert-shared").family == "shared" and pairs.family == "quantized"


# What cannot be.


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(groups=3), "3 sets of weights do not divide 4 layers: choose groups among 1, 2, 4"),
        (dict(groups=0.75), "3 sets of weights do not divide 4 layers"),
        (dict(groups=8), "8 sets of weights do not divide 4 layers: choose groups among 1, 2, 4"),
        (dict(groups=0), "groups of share_layers must be a whole number from 1"),
        (dict(start="least-squares"), "share_layers by least-squares looks at the task's rows"),
        (dict(part="norms"), "unknown part of share_layers 'norms'"),
        (dict(order="reversed"), "unknown order of share_layers 'reversed'"),
    ],
    ids=lambda how: "-".join(map(str, how.values())) if isinstance(how, dict) else "",
)
def test_what_it_cannot_do_it_says(bert, how, says):
    with pytest.raises(ValueError) as error:
        ShareLayers(**how).apply(bert)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("techniques", "says"),
    [
        ([ShareLayers(), ShareLayers()], "share already: one share_layers is enough"),
        *(
            ([ShareLayers(part), after], f"{after.name} comes before share_layers: list it first")
            for part in ("all", "attention")
            for after in (LayerReduction(), PruneHeads(), PruneNeurons(), PruneWidth(),
                          LearnGates(), ReplaceModules(), Compact())
        ),
        ([ReplaceModules(), ShareLayers()], "list keep_successors before share_layers"),
        ([Quantize(), ShareLayers()], "share_layers comes before quantize: list it first"),
        ([Sparsify(0.5), ShareLayers()], "share_layers comes before sparsify: list it first"),
        ([Factorize(), ShareLayers()], "share_layers comes before factorize: list it first"),
        ([EarlyExit(after=[2]), ShareLayers()], "share_layers comes before early_exit"),
    ],
    ids=lambda value: "-".join(t.name for t in value) if isinstance(value, list) else "",
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused(bert, techniques, says):
    with pytest.raises(ValueError) as error:
        apply_all(bert, techniques)
    assert says in str(error.value)


def test_layers_that_are_not_alike_are_refused(bert):
    uneven = copy.deepcopy(bert)
    parts.set_part_(uneven.bert.encoder.layer[1], "feed-forward in", nn.Linear(32, 48))
    parts.set_part_(uneven.bert.encoder.layer[1], "feed-forward out", nn.Linear(48, 32))
    with pytest.raises(ValueError) as error:
        ShareLayers(groups=2).apply(uneven)
    assert str(error.value) == (
        "bert.encoder.layer.0 and bert.encoder.layer.1 cannot share: their "
        "intermediate.dense.weight is (64, 32) and (48, 32); choose groups of layers that are alike"
    )
    ShareLayers("attention", groups=2).apply(uneven)
    modern = AutoModelForSequenceClassification.from_config(KINDS["modernbert"])
    with pytest.raises(ValueError, match=r"their .*sliding_window is None and \d+; choose groups"):
        ShareLayers("attention", groups=2).apply(modern)


def test_models_that_cannot_share_are_refused(bert, batch):
    albert = AutoModelForSequenceClassification.from_config(AlbertConfig(**SIZES))
    with pytest.raises(TypeError, match="all layers of AlbertForSequenceClassification are one"):
        ShareLayers().apply(albert)
    with pytest.raises(TypeError, match="has no layers that are built as BERT's"):
        ShareLayers().apply(CNN().apply(bert))
    packed = format.finalize(Quantize().apply(bert), [Quantize()])
    with pytest.raises(ValueError, match="already packed"):
        ShareLayers().apply(packed)
    shared = ShareLayers().apply(bert)
    with pytest.raises(TypeError, match="have one attention, and each drops tokens by its own"):
        DropTokens(keep=[6, 5, 4, 3]).apply(shared)
    bert.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="cannot share the layers of this model: .*holds NaN"):
        ShareLayers().apply(bert)


def test_empty_models_get_the_structure_from_the_config_alone():
    model = AutoModelForSequenceClassification.from_config(BertConfig(**SIZES))
    ShareLayers("feed-forward", groups=2).rebuild(model)
    assert followers(model) == [f"bert.encoder.layer.{i}.{part}" for i in (1, 3)
                                for part in ("intermediate", "output")]  # fmt: skip
