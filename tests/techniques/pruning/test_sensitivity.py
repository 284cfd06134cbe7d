"""What a model can spare: parts are silenced one at a time, and come back."""

import copy

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    MPNetForSequenceClassification,
)

from xtclib.artefact import format
from xtclib.bert import PARTS, encoder_layers, encoder_linears, part
from xtclib.tasks import evaluation
from xtclib.techniques.pruning import sensitivity
from xtclib.techniques.pruning.surgery import keep_heads_
from xtclib.techniques.quantization.technique import Quantize


def zeros(model):
    return [float((m.weight == 0).float().mean()) for m in encoder_linears(model).values()]


def test_each_part_alone_is_cut_and_the_model_is_left_alone(bert):
    before, seen = copy.deepcopy(bert.state_dict()), []

    def score(model):
        seen.append(zeros(model))
        return float(len(seen))

    points = sensitivity.weights(bert, score, (0.25, 0.5), progress=False)
    assert [p.part for p in points[::2]] == list(PARTS)
    assert [p.share for p in points] == [0.25, 0.5] * 6
    assert [p.score for p in points] == list(range(1, 13))
    for index, shares in enumerate(seen):  # six linears a layer, in the order of the components
        wanted = [0.0] * 24
        wanted[index // 2 :: 6] = [(0.25, 0.5)[index % 2]] * 4
        assert shares == pytest.approx(wanted)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), bert.state_dict().values(),
                                                 strict=True))  # fmt: skip


def test_by_layer_and_whole(bert):
    layers = sensitivity.weights(bert, lambda m: sum(zeros(m)), (0.5,), "layer", progress=False)
    assert [(p.part, p.score) for p in layers] == [(f"layer {i}", 3.0) for i in (1, 2, 3, 4)]
    (whole,) = sensitivity.weights(bert, lambda m: sum(zeros(m)), (0.5,), "model", "random", False)
    assert (whole.part, whole.score) == ("encoder", 12.0)


def test_a_silenced_head_is_a_removed_head(bert, batch):
    wanted = torch.empty(4, 2)
    for layer in range(4):
        for head in range(2):
            removed = copy.deepcopy(bert)
            keep_heads_(encoder_layers(removed)[layer], [1 - head])
            wanted[layer, head] = float(removed(**batch).logits[0, 0])
    found = sensitivity.heads(bert, lambda m: float(m(**batch).logits[0, 0]), progress=False)
    assert torch.allclose(found, wanted, atol=1e-5) and float(found.std()) > 1e-3


@pytest.mark.parametrize(
    "kind, sizes",
    [
        (BertForSequenceClassification, {}),
        (MPNetForSequenceClassification, {}),
        (DistilBertForSequenceClassification, {"dim": 16, "n_layers": 3, "n_heads": 2}),
    ],
)
def test_what_lies_below_a_head_is_computed_once(kind, sizes):
    sizes = sizes or {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = kind(kind.config_class(vocab_size=50, initializer_range=0.5, **sizes)).eval()
    batches, runs = [torch.arange(6).reshape(2, 3) + i for i in (3, 20)], []

    def score(seen):
        turns = [layer.attention.register_forward_pre_hook(lambda *_: runs.append(1))
                 for layer in encoder_layers(seen)]  # fmt: skip
        with torch.no_grad():
            found = sum(float(seen(input_ids=ids).logits[:, 0].sum()) for ids in batches)
        for turn in turns:
            turn.remove()
        return found

    found = sensitivity.heads(model, score, progress=False)
    layers = encoder_layers(model)
    assert len(runs) == 2 * (3 + 3 + 3 + 2 + 3 + 1)  # of two batches: all, then from its own on
    for layer, head in ((0, 1), (1, 0), (2, 1)):
        silenced = copy.deepcopy(model)
        matrix = part(encoder_layers(silenced)[layer], "attention output").weight.data
        matrix[:, 8 * head : 8 * head + 8] = 0
        assert found[layer, head] == torch.tensor(score(silenced))
    assert all("forward" not in vars(layer) for layer in layers)


def test_layers_with_fewer_heads_leave_holes(bert):
    keep_heads_(encoder_layers(bert)[1], [0])
    found = sensitivity.heads(bert, lambda m: 1.0, progress=False)
    assert found.isnan().nonzero().tolist() == [[1, 1]]


def test_an_error_in_the_score_leaves_no_zeros_behind(bert):
    model = copy.deepcopy(bert).eval()

    def broken(seen):
        raise KeyError("no rows")

    with pytest.raises(KeyError):
        sensitivity.weights(model, broken, (0.5,), progress=False)
    assert max(zeros(model)) == 0


def test_the_scorer_is_the_evaluation_on_those_rows(bert, tokenizer, data):
    score = evaluation.scorer(tokenizer, data, 9)
    split = data.evaluation["dev"].select(list(range(9)))
    found = evaluation.evaluate(bert, tokenizer, data, splits={"dev": split})
    assert score(bert) == found["dev"]["score"]
    whole = evaluation.evaluate(bert, tokenizer, data)["dev"]["score"]
    assert evaluation.scorer(tokenizer, data)(bert) == whole


def test_a_scorer_in_bf16_multiplies_in_bf16_and_leaves_the_model_as_it_was(bert, tokenizer, data):
    seen = []
    with bert.bert.encoder.layer[0].output.dense.register_forward_hook(
        lambda *given: seen.append(given[-1].dtype)
    ):
        for bf16 in (True, False):
            evaluation.scorer(tokenizer, data, 9, bf16=bf16)(bert)
    assert seen == [torch.bfloat16, torch.float32]
    assert {weight.dtype for weight in bert.parameters()} == {torch.float32}


def test_packed_models_are_refused(bert):
    packed = format.finalize(Quantize().apply(bert), [Quantize()])
    for look in (sensitivity.weights, sensitivity.heads):
        with pytest.raises(ValueError, match="already packed; apply `xtclib.trainable`"):
            look(packed, lambda model: 1.0, progress=False)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"by": "layers"}, "unknown grouping 'layers': did you mean 'layer'"),
        ({"criterion": "movement"}, "unknown criterion 'movement'"),
        ({"shares": (0.5, 1.0)}, r"lie in \[0, 1\), received 1.0"),
    ],
)
def test_bad_settings(bert, values, message):
    with pytest.raises(ValueError, match=message):
        sensitivity.weights(bert, zeros, **{"progress": False, **values})
