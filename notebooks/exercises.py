"""Answers and hidden tests of the notebooks' exercises: `xtclib.notebook.check` reads them.

You are about to see the solutions; each notebook has a hint and the solution folded away.
Names are ``NN name``, NN the notebook. `ANSWERS` computes what is right and says to how many digits
it is compared; `TESTS` calls a reader's function and yields (words, what it gave, what is right).
"""

from functools import cache
from numbers import Real

import numpy as np
import torch

from xtclib import LayerReduction, Match, recipes, records
from xtclib.costs import architectures, breakdown, claims
from xtclib.distillation import attention_mse, kl_divergence, layer_map, soft_cross_entropy
from xtclib.study import pairs, pareto
from xtclib.techniques.dynamic.criteria import Judge
from xtclib.techniques.factorization import decompositions
from xtclib.techniques.pruning import masks
from xtclib.techniques.quantization import Scheme, gptq, packing, quantize, relative_error, split

UNSURE, TEACHER = torch.zeros(1, 2), torch.tensor([[0.9, 0.1]]).log()
SPLIT = split(torch.tensor([[0.1, -1.0, 2.0, -0.2]], dtype=torch.float64), Scheme.parse("ternary"))


def encoder_flops(f):
    for layers, h, n in ((12, 768, 128), (24, 1024, 320), (4, 312, 64)):
        right = layers * (24 * n * h**2 + 4 * n**2 * h)
        yield f"{layers} layers, width {h}, {n} tokens", f(layers, h, n), right


def by_row(f):
    rows = torch.randn(6, 32, generator=torch.Generator().manual_seed(5))
    for words, scale in (("rows alike", 1.0), ("one row 20 times larger", 20.0)):
        x = torch.cat([rows[:1] * scale, rows[1:]])
        for bits in (4, 8):
            yield f"{words}, {bits} bits", f(x, bits), quantize(x, f"int{bits}-row").dequantize()


def two_of_four(f):
    for shape in ((8, 16), (3, 4)):
        w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        (right,) = masks.masks([w.abs()], 0.5, pattern="2:4")
        yield f"weights of shape {shape}", f(w), right


def masked_scores_mse(f):
    a, b = torch.arange(32.0).reshape(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)
    for words, mask in (
        ("nothing padded", torch.ones(2, 4).long()),
        ("padding at the end", torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])),
    ):
        yield words, f(a, b, mask), attention_mse(a, b, mask)
        yield (
            f"two heads, {words}",
            f(a.repeat(1, 2, 1, 1), b.repeat(1, 2, 1, 1), mask),
            (attention_mse(a.repeat(1, 2, 1, 1), b.repeat(1, 2, 1, 1), mask)),
        )


def unpack_signs(f):
    for n in (8, 10, 23):
        signs = torch.randn(n, generator=torch.Generator().manual_seed(n)).sign()
        yield f"{n} signs", f(packing.encode(signs, 1, 1), n), signs


def open_row(f):
    table = packing.byte_table(1, 1)
    for n in (8, 10, 23):
        signs = torch.randn(n, generator=torch.Generator().manual_seed(n)).sign()
        yield f"{n} signs", f(packing.encode(signs, 1, 1), table, n), signs


def patience(classes):
    judge = Judge("patience")
    rows = [torch.eye(2)[[c]] for c in classes]
    return [int(judge.sure(row)) for row in rows]


def nearest(f):
    draw = torch.Generator().manual_seed(7)
    for outputs, inputs, rank in ((6, 8, 2), (8, 5, 3)):
        w, x = (torch.randn(n, inputs, generator=draw).double() for n in (outputs, 40))
        x = x * torch.arange(1, inputs + 1)
        up, down = decompositions.whitened_svd(w, x.T @ x / 40).factors(rank)
        yield f"{outputs} × {inputs}, rank {rank}", f(w, x, rank), up @ down


def leaves_by(f):
    sure = torch.tensor([[0.1, 0.9, 0.2], [0.8, 0.1, 0.9], [0.0, 0.0, 0.0]])
    for bar, right in ((0.5, [1, 0, 3]), (0.85, [1, 2, 3]), (-1.0, [0, 0, 0])):
        yield f"a bar of {bar}", f(sure, bar), torch.tensor(right)


@cache
def convention():
    names = "FLOPs", "MACs", "weights only", "everything", "one-hot lookups"
    counted = breakdown.break_down("bert-base")
    return min(names, key=lambda name: abs(counted.flops(name) - 11.2e9))


KEPT = [0, 2, 3, 5, 6, 8, 9, 11]  # of twelve layers, by a student of eight
TWO_BITS = {"task": "reviews", "recipe": "xtc-2bit-half", "budget": "A", "seed": 0}


def against():
    moment = torch.tensor([[1.0, -0.8], [-0.8, 1.0]]).double()
    w = torch.tensor([[0.6, 0.6]]).double()
    return gptq.gptq(w, moment, gptq.Grid(Scheme.parse("int4"), torch.ones(1, 1)), damp=0.0)


def compensated(f):
    for size in (2, 5):
        x = torch.randn(40, size, generator=torch.Generator().manual_seed(size)).double()
        x = x + x[:, :1]
        w = 2 * torch.randn(size, generator=torch.Generator().manual_seed(7)).double()
        moment, whole = x.T @ x / 40, gptq.Grid(Scheme.parse("int8"), torch.ones(1, 1).double())
        right = gptq.gptq(w[None], moment, whole, damp=0.0)[0]
        yield f"{size} weights", f(w.clone(), moment), right


def adjusted(f):
    for ps in ([0.01, 0.04, 0.03], [0.5], [0.2, 0.001, 0.8, 0.02, 0.02]):
        yield f"{len(ps)} values", f(list(ps)), torch.tensor(pairs.holm(ps))


def front_of(f):
    for seed, axes in ((0, 2), (1, 3)):
        costs = np.random.default_rng(seed).integers(0, 6, (40, axes))
        yield f"40 points, {axes} axes", f(costs.copy()), pareto.unbeaten(costs)


ANSWERS = {  # name: (what is right, digits after the point; None: exactly)
    "00 times smaller": (lambda: records.read("reviews", **TWO_BITS)[0].ratio, 1),
    "01 overtaken": (lambda: 4 * architectures.config_of("bert-large").hidden_size, None),
    "01 megabytes": (lambda: claims.backbone_parameters("pkd-6l") * 2 / 8 / 1e6, 1),
    "01 convention": (convention, None),
    "02 alpha": (lambda: quantize(torch.tensor([0.1, -0.4, 0.7, -0.8]), "binary").scale, 3),
    "02 error": (lambda: relative_error(torch.tensor([0.1, -0.4, 0.7, -0.8]), "binary"), 3),
    "02 binary bytes": (lambda: 3072 * packing.packed_length(768, 1) + 2, None),
    "02 ternary bytes": (lambda: 3072 * packing.packed_length(768, 2) + 2 * 3072, None),
    "03 bits": (lambda: 1 + 4 * 0.2, 2),
    "03 density": (lambda: (4 - 1) / 4, 2),
    "03 steps": (lambda: 0.1**2 / (2 * 1e-5), 0),
    "04 cross-entropy": (lambda: soft_cross_entropy(UNSURE, TEACHER), 3),
    "04 divergence": (lambda: kl_divergence(UNSURE, TEACHER), 3),
    "04 gradient": (lambda: 0.5 - 0.9, 3),
    "04 uniform": (lambda: layer_map(8, 12), None),
    "04 release": (lambda: layer_map(8, 12, "release", KEPT), None),
    "04 skip": (lambda: [j for _, j in Match("patience", layers="uniform").pairs(4, 12)], None),
    "04 last": (lambda: [j for _, j in Match("patience", layers="last").pairs(4, 12)], None),
    "04 beta": (lambda: SPLIT[0][0, 3], 3),
    "04 half scale": (lambda: quantize(SPLIT[1], "binary").scale, 3),
    "05 mebibytes": (
        lambda: (claims.backbone_parameters("bert-base") - 7 * 7_087_872) * 2 / 8 / 2**20,
        2,
    ),
    "05 kept": (lambda: LayerReduction(layers=4).indices(12), None),
    "05 followed": (lambda: layer_map(4, 12), None),
    "05 recipe": (lambda: recipes.load("xtc-2bit-5of12").hash, None),
    "06 trit bytes": (lambda: 3072 * packing.packed_length(768, 1.6) + 2 * 3072, None),
    "06 bits each": (lambda: (packing.packed_length(768, 1.6) + 2) * 8 / 768, 3),
    "06 zero point": (lambda: quantize(torch.tensor([-1.0, 3.0]), "uint8-tensor").zero_point, None),
    "06 zero becomes": (lambda: 0.0, 3),
    "07 rank": (lambda: decompositions.break_even(3072, 768), None),
    "07 size": (lambda: 288 * (768 + 4), None),
    "07 times": (lambda: 2 * 768 / (768 + 4), 2),
    "08 patience": (lambda: 1 + patience([0, 1, 1, 1, 0]).index(2), None),
    "08 regrouped": (lambda: 2 * 12 / (2 + 10), 2),
    "08 waiting": (lambda: 2 * 12 / (2 * 10), 2),
    "09 product bytes": (lambda: 30522 * 16 + 256 * 384 * 2, None),
    "09 against": (lambda: against()[0, 1], None),
    "10 runs": (lambda: 3 * (2 * 2 - 1) * 5, None),
    "10 sign test": (lambda: pairs.sign_test([1.0] * 5), 4),
    "11 miss": (lambda: max(abs(d - (6 - d) / 2) for d in (1.0, 2.0, 3.0)), 1),
    "11 status": (lambda: 0, None),
}
TESTS = {
    "01 encoder_flops": encoder_flops,
    "02 by_row": by_row,
    "03 two_of_four": two_of_four,
    "04 masked_scores_mse": masked_scores_mse,
    "05 unpack_signs": unpack_signs,
    "06 open_row": open_row,
    "07 nearest": nearest,
    "08 leaves_by": leaves_by,
    "09 compensated": compensated,
    "10 holm": adjusted,
    "11 front_of": front_of,
}


def verdict(name, answer):
    """What to tell a reader who answered the exercise ``name``: right, or not yet and why."""
    if name in TESTS:
        return _tested(TESTS[name], answer)
    compute, digits = ANSWERS[name]
    right = compute()
    if isinstance(right, str):
        return "right" if answer == right else "not yet"
    if isinstance(right, list):
        return "right" if isinstance(answer, (list, tuple)) and [*answer] == right else "not yet"
    if not isinstance(answer, Real):
        return f"not yet: expected a number, received {type(answer).__name__}"
    if digits is None:
        return "right" if answer == float(right) else "not yet: it is a whole number, exactly"
    near = abs(answer - float(right)) <= 0.6 * 10**-digits
    return "right" if near else f"not yet (compared to {digits} digits after the point)"


def _tested(cases, function):
    passed = 0
    try:
        for words, given, right in cases(function):
            if given is None:
                return "not yet: the function returns None; write it above"
            given, right = (torch.as_tensor(x).double() for x in (given, right))
            if given.shape != right.shape:
                shapes = f"shape {tuple(given.shape)}, expected {tuple(right.shape)}"
                return f"not yet: {words}: {shapes}"
            if not torch.allclose(given, right, rtol=1e-5, atol=1e-5):
                return f"not yet: {words}: the values differ ({passed} cases passed)"
            passed += 1
    except Exception as error:  # whatever a reader's code raises
        return f"not yet: it raises {type(error).__name__}: {str(error)[:200]}"
    return f"right, in {passed} cases"
