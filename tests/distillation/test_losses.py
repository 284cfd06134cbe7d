import numpy as np
import pytest
import torch

from xtclib.distillation.losses import (
    attention_divergence,
    attention_mse,
    attention_probability_mse,
    hidden_cosine,
    hidden_mse,
    kl_divergence,
    layer_map,
    logits_mse,
    patience,
    relation_divergence,
    soft_cross_entropy,
)

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])


def pair(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) for _ in range(2))


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_soft_cross_entropy_equals_numpy(temperature):
    s, t = pair(5, 3)
    wanted = -np.exp(log_softmax(t.numpy() / temperature)) * log_softmax(s.numpy() / temperature)
    found = soft_cross_entropy(s, t, temperature)
    assert float(found) == pytest.approx(wanted.sum(-1).mean(), rel=1e-12)
    per_class = soft_cross_entropy(s, t, temperature, per_class=True)
    assert float(per_class) == pytest.approx(wanted.mean(), rel=1e-12)
    assert float(found) == pytest.approx(3 * float(per_class), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_divergence_equals_numpy(temperature):
    s, t = pair(5, 3)
    log_p, log_q = log_softmax(t.numpy() / temperature), log_softmax(s.numpy() / temperature)
    wanted = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(-1).mean()
    assert float(kl_divergence(s, t, temperature)) == pytest.approx(wanted, rel=1e-10)
    per_class = float(kl_divergence(s, t, temperature, per_class=True))
    assert per_class == pytest.approx(wanted / 3, rel=1e-10)


def test_hidden_mse_equals_numpy_with_and_without_padding():
    s, t = pair(2, 4, 5)
    squares = (s - t).numpy() ** 2
    real = MASK.numpy().astype(bool)
    assert float(hidden_mse(s, t, MASK)) == pytest.approx(squares[real].mean(), rel=1e-6)
    assert float(hidden_mse(s, t)) == pytest.approx(squares.mean(), rel=1e-12)


def test_attention_mse_equals_numpy_with_and_without_padding():
    s, t = pair(2, 3, 4, 4)
    squares = (s - t).numpy() ** 2
    real = MASK.numpy().astype(bool)
    kept = [squares[b][:, real[b]][:, :, real[b]].ravel() for b in range(2)]
    wanted = np.concatenate(kept).mean()  # 3·(9 + 1) numbers
    assert float(attention_mse(s, t, MASK)) == pytest.approx(wanted, rel=1e-6)
    assert float(attention_mse(s, t)) == pytest.approx(squares.mean(), rel=1e-12)


@pytest.mark.parametrize("loss, shape", [(hidden_mse, (2, 4, 5)), (attention_mse, (2, 3, 4, 4))])
def test_padding_changes_neither_loss_nor_gradient(loss, shape):
    s, t = pair(*shape)
    grads = []
    for noise in (0.0, 1e3):
        moved = t.clone()
        moved[1, ..., 1:, :] += noise  # padding of row 1: hidden positions or queries 1 to 3
        student = s.clone().requires_grad_(True)
        value = loss(student, moved, MASK)
        value.backward()
        grads.append((float(value.detach()), student.grad))
    assert grads[0][0] == grads[1][0] and torch.equal(grads[0][1], grads[1][1])
    assert grads[0][1][1, ..., 1:, :].abs().max() == 0 and grads[0][1][0].abs().max() > 0


@pytest.mark.parametrize(
    "loss, shape",
    [
        (soft_cross_entropy, (3, 4)),
        (lambda s, t: soft_cross_entropy(s, t, 2.0, True), (3, 4)),
        (kl_divergence, (3, 4)),
        (lambda s, t: kl_divergence(s, t, 3.0), (3, 4)),
        (hidden_mse, (2, 4, 3)),
        (attention_mse, (2, 2, 4, 4)),
    ],
)
def test_gradients_are_those_of_finite_differences(loss, shape):
    s, t = pair(*shape)
    assert torch.autograd.gradcheck(lambda x: loss(x, t), s.requires_grad_(True))


@pytest.mark.parametrize("loss, shape", [(hidden_mse, (2, 4, 3)), (attention_mse, (2, 2, 4, 4))])
def test_masked_gradients_are_two_times_the_difference_over_the_count(loss, shape):
    s, t = pair(*shape)
    s.requires_grad_(True)
    loss(s, t, MASK).backward()
    real = MASK.bool()
    if len(shape) == 3:
        real = real[:, :, None].expand(shape)
    else:
        real = (real[:, None, :, None] & real[:, None, None, :]).expand(shape)
    wanted = torch.where(real, 2 * (s - t).detach() / real.sum(), 0.0)
    torch.testing.assert_close(s.grad, wanted, rtol=1e-6, atol=1e-9)


def test_equal_student_and_teacher_give_zero():
    x, _ = pair(2, 4)
    h, _ = pair(2, 4, 5)
    a, _ = pair(2, 3, 4, 4)
    assert float(kl_divergence(x, x, 2.0)) == 0
    assert float(hidden_mse(h, h, MASK)) == float(hidden_mse(h, h)) == 0
    assert float(attention_mse(a, a, MASK)) == float(attention_mse(a, a)) == 0


def test_soft_cross_entropy_of_equals_is_the_entropy_and_its_gradient_is_zero():
    x, _ = pair(3, 4)
    p = torch.softmax(x, -1)
    s = x.clone().requires_grad_(True)
    loss = soft_cross_entropy(s, x)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(-(p * p.log()).sum(-1).mean()), rel=1e-12)
    assert float(s.grad.abs().max()) < 1e-15


def test_a_cold_teacher_gives_cross_entropy_with_its_answer():
    s, t = pair(6, 3)
    cold = soft_cross_entropy(s / 1e3, t, 1e-3)  # softmax(t/T) is one-hot, s/T is s
    hard = torch.nn.functional.cross_entropy(s, t.argmax(-1))
    assert float(cold) == pytest.approx(float(hard), rel=1e-9)


def test_a_hot_temperature_tends_to_half_the_squared_distance_of_centred_logits():
    s, t = pair(6, 3)
    difference = s - t
    centred = difference - difference.mean(-1, keepdim=True)
    wanted = float((centred**2).sum(-1).mean() / (2 * 3))
    assert float(kl_divergence(s, t, 1e4)) == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("loss", [soft_cross_entropy, kl_divergence])
@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperatures_must_be_positive(loss, temperature):
    with pytest.raises(ValueError, match=f"temperature must be positive, received {temperature}"):
        loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature)


@pytest.mark.parametrize(
    "loss, student, teacher, what",
    [
        (soft_cross_entropy, (2, 3), (2, 4), "logits"),
        (kl_divergence, (2, 1), (2, 4), "logits"),
        (hidden_mse, (2, 4, 3), (2, 4, 6), "hidden states"),
        (attention_mse, (2, 2, 4, 4), (2, 3, 4, 4), "attention scores"),
    ],
)
def test_shapes_that_differ_are_refused(loss, student, teacher, what):
    with pytest.raises(ValueError, match=rf"{what}: the student gives \({student[0]}, .*agree"):
        loss(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize(
    "layers, kind, wanted",
    [
        (6, "uniform", [0, 2, 4, 6, 8, 10, 12]),
        (5, "uniform", [0, 2, 5, 7, 10, 12]),
        (8, "uniform", [0, 2, 3, 5, 6, 8, 9, 11, 12]),  # halves go up: 1.5, 4.5, 7.5, 10.5
        (12, "uniform", list(range(13))),
        (1, "uniform", [0, 12]),
        (6, "last", [0, 7, 8, 9, 10, 11, 12]),
        (5, "last", [0, 8, 9, 10, 11, 12]),
        (6, "release", [0, 2, 4, 6, 8, 10, 12]),  # a student that was not cut out: floors
        (5, "release", [0, 2, 4, 6, 8, 10]),
        (12, "release", list(range(13))),
    ],
)
def test_layer_maps_onto_twelve_layers(layers, kind, wanted):
    assert layer_map(layers, 12, kind) == wanted


@pytest.mark.parametrize(
    "kept, wanted",
    [
        ([1, 3, 5, 7, 9, 11], [0, 2, 4, 6, 8, 10, 12]),
        ([2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]),
        ([0, 2, 3, 5, 6, 8, 9, 11], [-1, 1, 3, 4, 6, 7, 9, 10, 12]),
        ([0, 1, 2], [-1, 1, 2, 3]),
    ],
)
def test_the_releases_map_is_made_from_the_kept_layers(kept, wanted):
    assert layer_map(len(kept), 12, "release", kept) == wanted


def test_kept_layers_are_as_many_as_the_students():
    with pytest.raises(ValueError, match="2 layers were kept, but the student has 3"):
        layer_map(3, 12, "release", [0, 1])


@pytest.mark.parametrize("kind", ["uniform", "last", "release"])
def test_every_map_rises_within_the_teacher(kind):
    for teacher in range(1, 25):
        for student in range(1, teacher + 1):
            found = layer_map(student, teacher, kind)
            assert len(found) == student + 1 and found == sorted(set(found))
            assert found[0] >= 0 and found[-1] <= teacher


@pytest.mark.parametrize("student", [0, 13, -1])
def test_depths_that_do_not_fit_are_refused(student):
    with pytest.raises(ValueError, match=f"a student of {student} layers cannot follow .* of 12"):
        layer_map(student, 12)


def test_an_unknown_map_is_refused():
    with pytest.raises(ValueError, match="unknown layer map 'first': choose 'uniform', 'last'"):
        layer_map(6, 12, "first")


def test_logits_mse_equals_numpy():
    s, t = pair(5, 3)
    wanted = ((s - t).numpy() ** 2).sum(-1).mean()
    assert float(logits_mse(s, t)) == pytest.approx(wanted, rel=1e-12)
    assert float(logits_mse(s, t, per_class=True)) == pytest.approx(wanted / 3, rel=1e-12)


def divergence_by_rows(s, t):
    """Mean over rows of KL(softmax t ‖ softmax s), of numpy arrays (…, keys)."""
    log_p, log_q = log_softmax(t), log_softmax(s)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def by_sentence(s, t, row_loss):
    """A row loss over real queries and heads, keys cut to the real ones, an array a sentence."""
    rows = []
    for b, real in enumerate(MASK.numpy().astype(bool)):
        cut = [x[b].numpy()[:, real][:, :, real] for x in (s, t)]
        rows.append(row_loss(*cut).ravel())
    return rows


def mean_of_means(rows):
    return np.mean([row.mean() for row in rows])


def test_attention_divergence_equals_numpy_with_and_without_padding():
    s, t = pair(2, 3, 4, 4)
    rows = by_sentence(s, t, divergence_by_rows)  # of three tokens, and of one
    found = float(attention_divergence(s, t, MASK))
    assert found == pytest.approx(mean_of_means(rows), rel=1e-6)
    by_token = float(attention_divergence(s, t, MASK, per_token=True))
    assert by_token == pytest.approx(np.concatenate(rows).mean(), rel=1e-6)
    assert abs(by_token - found) > 0.1
    wanted = divergence_by_rows(s.numpy(), t.numpy()).mean()
    assert float(attention_divergence(s, t)) == pytest.approx(wanted, rel=1e-6)


def test_attention_probabilities_are_compared_over_real_keys():
    s, t = pair(2, 3, 4, 4)

    def squares(a, b):
        return (np.exp(log_softmax(a)) - np.exp(log_softmax(b))) ** 2

    assert float(attention_probability_mse(s, t, MASK)) == pytest.approx(
        np.concatenate(by_sentence(s, t, squares)).mean(), rel=1e-6
    )
    wanted = squares(s.numpy(), t.numpy()).mean()
    assert float(attention_probability_mse(s, t)) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("mask", [None, MASK])
def test_relations_of_two_widths_equal_numpy(mask):
    generator = torch.Generator().manual_seed(0)
    s, t = (torch.randn(2, 4, w, generator=generator, dtype=torch.float64) for w in (6, 12))
    scores = []
    for x in (s, t):
        split = x.numpy().reshape(2, 4, 3, -1).transpose(0, 2, 1, 3)  # (batch, heads, length, d)
        scores.append(torch.from_numpy(split @ split.swapaxes(-1, -2) / split.shape[-1] ** 0.5))
    wanted = (
        divergence_by_rows(*(x.numpy() for x in scores)).mean()
        if mask is None
        else mean_of_means(by_sentence(*scores, divergence_by_rows))
    )
    assert float(relation_divergence(s, t, mask, heads=3)) == pytest.approx(wanted, rel=1e-5)
    if mask is not None:
        wanted = np.concatenate(by_sentence(*scores, divergence_by_rows)).mean()
        found = relation_divergence(s, t, mask, heads=3, per_token=True)
        assert float(found) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "heads, message",
    [
        (5, "5 relation heads do not divide the student's width of 12"),
        (0, "a whole number from 1, received 0"),
        (2.0, "a whole number from 1, received 2.0"),
        ("4", "a whole number from 1, received '4'"),
    ],
)
def test_relation_heads_must_divide(heads, message):
    x = torch.zeros(1, 2, 12)
    with pytest.raises(ValueError, match=message):
        relation_divergence(x, x, heads=heads)


def test_patience_is_the_squared_distance_of_normalized_first_tokens():
    s, t = pair(2, 4, 5)
    a, b = (
        x.numpy()[:, 0] / np.linalg.norm(x.numpy()[:, 0], axis=-1, keepdims=True) for x in (s, t)
    )
    wanted = ((a - b) ** 2).sum(-1).mean()
    assert float(patience(s, t, MASK)) == pytest.approx(wanted, rel=1e-6)
    assert float(patience(s, t, per_dimension=True)) == pytest.approx(wanted / 5, rel=1e-6)
    assert float(patience(3 * s, t)) == pytest.approx(wanted, rel=1e-6)  # directions only


def test_cosine_equals_numpy_with_and_without_padding():
    s, t = pair(2, 4, 5)
    a, b = s.numpy(), t.numpy()
    apart = 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    real = MASK.numpy().astype(bool)
    assert float(hidden_cosine(s, t, MASK)) == pytest.approx(apart[real].mean(), rel=1e-6)
    assert float(hidden_cosine(s, t)) == pytest.approx(apart.mean(), rel=1e-6)


SHAPES = {
    hidden_mse: (2, 4, 8), hidden_cosine: (2, 4, 8), patience: (2, 4, 8), relation_divergence:
    (2, 4, 24), attention_mse: (2, 3, 4, 4), attention_divergence: (2, 3, 4, 4),
    attention_probability_mse: (2, 3, 4, 4),
}  # fmt: skip


@pytest.mark.parametrize("loss", SHAPES, ids=lambda loss: loss.__name__)
@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
def test_a_student_equal_to_its_teacher_has_no_loss_and_no_gradient(loss, mask):
    teacher = next(pair(*SHAPES[loss])).float()
    student = teacher.clone().requires_grad_(True)
    found = loss(student, teacher, mask)
    assert abs(found.item()) < 1e-6
    found.backward()
    assert float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("loss", SHAPES, ids=lambda loss: loss.__name__)
def test_padding_changes_nothing_and_gets_no_gradient(loss):
    s, t = (x.float() for x in pair(*SHAPES[loss]))
    scores = len(SHAPES[loss]) == 4
    padded = ~MASK.bool()
    where = padded[:, None, :, None] | padded[:, None, None] if scores else padded.unsqueeze(-1)
    student = s.clone().requires_grad_(True)
    found = loss(student, t, MASK)
    found.backward()
    assert float((student.grad * where).abs().max()) == 0 and float(student.grad.abs().max()) > 0
    spoiled = torch.where(where, 1e4 * torch.rand_like(t), t)
    assert float(loss(s, spoiled, MASK)) == pytest.approx(float(found), rel=1e-6)


def test_temperatures_limits():
    """Towards 0 only the teacher's choice counts; towards infinity logits are matched."""
    s, t = pair(4, 3)
    cold = float(kl_divergence(100 * s, 100 * t, 1.0)) / 100
    margin = (s.max(-1).values - s.gather(-1, t.argmax(-1, keepdim=True)).squeeze(-1)).mean()
    assert cold == pytest.approx(float(margin), rel=0.01)
    centred = [x - x.mean(-1, keepdim=True) for x in (s, t)]
    hot = float(kl_divergence(s, t, 1e4))
    assert hot == pytest.approx(float(logits_mse(*centred)) / 6, rel=1e-3)  # ‖s − t‖² / 2C
