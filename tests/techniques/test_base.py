import copy

import pytest
import torch

from xtclib.artefact.format import finalize
from xtclib.techniques import Technique, apply_all, technique
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.layers import QuantEmbedding, QuantLinear
from xtclib.techniques.quantization.packed import PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.quantizers import Scheme, quantize
from xtclib.techniques.quantization.technique import Quantize


@pytest.mark.parametrize(
    "config, depth, wanted",
    [
        (LayerReduction(), 12, [1, 3, 5, 7, 9, 11]),
        (LayerReduction(layers=5), 12, [2, 4, 6, 8, 10]),
        (LayerReduction(layers=8), 12, [0, 2, 3, 5, 6, 8, 9, 11]),
        (LayerReduction(layers=4), 12, [2, 5, 8, 11]),
        (LayerReduction(layers=3), 6, [1, 3, 5]),
        (LayerReduction(layers=12), 12, list(range(12))),
        (LayerReduction(layers=0.25), 12, [3, 7, 11]),
        (LayerReduction(layers=0.01), 12, [11]),
        (LayerReduction(), 1, [0]),
        (LayerReduction("top"), 4, [2, 3]),
        (LayerReduction("bottom", 0.75), 4, [0, 1, 2]),
        (LayerReduction([0, 5]), 12, [0, 5]),
    ],
)
def test_kept_layers(config, depth, wanted):
    assert config.indices(depth) == wanted


@pytest.mark.parametrize("keep", ["every-other", "top", "bottom"])
def test_every_count_keeps_that_many_rising_layers(keep):
    for depth in range(1, 25):
        for count in range(1, depth + 1):
            found = LayerReduction(keep, count).indices(depth)
            assert len(found) == count and found == sorted(set(found))
            assert found[0] >= 0 and found[-1] < depth


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"keep": "evry-other"}, "unknown keep of layer_reduction 'evry-other': did you mean"),
        ({"keep": []}, "the list of layers to keep is empty"),
        ({"keep": [1, 2], "layers": 2}, "an explicit list of layers was given together with"),
        ({"keep": [0, 4]}, r"cannot keep layers \[4\]: the teacher has 4 layers, numbered 0 to 3"),
        ({"keep": [1, 1]}, "rising and without repeats"),
        ({"layers": 0}, "layers of layer_reduction must be a whole number from 1, or"),
        ({"layers": 5}, "cannot keep 5 of 4 layers"),
        ({"layers": -0.5}, "or a share of the teacher's below 1, received -0.5"),
        ({"layers": 2.5}, "below 1, received 2.5"),
        ({"layers": 1.0}, "must be a whole number from 1, .* received 1.0"),
        ({"layers": True}, "layers of layer_reduction must be .* received True"),
    ],
)
def test_bad_layer_reductions_are_refused(bert, fields, message):
    with pytest.raises(ValueError, match=message):
        LayerReduction(**fields).apply(bert)


def test_layers_to_keep_must_be_a_list_or_a_name():
    with pytest.raises(ValueError, match="keep"):
        LayerReduction(keep=3)


def test_removing_nothing_gives_the_teacher(bert, batch):
    student = LayerReduction(layers=4).apply(bert)
    assert student is not bert and torch.equal(student(**batch).logits, bert(**batch).logits)


def test_only_encoder_linears_and_word_embeddings_are_quantized(bert):
    model = Quantize().apply(copy.deepcopy(bert))
    linears = {n for n, m in model.named_modules() if isinstance(m, QuantLinear)}
    tables = {n for n, m in model.named_modules() if isinstance(m, QuantEmbedding)}
    assert tables == {"bert.embeddings.word_embeddings"}
    assert len(linears) == 24 and all(".encoder.layer." in name for name in linears)
    for name in (
        "bert.pooler.dense", "classifier", "bert.embeddings.position_embeddings",
        "bert.embeddings.token_type_embeddings",
    ):  # fmt: skip
        module = model.get_submodule(name)
        assert not isinstance(module, (QuantLinear, QuantEmbedding)), name
        assert torch.equal(module.weight, bert.get_submodule(name).weight)


def test_the_model_given_is_left_as_it_is(bert):
    for item in (Quantize(), LayerReduction()):
        item.apply(bert)
        assert not any(isinstance(m, (QuantLinear, QuantEmbedding)) for m in bert.modules())
        assert len(bert.bert.encoder.layer) == 4


def test_quantizing_keeps_the_names_of_all_weights(bert):
    assert Quantize().apply(copy.deepcopy(bert)).state_dict().keys() == bert.state_dict().keys()


def test_none_leaves_a_part_alone(bert):
    only_table = Quantize(weights=None, activations=None).apply(copy.deepcopy(bert))
    assert not any(isinstance(m, QuantLinear) for m in only_table.modules())
    assert isinstance(only_table.get_input_embeddings(), QuantEmbedding)
    only_linears = Quantize(embeddings=None, activations=None).apply(copy.deepcopy(bert))
    assert not any(isinstance(m, QuantEmbedding) for m in only_linears.modules())
    assert {m.activations for m in only_linears.modules() if isinstance(m, QuantLinear)} == {None}


def test_activations_alone_are_refused():
    with pytest.raises(ValueError, match="activations=int8-token without weights: .* needs both"):
        Quantize(weights=None)


def test_a_quantized_model_computes_with_quantized_weights(bert, batch):
    model = Quantize(activations=None).apply(copy.deepcopy(bert))
    for name, module in model.named_modules():
        if isinstance(module, (QuantLinear, QuantEmbedding)):
            weight = bert.get_submodule(name).weight
            weight.data = quantize(weight.data, module.weights).dequantize()
    torch.testing.assert_close(model(**batch).logits, bert(**batch).logits, rtol=1e-4, atol=1e-4)


def test_finalizing_packs_and_rounds_the_rest_to_fp16(bert):
    model = Quantize().finalize(Quantize().apply(bert))
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(PackedLinear) == 24 and kinds.count(PackedEmbedding) == 1
    assert not {QuantLinear, QuantEmbedding} & set(kinds)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, parameter.half().float()), name


def test_rebuilding_gives_the_finalized_structure(make_bert):
    item = Quantize(weights="uint4-row", embeddings="int8-row", attention="int8-tensor")
    model = item.finalize(item.apply(make_bert(2)))
    empty = make_bert(2)
    item.rebuild(empty)
    shapes = [{k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in (model, empty)]
    assert shapes[0] == shapes[1]
    assert empty.bert.encoder.layer[1].attention.self.attention_scheme == item.attention


def test_techniques_compose_in_order(bert12):
    listed = [LayerReduction(layers=5), Quantize()]
    model = apply_all(bert12, listed)
    for item in listed:
        model = item.finalize(model)
    assert len(model.bert.encoder.layer) == 5
    assert sum(isinstance(m, PackedLinear) for m in model.modules()) == 30


@pytest.mark.parametrize(
    "item",
    [
        LayerReduction(), LayerReduction([1, 3]), LayerReduction("top", 0.25), Quantize(),
        Quantize("ternary-row", {"scheme": "binary", "granularity": "row"}, "uint8-tensor"),
        Quantize({"scheme": "ternary", "clip": 2.5}, "int4-group128", None, "int8-tensor"),
        Quantize(None, "int8-row", None),
    ],
)  # fmt: skip
def test_a_technique_reads_back_from_what_it_writes(item):
    written = item.to_dict()
    assert technique(written) == item and technique(item) is item
    assert technique(written).to_dict() == written


def test_a_name_alone_takes_the_defaults():
    assert technique("quantize") == Quantize(
        Scheme("binary"), Scheme("binary", granularity="row"), Scheme("int", 8, "token")
    )


@pytest.mark.parametrize(
    "config, message",
    [
        ({"quantise": {}}, "unknown technique 'quantise': did you mean 'quantize'"),
        ("layer_reductoin", "unknown technique 'layer_reductoin': did you mean 'layer_reduction'"),
        ({"quantize": {"weight": "binary"}}, "unknown key of quantize 'weight': did you mean 'wei"),
        ({"quantize": {}, "layer_reduction": {}}, "a technique is one `name: {fields}`, received"),
        ({"quantize": {"weights": "binray"}}, "unknown quantization scheme 'binray'"),
        (7, "a technique is one `name: {fields}`, received 7"),
    ],
)
def test_bad_configs_name_what_is_meant(config, message):
    with pytest.raises(ValueError, match=message):
        technique(config)


def test_weights_that_are_not_numbers_are_refused(bert):
    bert.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="cannot quantize this model: the parameter .*layer.1.out"):
        Quantize().apply(bert)


def test_a_packed_model_is_refused(bert):
    packed = finalize(Quantize().apply(bert), [Quantize()])
    with pytest.raises(ValueError, match="already packed; apply `xtclib.trainable` first"):
        Quantize().apply(packed)


def test_a_technique_must_say_how_it_is_applied(bert):
    class Nothing(Technique):
        name = "nothing"

    with pytest.raises(NotImplementedError, match="Nothing does not say how it is applied"):
        Nothing().apply(bert)
