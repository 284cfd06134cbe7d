import copy
from functools import partial

import pytest
import torch
from torch import nn
from transformers import MPNetConfig, MPNetModel

from xtclib import attention
from xtclib.distillation import Reader
from xtclib.techniques.quantization import technique
from xtclib.techniques.quantization.quantizers import Scheme, fake_quantize


def eager(model):
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    return model


def test_outputs_equal_eager_attention_with_padding(bert, batch):
    ours, theirs = attention.use(copy.deepcopy(bert)), eager(bert)
    kwargs = {**batch, "output_hidden_states": True}
    for a, b in zip(ours(**kwargs).hidden_states, theirs(**kwargs).hidden_states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits, rtol=1e-5, atol=1e-5)


def test_scores_are_those_before_the_softmax(bert, batch):
    ours = attention.use(copy.deepcopy(bert))(**batch, output_attentions=True).attentions
    theirs = eager(bert)(**batch, output_attentions=True).attentions
    assert len(ours) == 4 and ours[0].shape == (3, 2, 7, 7)
    hidden = batch["attention_mask"][:, None, None, :] == 0
    for scores, probabilities in zip(ours, theirs, strict=True):
        assert float(scores.min()) < 0  # no probabilities
        masked = scores.masked_fill(hidden, float("-inf"))
        torch.testing.assert_close(masked.softmax(-1), probabilities, rtol=1e-4, atol=1e-6)


def test_scores_are_query_times_key_over_the_root_of_the_width(bert, batch):
    layer = bert.bert.encoder.layer[0].attention.self
    x = bert.bert.embeddings(batch["input_ids"])
    q, k = (f(x).view(3, 7, 2, 16).transpose(1, 2) for f in (layer.query, layer.key))
    found = attention.use(bert)(**batch, output_attentions=True).attentions[0]
    torch.testing.assert_close(found, q @ k.transpose(-1, -2) / 4, rtol=1e-4, atol=1e-5)


def test_scores_carry_gradients(bert, batch):
    scores = attention.use(bert)(**batch, output_attentions=True).attentions
    scores[1].sum().backward()
    query = [layer.attention.self.query.weight.grad for layer in bert.bert.encoder.layer]
    assert float(query[0].abs().max()) > 0 and float(query[1].abs().max()) > 0
    assert query[2] is None


@pytest.mark.parametrize("quantized", [False, True])
def test_padding_is_not_attended(bert, batch, quantized):
    attention.use(bert)
    if quantized:
        technique.quantize_attention_(bert, Scheme.parse("int8-token"))
    other = dict(batch, input_ids=batch["input_ids"].clone())
    other["input_ids"][batch["attention_mask"] == 0] = 77
    a, b = (bert(**x, output_hidden_states=True).hidden_states for x in (batch, other))
    real = batch["attention_mask"].bool()
    assert not torch.equal(a[0], b[0])  # the padding did change
    torch.testing.assert_close(a[-1][real], b[-1][real])


def test_without_a_mask_nothing_is_hidden():
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    context, scores = attention.score_attention(nn.Module().eval(), q, k, v, None)
    wanted = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    torch.testing.assert_close(context, wanted)
    torch.testing.assert_close(scores, q @ k.transpose(-1, -2) / 2)


def test_probabilities_of_bf16_scores_are_computed_in_fp32():
    module, seen = nn.Module(), []
    module.received = seen.append
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 26, 8).bfloat16() for _ in range(3))
    context, scores = attention.score_attention(module, query, key, value, None)
    assert (scores.dtype, context.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(seen[0], scores.float().softmax(-1))


def test_quantized_products_by_hand(bert):
    module = nn.Module().eval()
    module.rounded = partial(fake_quantize, scheme=Scheme.parse("int8-tensor"))
    q, k, v = torch.randn(3, 1, 2, 5, 4, generator=torch.Generator().manual_seed(0))

    def fake(x):
        scale = x.abs().max() / 127
        return (x / scale).round() * scale

    scores = fake(q) @ fake(k).transpose(-1, -2) / 2
    wanted = (fake(scores.softmax(-1)) @ fake(v)).transpose(1, 2)
    found, found_scores = attention.score_attention(module, q, k, v, None)
    torch.testing.assert_close(found_scores, scores)
    torch.testing.assert_close(found, wanted)


def test_marking_quantizes_every_layer(bert):
    scheme = Scheme.parse("int8-tensor")
    technique.quantize_attention_(bert, scheme)
    marked = [layer.attention.self.attention_scheme for layer in bert.bert.encoder.layer]
    assert marked == [scheme] * 4 and bert.config._attn_implementation == "xtc"


def test_a_model_without_attention_is_refused(bert):
    bert.bert.encoder.layer = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="has no BERT-like self-attention whose products"):
        technique.quantize_attention_(bert, Scheme.parse("int8-tensor"))


def test_which_attention_trains_faster(bert):
    """Plain attention on a CPU in bf16 alone; what somebody chose stays."""
    assert attention.trains_faster(bert, bf16=True)
    assert not attention.trains_faster(bert, bf16=False)
    bert.set_attn_implementation("eager")
    assert not attention.trains_faster(bert, bf16=True)


def test_scores_of_mpnet_are_computed_beside_its_own_attention(batch):
    """With its bias by position; a copy of the model, as one that is scored, adds nothing."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2)
    model = MPNetModel(MPNetConfig(**sizes, intermediate_size=16, initializer_range=0.5)).eval()
    assert attention.shows_scores(model) and not attention.takes_another(model)
    theirs = model(**batch, output_attentions=True).attentions
    read = Reader(model, ["attention_scores"])
    copy.deepcopy(model)(**batch)
    shown = read(model, **batch)
    hidden = batch["attention_mask"][:, None, None, :] == 0
    for layer, probabilities in enumerate(theirs):
        scores = shown.at("attention_scores", layer + 1)
        masked = scores.masked_fill(hidden, float("-inf"))
        torch.testing.assert_close(masked.softmax(-1), probabilities, rtol=1e-4, atol=1e-6)
    read.close()
    assert read(model, **batch)._kept["attention_scores"] == []
