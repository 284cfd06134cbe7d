import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from xtclib.techniques.quantization.quantizers import (
    Scheme,
    fake_quantize,
    quantize,
    relative_error,
)

ROWS = torch.tensor([[1.0, -3.0, 0.0, 0.4], [0.0, 0.0, 0.0, 0.0]])
SCHEMES = [
    f"{family}-{grain}"
    for family in ("binary", "ternary", "int2", "int4", "int8", "uint2", "uint4", "uint8")
    for grain in ("tensor", "row", "group2", "token")
]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_the_release_divides_by_two_to_the_bits(bits, granularity):
    """DeepSpeed's activations, in their own order of operations."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 50, generator=generator, dtype=torch.float64) + 0.3
    axis = -1 if granularity == "token" else (0, 1)
    largest, low, high = (f(x, axis, keepdim=True) for f in (
        lambda *a, **k: x.abs().amax(*a[1:], **k), torch.amin, torch.amax))  # fmt: skip
    scale = 2 * largest / 2**bits
    symmetric = (x / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * scale
    scale = (high - low) / 2**bits
    zero = (low / scale).round() * scale
    asymmetric = ((x - zero) / scale).round().clamp(0, 2**bits - 1) * scale + zero
    for family, wanted in (("int", symmetric), ("uint", asymmetric)):
        scheme = Scheme(family, bits, granularity, rule="release")
        torch.testing.assert_close(quantize(x.float(), scheme).dequantize(), wanted.float())
        plain = quantize(x.float(), Scheme(family, bits, granularity)).dequantize()
        assert float((plain - wanted).abs().max()) > 1e-3
    assert Scheme("int", bits, rule="release").levels == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def matrices(rows=4, columns=6):
    number = st.floats(-8, 8, width=32).map(lambda v: 0.0 if abs(v) < 1e-3 else v)
    return arrays(np.float32, (rows, columns), elements=number)


def reference(x, text):
    """Codes before rounding to integers, scale and zero point in float64, written from the papers.

    Returns the dequantized tensor, the scale by element, and how far rounding was from a tie.
    """
    scheme = Scheme.parse(text)
    rows = x.shape[0]
    size = {"tensor": rows, "row": 1, "token": 1, "group": rows // (scheme.groups or 1)}
    size = size[scheme.granularity]
    out, scales, far = np.zeros_like(x), np.zeros_like(x), np.ones_like(x)
    for start in range(0, rows, size):
        w = x[start : start + size]
        if scheme.family == "binary":
            alpha = np.abs(w).sum() / w.size
            found, margin = np.where(w >= 0, alpha, -alpha), np.ones_like(w)
        elif scheme.family == "ternary":
            delta = 0.7 * np.abs(w).sum() / w.size
            margin = np.abs(np.abs(w) - delta)
            kept = np.abs(w) > delta
            alpha = np.abs(w[kept]).mean() if kept.any() else 0.0
            found = np.where(kept, alpha * np.sign(w), 0.0)
        elif scheme.family == "int":
            top = 2 ** (scheme.bits - 1) - 1
            alpha = np.abs(w).max() / top
            steps = w / alpha if alpha else w * 0
            found, margin = np.rint(steps) * alpha, np.abs(steps % 1 - 0.5)
        else:
            top = 2**scheme.bits - 1
            low, high = min(w.min(), 0), max(w.max(), 0)
            alpha = (high - low) / top
            steps = w / alpha if alpha else w * 0
            zero = np.rint(-low / alpha) if alpha else 0.0
            found = (np.clip(np.rint(steps) + zero, 0, top) - zero) * alpha
            margin = np.abs(steps % 1 - 0.5)
            if alpha:
                margin = np.minimum(margin, abs((-low / alpha) % 1 - 0.5))
        out[start : start + size], scales[start : start + size] = found, alpha
        far[start : start + size] = margin
    return out, scales, far


@pytest.mark.slow
@settings(max_examples=200)
@given(scheme=st.sampled_from(SCHEMES), x=matrices())
def test_equals_a_float64_reference(scheme, x):
    q = quantize(torch.from_numpy(x), scheme)
    wanted, scales, far = reference(x.astype(np.float64), scheme)
    np.testing.assert_allclose(np.broadcast_to(q.scale.numpy(), x.shape), scales, rtol=1e-5)
    clear = far > 1e-4  # on a tie, fp32 may round to the other side
    found = q.dequantize().numpy()
    np.testing.assert_allclose(found[clear], wanted[clear], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@settings(max_examples=200)
@given(scheme=st.sampled_from(SCHEMES), x=matrices())
def test_codes_are_whole_and_within_the_levels(scheme, x):
    q = quantize(torch.from_numpy(x), scheme)
    low, high = Scheme.parse(scheme).levels
    stored = q.codes if q.zero_point is None else q.codes + q.zero_point
    assert bool((stored == stored.round()).all())
    assert low <= float(stored.min()) and float(stored.max()) <= high


@pytest.mark.slow
@settings(max_examples=200)
@given(scheme=st.sampled_from([s for s in SCHEMES if not s.startswith("uint")]), x=matrices())
def test_quantizing_twice_changes_nothing(scheme, x):
    first = quantize(torch.from_numpy(x), scheme)
    again = quantize(first.dequantize(), scheme)
    torch.testing.assert_close(again.dequantize(), first.dequantize(), rtol=1e-5, atol=1e-7)
    if not scheme.startswith("binary"):  # a scale of 0 leaves no sign to find again
        assert torch.equal(again.codes, first.codes)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantizing_twice_changes_nothing_with_a_zero_point(bits):
    x = torch.randn(8, 50, generator=torch.Generator().manual_seed(bits)) + 0.3
    first = quantize(x, f"uint{bits}-row")
    again = quantize(first.dequantize(), f"uint{bits}-row")
    assert torch.equal(again.codes, first.codes)
    assert torch.equal(again.zero_point, first.zero_point)


@given(x=matrices(), bits=st.sampled_from([4, 8]), family=st.sampled_from(["int", "uint"]))
def test_rounding_error_is_at_most_half_a_step(x, bits, family):
    q = quantize(torch.from_numpy(x), f"{family}{bits}-row")
    slack = 1.0 if family == "uint" else 0.5  # rounding the zero point shifts by up to a half
    error = (q.dequantize() - torch.from_numpy(x)).abs()
    assert bool((error <= q.scale * slack * 1.001 + 1e-6).all())


@pytest.mark.parametrize(
    "scheme, codes, scale",
    [
        ("binary-tensor", [[1, -1, 1, 1], [1, 1, 1, 1]], [[0.55]]),
        ("binary-row", [[1, -1, 1, 1], [1, 1, 1, 1]], [[1.1], [0.0]]),
        ("binary-group1", [[1, -1, 1, 1], [1, 1, 1, 1]], [[0.55], [0.55]]),
        ("binary-token", [[1, -1, 1, 1], [1, 1, 1, 1]], [[1.1], [0.0]]),
        ("ternary-tensor", [[1, -1, 0, 1], [0, 0, 0, 0]], [[4.4 / 3]]),  # Δ = 0.385
        ("ternary-row", [[1, -1, 0, 0], [0, 0, 0, 0]], [[2.0], [0.0]]),  # Δ = 0.77
        ("ternary-group2", [[1, -1, 0, 0], [0, 0, 0, 0]], [[2.0], [0.0]]),
        ("int2-tensor", [[0, -1, 0, 0], [0, 0, 0, 0]], [[3.0]]),
        ("int4-row", [[2, -7, 0, 1], [0, 0, 0, 0]], [[3 / 7], [0.0]]),
        ("int8-token", [[42, -127, 0, 17], [0, 0, 0, 0]], [[3 / 127], [0.0]]),
        ("uint4-row", [[4, -11, 0, 2], [0, 0, 0, 0]], [[4 / 15], [0.0]]),  # zero 11
        ("uint2-tensor", [[1, -2, 0, 0], [0, 0, 0, 0]], [[4 / 3]]),  # zero round(2.25) = 2
    ],
)
def test_values_computed_by_hand(scheme, codes, scale):
    q = quantize(ROWS, scheme)
    assert q.codes.tolist() == codes
    torch.testing.assert_close(q.scale, torch.tensor(scale))


def test_zero_point_by_hand():
    q = quantize(ROWS, "uint4-row")
    assert q.zero_point.tolist() == [[11.0], [0.0]]  # round(3 / (4/15)) = round(11.25)


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_the_sign_of_zero_is_plus_one(zero):
    assert quantize(torch.tensor([zero, -2.0]), "binary").codes.tolist() == [1.0, -1.0]


def test_ternary_keeps_what_exceeds_seven_tenths_of_the_mean():
    x = torch.tensor([0.69, 0.71, 1.6, 1.0])  # mean 1, Δ = 0.7
    q = quantize(x, "ternary")
    assert q.codes.tolist() == [0, 1, 1, 1]
    torch.testing.assert_close(q.scale, torch.tensor([3.31 / 3]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_tensor_of_zeros_stays_zero(scheme):
    assert quantize(torch.zeros(4, 3), scheme).dequantize().abs().max() == 0


@pytest.mark.parametrize("largest", [1e-30, 1e-37, 1e-40])
def test_the_smallest_numbers_stay_finite(largest):
    x = largest * torch.tensor([[1.0, -0.5], [0.0, 0.0]])
    found = quantize(x, "int8-token")
    assert bool(found.codes.isfinite().all()) and found.codes.abs().max() <= 127
    assert float((found.dequantize() - x).abs().max()) <= 2e-36 + largest / 254


def test_no_rows_are_quantized_to_none():
    found = quantize(torch.empty(0, 4), "int8-token")
    assert found.codes.shape == (0, 4) and found.scale.shape == (0, 1)


def test_groups_of_rows_share_a_scale():
    x = torch.tensor([[1.0], [3.0], [5.0], [7.0]])
    assert quantize(x, "binary-group2").scale.tolist() == [[2.0], [2.0], [6.0], [6.0]]
    assert quantize(x, "binary-group128").scale.tolist() == [[1.0], [3.0], [5.0], [7.0]]


def test_token_scales_run_over_the_last_dimension():
    x = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    scale = quantize(x, "int8-token").scale
    assert scale.shape == (2, 3, 1)
    torch.testing.assert_close(scale, x.abs().amax(-1, keepdim=True) / 127)


def test_halves_round_to_even():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, 127.0])
    assert quantize(x, "int8").codes.tolist() == [0, 2, 2, 0, 127]


@pytest.mark.parametrize("scheme", ["binary", "ternary-row", "int8-token", "uint4-group2"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(scheme, bad):
    x = torch.ones(4, 3)
    x[2, 1] = bad
    with pytest.raises(ValueError, match=r"of shape \(4, 3\), holds NaN or infinite values"):
        quantize(x, scheme)


@pytest.mark.parametrize(
    "text, message",
    [
        ("binry", "unknown quantization scheme 'binry': did you mean 'binary'"),
        ("int9", "unknown quantization scheme 'int9': did you mean 'int8'"),
        ("int1", "unknown quantization scheme 'int1'"),
        ("binary-rows", "unknown granularity 'rows': did you mean 'row'"),
        ("int8-row-token", "unknown granularity 'row-token'"),
        ("int4-group", "granularity 'group' was given groups=None"),
        ("int4-group0", "groups of scheme must be a whole number from 1, received 0"),
        ("int4-row128", "granularity 'row' was given groups=128"),
        ({"scheme": "int4", "granulrity": "row"}, "'granulrity': did you mean 'granularity'"),
        ({"scheme": "ternary", "clip": -1}, "clip of scheme must be a number above 0, received -1"),
    ],
)
def test_bad_schemes_name_what_is_meant(text, message):
    with pytest.raises(ValueError, match=message):
        Scheme.parse(text)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"family": "tern"}, "unknown family of scheme 'tern': did you mean 'ternary'"),
        ({"family": "int", "bits": 9}, "int quantization was given 9 bits; it exists for 2, 3"),
        ({"family": "binary", "bits": 2}, "binary quantization was given 2 bits"),
        ({"granularity": "column"}, "unknown granularity of scheme 'column'"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Scheme(**fields)


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 groups do not divide the 4 rows"):
        quantize(torch.ones(4, 2), "binary-group3")


@pytest.mark.parametrize("name", ["binary-tensor", "ternary-row", "int4-group128", "uint8-token"])
def test_names_round_trip(name):
    assert str(Scheme.parse(name)) == name
    assert Scheme.parse(Scheme.parse(name)) == Scheme.parse(name)


def test_a_mapping_reads_like_its_name():
    assert Scheme.parse({"scheme": "int4", "granularity": "group", "groups": 128}) == Scheme.parse(
        "int4-group128"
    )


@pytest.mark.parametrize("scheme", ["binary", "ternary-row", "int4-group2", "uint8-token"])
def test_gradients_pass_straight_through(scheme):
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = torch.arange(12.0).reshape(4, 3)
    (fake_quantize(x, scheme) * weight).sum().backward()
    assert torch.equal(x.grad, weight)


def test_clip_clamps_and_stops_gradients_outside():
    x = torch.tensor([-3.0, -2.5, 0.5, 4.0], requires_grad=True)
    scheme = Scheme("binary", clip=2.5)
    y = fake_quantize(x, scheme)
    torch.testing.assert_close(y.detach(), torch.tensor([-2.0, -2.0, 2.0, 2.0]))  # (3·2.5+0.5)/4
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0]


def test_quantizing_leaves_its_input_alone():
    for scheme in SCHEMES:
        x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
        kept = x.clone()
        quantize(x, scheme)
        assert torch.equal(x, kept), scheme


def test_codes_come_in_the_asked_type_and_scales_stay_fp32():
    q = quantize(ROWS, "int8-token", torch.bfloat16)
    assert q.codes.dtype == torch.bfloat16 and q.scale.dtype == torch.float32
    assert q.codes[0].tolist() == [42, -127, 0, 17]


def test_relative_error_by_hand():
    assert relative_error(torch.tensor([3.0, 1.0]), "binary") == pytest.approx((2 / 10) ** 0.5)
