import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from xtclib.artefact.format import finalize
from xtclib.techniques.quantization import products
from xtclib.techniques.quantization.layers import QuantEmbedding, QuantLinear
from xtclib.techniques.quantization.packed import PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.quantizers import Scheme, fake_quantize, quantize
from xtclib.techniques.quantization.technique import Quantize

WEIGHTS = (
    "binary", "binary-row", "ternary", "ternary-group4", "int2-row", "int4-group4", "int8",
    "uint4-row", "uint8-group4", "uint8",
)  # fmt: skip
CLIPPED = tuple(
    {"scheme": scheme, "granularity": granularity, **options}
    for scheme in ("int8", "uint8") for granularity in ("tensor", "token")
    for options in ({"clip": 0.8}, {"rule": "release"}, {"clip": 0.8, "rule": "release"})
)  # fmt: skip
INPUTS = (
    None, "int8-token", "int8-tensor", "uint8-tensor", "uint8-token", "int4-token", *CLIPPED
)  # fmt: skip


def linear(weights, activations=None, bias=True, rows=12, columns=21, clip=None, seed=0):
    torch.manual_seed(seed)
    inner = nn.Linear(columns, rows, bias)
    nn.init.normal_(inner.weight)
    scheme = Scheme.parse(weights)
    if clip:
        scheme = Scheme(scheme.family, scheme.bits, scheme.granularity, scheme.groups, clip)
    return QuantLinear.from_linear(inner, scheme, activations and Scheme.parse(activations))


def inputs(*shape, seed=1, **kwargs):
    return torch.randn(*shape, 21, generator=torch.Generator().manual_seed(seed)).to(**kwargs)


def composed(layer, x):
    """The textbook form: both operands fake-quantized, then multiplied."""
    if layer.activations is not None:
        x = fake_quantize(x, layer.activations)
    return F.linear(x, fake_quantize(layer.weight, layer.weights), layer.bias)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("activations", INPUTS)
def test_forward_equals_the_fake_quantized_product(weights, activations):
    layer, x = linear(weights, activations), inputs(2, 5)
    torch.testing.assert_close(layer(x), composed(layer, x), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("weights", ["binary", "ternary-row", "int4-group4", "uint4-row"])
@pytest.mark.parametrize("activations", [None, "int8-token", "uint8-tensor", *CLIPPED])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("bias", [True, False])
def test_backward_equals_autograd_through_fake_quantization(weights, activations, clip, bias):
    layer = linear(weights, activations, bias, clip=clip)
    upstream = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3))
    grads = []
    for run in (layer, lambda x: composed(layer, x)):
        layer.zero_grad()
        x = inputs(2, 5).requires_grad_(True)
        run(x).backward(upstream)
        grads.append([x.grad, layer.weight.grad, *([layer.bias.grad] if bias else [])])
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    if clip:
        assert bool((grads[0][1][layer.weight.abs() > clip] == 0).all())


def test_frozen_parameters_get_no_gradient():
    layer = linear("binary", "int8-token")
    layer.weight.requires_grad_(False)
    x = inputs(3).requires_grad_(True)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and layer.bias.grad.tolist() == [3] * 12


def test_names_and_shapes_are_those_of_a_linear_layer():
    plain = nn.Linear(21, 12)
    layer = QuantLinear.from_linear(plain, Scheme.parse("binary"))
    assert layer.weight is plain.weight and layer.bias is plain.bias
    shapes = {k: v.shape for k, v in plain.state_dict().items()}
    assert {k: v.shape for k, v in layer.state_dict().items()} == shapes


def test_wrapping_keeps_the_mode():
    assert not QuantLinear.from_linear(nn.Linear(2, 2).eval(), Scheme()).training
    assert QuantEmbedding.from_embedding(nn.Embedding(2, 2), Scheme()).training


@pytest.mark.parametrize(
    "weights, activations, message",
    [
        ("binary-token", None, "weights have no tokens: choose granularity 'tensor', 'row'"),
        ("binary", "int8-row", "activations were given granularity 'row': choose 'token'"),
        ("binary-group5", None, "5 groups do not divide the 12 rows"),
    ],
)
def test_granularities_that_do_not_fit_are_refused(weights, activations, message):
    with pytest.raises(ValueError, match=message):
        linear(weights, activations)


def test_an_embedding_refuses_tokens():
    with pytest.raises(ValueError, match="an embedding has no tokens"):
        QuantEmbedding.from_embedding(nn.Embedding(4, 2), Scheme.parse("binary-token"))


def test_another_tensor_or_scheme_is_quantized_anew():
    layer, other = linear("binary", "int8-token"), linear("binary", "int4-token")
    x, y = inputs(4), inputs(4, seed=2)
    alone = [run(t.clone()) for run, t in ((layer, x), (layer, y), (other, x))]
    together = [layer(x), layer(y), other(x)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_input_changed_in_place_is_quantized_anew():
    layer, x = linear("binary", "int8-token"), inputs(4)
    before = layer(x)
    x.mul_(-1)
    torch.testing.assert_close(layer(x), 2 * layer.bias - before)


def test_query_key_and_value_share_one_quantization(make_bert, monkeypatch):
    counted = []

    def spy(x, scheme, dtype=None):
        counted.append(str(scheme))
        return quantize(x, scheme, dtype)

    monkeypatch.setattr("xtclib.techniques.quantization.products.quantize", spy)
    model = Quantize().apply(make_bert(1))
    attention = model.bert.encoder.layer[0].attention.self
    names = "query", "key", "value"
    for half in (attention, copy.deepcopy(model).bert.encoder.layer[0].attention.self):
        x, before = torch.randn(2, 5, 32), list(counted)
        for name in names:
            getattr(half, name)(x)
        assert counted.count("int8-token") == before.count("int8-token") + 1
    assert counted.count("binary-tensor") == 6
    packed = finalize(model, [Quantize()]).bert.encoder.layer[0].attention.self
    assert len({id(getattr(packed, name).inputs) for name in names}) == 1


def test_a_batch_seen_under_inference_mode_can_be_trained_on():
    layer, x = linear("binary", "int8-token"), inputs(4)
    with torch.inference_mode():
        seen = layer(x)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(y.detach(), seen) and layer.weight.grad is not None


def test_an_input_changed_in_place_under_inference_mode_is_quantized_anew():
    layer = linear("binary", "int8-token")
    with torch.inference_mode():
        x = inputs(4).clone()
        before = layer(x)
        x.mul_(-1)
        torch.testing.assert_close(layer(x), 2 * layer.bias - before)


def rounded(layer):
    """The trained layer's output with scale and bias in fp16, which packing must give exactly."""
    q = quantize(layer.weight.detach(), layer.weights)
    x = inputs(2, 5)
    x_q = quantize(x, layer.activations) if layer.activations else None
    y = F.linear(x if x_q is None else x_q.codes, q.codes)
    scale = q.scale.half().float().reshape(-1)
    scale = scale if x_q is None else x_q.scale * scale
    bias = layer.bias.half().float()
    return x, torch.addcmul(bias, y, scale)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("activations", INPUTS)
def test_packing_changes_no_bit_but_by_fp16_scales(weights, activations):
    layer = linear(weights, activations)
    packed = PackedLinear.from_quant(layer).requires_grad_(False)
    x, wanted = rounded(layer)
    assert torch.equal(packed(x), wanted)
    torch.testing.assert_close(packed(x), layer(x).detach(), rtol=2e-3, atol=2e-2)


@settings(max_examples=30, deadline=None)
@given(
    weights=st.sampled_from(["binary", "ternary", "int8", "uint8"]),
    activations=st.sampled_from(["int8-token", "uint8-tensor"]),
    seed=st.integers(0, 99),
)
def test_sums_of_integers_are_exact(weights, activations, seed):
    generator = torch.Generator().manual_seed(seed)
    w = quantize(torch.randn(8, 250, generator=generator), weights).codes
    x = quantize(torch.randn(5, 250, generator=generator), activations).codes
    assert torch.equal(F.linear(x, w).to(torch.int64), x.to(torch.int64) @ w.to(torch.int64).T)


def test_the_packed_product_is_the_integer_product_times_its_scales():
    layer = linear("ternary-row", "int8-token", bias=False)
    packed, x = PackedLinear.from_quant(layer), inputs(6)
    x_q, w_q = quantize(x, "int8-token"), packed.quantized()
    sums = x_q.codes.to(torch.int64) @ w_q.codes.to(torch.int64).T
    assert torch.equal(packed(x), sums.float() * (x_q.scale * w_q.scale.reshape(-1)))


@pytest.mark.parametrize(
    "weights, stored, scales",
    [("binary", (12, 3), 1), ("ternary-row", (12, 6), 12), ("int4-group4", (12, 11), 4)],
)
def test_bytes_take_the_bits_they_should(weights, stored, scales):
    packed = PackedLinear.from_quant(linear(weights))
    assert packed.weight.dtype == torch.uint8 and tuple(packed.weight.shape)[:2] == stored
    assert packed.weight_scale.dtype == torch.float16 and packed.weight_scale.shape == (scales,)
    assert not hasattr(packed, "weight_zero")


def test_no_width_has_the_shape_of_an_unpacked_weight():
    for weights in WEIGHTS:
        assert PackedLinear.from_quant(linear(weights)).weight.shape != (12, 21), weights


def test_asymmetric_weights_store_their_zero_points():
    layer = linear("uint4-row")
    packed = PackedLinear.from_quant(layer)
    wanted = quantize(layer.weight.detach(), "uint4-row").zero_point.flatten()
    assert packed.weight_zero.dtype == torch.uint8
    assert packed.weight_zero.tolist() == wanted.tolist()


@pytest.mark.parametrize("weights", ["binary-row", "binary", "ternary-group4", "int8", "uint4-row"])
def test_a_packed_embedding_gives_the_quantized_rows(weights):
    torch.manual_seed(0)
    layer = QuantEmbedding.from_embedding(nn.Embedding(20, 9), Scheme.parse(weights))
    packed = PackedEmbedding.from_quant(layer)
    q = quantize(layer.weight.detach(), weights)
    ids = torch.tensor([[0, 19, 3], [3, 7, 7]])
    table = q.codes * q.scale.half().float()
    assert torch.equal(packed(ids), table[ids])
    torch.testing.assert_close(packed(ids), layer(ids).detach(), rtol=1e-3, atol=1e-3)


def test_a_row_wise_embedding_trains_only_the_rows_looked_up():
    layer = QuantEmbedding.from_embedding(nn.Embedding(6, 4), Scheme.parse("binary-row"))
    layer(torch.tensor([1, 1, 4])).sum().backward()
    assert layer.weight.grad.sum(1).tolist() == [0, 8, 0, 0, 4, 0]


@pytest.mark.parametrize("activations", [None, "int8-token"])
def test_bf16_autocast_is_close_to_fp32(activations):
    layer, x = linear("binary", activations), inputs(2, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    exact = layer(x)
    assert float(((y.float() - exact).norm() / exact.norm()).detach()) < 0.01
    packed = PackedLinear.from_quant(layer)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
    torch.testing.assert_close(packed(x), exact, rtol=2e-3, atol=2e-2)  # fp32 again after bf16


def test_gradients_under_autocast_are_fp32():
    layer, x = linear("binary", "int8-token"), inputs(2, 5).requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x).float().sum().backward()
    assert layer.weight.grad.dtype == x.grad.dtype == layer.bias.grad.dtype == torch.float32


def test_a_cast_or_copied_layer_unpacks_again():
    packed, x = PackedLinear.from_quant(linear("int4-group4")), inputs(3)
    wanted = packed(x)
    assert torch.equal(copy.deepcopy(packed)(x), wanted)
    packed.to(torch.float64)
    assert packed._unpacked is None and packed.weight.dtype == torch.uint8
    y = packed(x.double())
    assert y.dtype == torch.float64
    torch.testing.assert_close(y.float(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["load_state_dict", "store_"])
def test_new_bytes_replace_what_was_unpacked(how):
    first, second = (linear("binary", "int8-token", seed=s, bias=False) for s in (0, 1))
    packed, wanted, x = *map(PackedLinear.from_quant, (first, second)), inputs(3)
    assert not torch.equal(packed(x), wanted(x))
    if how == "store_":
        packed.store_(second.weight)
    else:
        packed.load_state_dict(wanted.state_dict())
    assert torch.equal(packed(x), wanted(x))


def test_a_packed_layer_can_be_differentiated_after_inference():
    packed = PackedLinear.from_quant(linear("binary"))
    with torch.inference_mode():
        packed(inputs(3))
    x = inputs(3).requires_grad_(True)
    packed(x).sum().backward()
    torch.testing.assert_close(x.grad[0], packed.quantized().dequantize().sum(0))


def test_weights_that_are_not_numbers_cannot_be_packed():
    layer = linear("binary")
    layer.weight.data[3, 4] = float("nan")
    with pytest.raises(ValueError, match=r"of shape \(12, 21\) holds NaN or infinite values"):
        PackedLinear.from_quant(layer)


def test_a_scale_beyond_fp16_cannot_be_packed():
    layer = linear("binary")
    layer.weight.data.fill_(1e5)
    with pytest.raises(ValueError, match=r"a scale of 1e\+05 does not fit in fp16"):
        PackedLinear.from_quant(layer)


def test_a_bias_beyond_fp16_cannot_be_packed():
    layer = linear("binary")
    layer.bias.data[2] = 1e5
    with pytest.raises(ValueError, match="does not fit in fp16"):
        PackedLinear.from_quant(layer)


def test_layers_print_their_schemes():
    layer = linear("ternary-row", "int8-token")
    assert "weights=ternary-row, activations=int8-token" in repr(layer)
    assert "12 × 21, weights=ternary-row" in repr(PackedLinear.from_quant(layer))


def packed(weights, activations="int8-token", shape=(24, 40), seed=0):
    """A packed layer of random weights, and the same one kept from the integer kernel."""
    torch.manual_seed(seed)
    layer = PackedLinear.from_quant(
        QuantLinear.from_linear(
            nn.Linear(shape[1], shape[0]),
            Scheme.parse(weights),
            activations and Scheme.parse(activations),
        )
    )
    floating = copy.deepcopy(layer)
    floating.integers = False
    return layer, floating


@pytest.mark.parametrize(
    "weights", ["binary", "ternary-row", "int4-group8", "int8", "uint2-row", "uint4-row", "uint7"]
)
@pytest.mark.parametrize(
    "activations", ["int8-token", "int4-token", "int8", "uint8", "uint4-token"]
)
@pytest.mark.parametrize("rows", [(1,), (3, 5), (2, 17, 1)])
def test_the_integer_kernel_gives_the_same_bits(weights, activations, rows):
    layer, floating = packed(weights, activations)
    x = 3 * torch.randn(*rows, 40)
    with torch.no_grad():
        assert layer.runs_on_integers(x) and not floating.runs_on_integers(x)
        assert torch.equal(layer(x), floating(x))
    assert layer._unpacked.codes.dtype == torch.int8


@pytest.mark.parametrize("weights, activations", [("uint8", "int8-token"), ("binary", None)])
def test_what_has_no_signed_integers_stays_in_floating_point(weights, activations):
    layer, floating = packed(weights, activations)
    x = torch.randn(4, 40)
    with torch.no_grad():
        assert not layer.runs_on_integers(x)
        assert torch.equal(layer(x), floating(x))


def test_gradients_and_autocast_stay_in_floating_point():
    layer, _ = packed("binary")
    x = torch.randn(4, 40, requires_grad=True)
    assert not layer.runs_on_integers(x)
    layer(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and x.grad.abs().sum() > 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not layer.runs_on_integers(x) and layer(x).dtype == torch.bfloat16
    with torch.no_grad():  # back again: the codes are unpacked anew
        assert layer(x).dtype == torch.float32 and layer._unpacked.codes.dtype == torch.int8


def test_integer_sums_are_exact_where_fp32_is_not():
    x = torch.full((1, 4096), 127, dtype=torch.int8)
    weight = torch.full((1, 4096), 127, dtype=torch.int8)
    weight[0, 0] = 126
    assert int(products.integer_linear(x, weight)) == 4096 * 127 * 127 - 127


def test_without_the_kernel_it_says_so_and_falls_back(monkeypatch):
    layer, floating = packed("ternary")
    x = torch.randn(4, 40)

    def missing(*_):
        raise RuntimeError("no such kernel\nmore")

    monkeypatch.setattr(torch, "_int_mm", missing)
    products.integer_kernel.cache_clear()
    try:
        with torch.no_grad(), pytest.warns(UserWarning, match="no int8 .* on cpu .no such kernel"):
            assert torch.equal(layer(x), floating(x))
    finally:
        products.integer_kernel.cache_clear()


@pytest.mark.parametrize("bias", [None, torch.tensor([0.5, -1.0])])
def test_rescaling_writes_into_the_product_unless_gradients_are_wanted(bias):
    x_scale, w_scale = torch.tensor([[0.5], [2.0]]), torch.tensor([[0.25]])
    product = torch.tensor([[4.0, -8.0], [2.0, 0.0]], requires_grad=True)
    wanted = torch.tensor([[0.5, -1.0], [1.0, 0.0]]) + (0 if bias is None else bias)
    found = products.rescale(product, x_scale, w_scale, bias)
    assert torch.equal(found, wanted) and product.tolist() == [[4.0, -8.0], [2.0, 0.0]]
    found.sum().backward()
    assert product.grad.tolist() == [[0.125, 0.125], [0.5, 0.5]]
    with torch.no_grad():
        fresh = product.clone()
        assert products.rescale(fresh, x_scale, w_scale, bias).data_ptr() == fresh.data_ptr()
        assert torch.equal(fresh, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("weights", ["binary", "ternary-row", "int8"])
def test_a_gpu_gives_the_bits_of_the_cpu(weights):
    layer, floating = packed(weights)
    x = 3 * torch.randn(33, 40)
    with torch.no_grad():
        wanted = layer(x)
        layer, floating = layer.cuda(), floating.cuda()
        assert torch.equal(floating(x.cuda()).cpu(), wanted)
        assert torch.equal(layer(x.cuda()).cpu(), wanted)
