"""Published costs computed again from the architectures, each beside what was printed.

Parameters, operations and sizes follow from a config; a number that does not come out within 2 %
is listed with the reading that explains it, or as not explained. Some printed numbers do not follow
from an architecture but from another printed one: these are called consistent, no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from xtclib.costs.architectures import config_of
from xtclib.costs.breakdown import break_down, deformer
from xtclib.costs.parts import EMBEDDINGS, Breakdown
from xtclib.costs.published import select, table

TOLERANCE = 0.02
MIB = 2**20


@dataclass(frozen=True)
class Claim:
    """A printed number, what it comes to by computation, and how it was read.

    ``plain`` is what the plain reading gives, where it is not the one that fits; ``how`` says in
    words what ``computed`` counts; ``given`` marks what needed another printed number.
    """

    what: str
    printed: float
    computed: float
    unit: str
    how: str
    where: str
    plain: float | None = None
    given: bool = False

    @property
    def difference(self) -> float:
        """computed ÷ printed − 1."""
        return self.computed / self.printed - 1

    @property
    def verdict(self) -> str:
        """``within 2 %``; ``explained``, by another than the plain reading; ``consistent``, with
        another printed number; or ``not explained``."""
        if abs(self.difference) > TOLERANCE:
            return "not explained"
        if self.given:
            return "consistent"
        return "within 2 %" if self.plain is None else "explained"


@cache
def _costs(name: str, length: int = 128) -> Breakdown:
    return break_down(name, 1, length)


def backbone_parameters(name: str) -> int:
    """Parameters without the classifier: embeddings, layers, pooler.

    >>> backbone_parameters("bert-base")
    109482240
    """
    found = _costs(name).by("component")
    return sum(found.values()) - found.get("head", 0)


def _embeddings(name: str) -> int:
    """Parameters of the embedding tables, with their projection where there is one."""
    found = _costs(name).by("component")
    return sum(found.get(component, 0) for component in EMBEDDINGS)


def _cell(name: str, metric: str, **where: object) -> float:
    return float(select(table(name), metric=metric, **where)[0]["value"])


def _mobilebert_table() -> Iterator[Claim]:
    names = {"BERT-base": "bert-base", "BERT-base-6L-PKD": "pkd-6l", "BERT-base-3L-PKD": "pkd-3l",
             "MobileBERT": "mobilebert", "OpenAI GPT": "openai-gpt"}  # fmt: skip
    count = "all weights and biases but the classifier's"
    work = "matrix products at length 128, a multiply-add as 2"
    for metric, unit, how in (("parameters", "M", count), ("operations", "GFLOPs", work)):
        for system, name in names.items():
            if (metric, system) == ("operations", "OpenAI GPT"):
                continue  # not printed
            printed = _cell("mobilebert", metric, system=system)
            found = backbone_parameters(name) / 1e6 if unit == "M" else _costs(name).flops() / 1e9
            yield Claim(f"{system}: {metric}", printed, found, unit, how, "MobileBERT, table 3")


# The masked-LM head: a dense layer, a LayerNorm and one bias a word; the table is the embeddings'.
def _small_vocabulary(width: int, positions: int = 128) -> int:
    name = f"dualtrain-{width}"
    head = width * width + width + 2 * width + 4928
    return backbone_parameters(name) - (512 - positions) * width + head


def _optimal_subwords() -> Iterator[Claim]:
    where, teacher = "Optimal Subwords, table 3", backbone_parameters("bert-base")
    rows = table("optimal_subwords")
    how = "BERT-base's parameters over the student's"
    for name, system in (("pkd-6l", "PKD, 6 layers"), ("pkd-3l", "PKD, 3 layers")):
        printed = float(select(rows, system=system)[0]["compression"])
        found = teacher / backbone_parameters(name)
        yield Claim(f"{system}: compression factor", printed, found, "×", how, where)
    how = "teacher ÷ 3 × student with masked-LM head and 128 positions"
    for width in (192, 96, 48):
        printed = float(select(rows, system="DualTrain", hidden=width)[0]["compression"])
        found = teacher / (3 * _small_vocabulary(width))
        plain = teacher / backbone_parameters(f"dualtrain-{width}")
        yield Claim(f"{width} wide: compression factor", printed, found, "×", how, where, plain)


def _deformer() -> Iterator[Claim]:
    where, rule = "DeFormer, table 2", "everything"
    how = "matrix products, softmax, LayerNorm, activations and biases"
    for system, name in (("BERT-base", "bert-base"), ("BERT-large", "bert-large")):
        printed = _cell("deformer_squad", "operations", system=system)
        found = _costs(name, 320).flops(rule) / 1e9
        yield Claim(f"{system} at 320 tokens: operations", printed, found, "GFLOPs", how, where)
    printed = _cell("deformer_squad", "operations", system="Decomp-BERT-large")
    for lower, question in deformer_fits(printed):
        what = f"Decomp-BERT-large, {lower} + {24 - lower} layers"
        found = deformer("bert-large", 320, question, lower).flops(rule) / 1e9
        how = f"a question of {question} tokens, the passage's lower layers cached"
        yield Claim(what, printed, found, "GFLOPs", how, where)


@cache
def deformer_fits(gflops: float, length: int = 320) -> tuple[tuple[int, int], ...]:
    """Splits of BERT-large and question lengths that come within 1 % of a printed cost.

    For each number of lower layers the nearest question length of 8 to 100 tokens.

    >>> deformer_fits(47.7)
    ((19, 11), (20, 27), (21, 42), (22, 55), (23, 67))
    """
    whole = _costs("bert-large", length)
    one = config_of("bert-large")
    one.num_hidden_layers = 1

    def layer(found: Breakdown) -> int:
        return sum(part.flops("everything") for part in found.parts if part.layer == 0)

    lower_layer = {question: layer(break_down(one, 1, question)) for question in range(8, 101)}
    upper_layer = layer(whole)
    ends = whole.flops("everything") - 24 * upper_layer
    fits = []
    for lower in range(1, 24):
        rest = (24 - lower) * upper_layer + ends
        found = {question: (lower * cost + rest) / 1e9 for question, cost in lower_layer.items()}
        question = min(found, key=lambda q: abs(found[q] - gflops))
        if abs(found[question] / gflops - 1) < 0.01:
            fits.append((lower, question))
    return tuple(fits)


def _xtc_sizes() -> Iterator[Claim]:
    full = backbone_parameters("bert-base") * 4 / MIB
    printed = float(select(table("xtc"), layers=12, weight_bits=32)[0]["size_mib"])
    how = "all parameters × 4 bytes, in 2²⁰ bytes"
    yield Claim("BERT-base in fp32", printed, full, "MiB", how, "XTC, table of sizes")
    where = "XTC, the figure of size against GLUE score"
    how = "every parameter at that width, scales and LayerNorm not counted"
    for row in select(table("xtc"), metric="reduction"):
        layers, bits = row["layers"], row["weight_bits"]
        name = "bert-base" if layers == 12 else "pkd-6l"
        found = full / (backbone_parameters(name) * bits / 8 / MIB)
        what = f"XTC-BERT*, {layers} layers, {bits} bit: reduction"
        yield Claim(what, float(row["value"]), found, "×", how, where)


def _effectiveness() -> Iterator[Claim]:
    whole, tables = backbone_parameters("bert-base"), _embeddings("bert-base")
    rest = whole - tables
    half = backbone_parameters("pkd-6l") - tables
    printed = 1e6 * _cell("mobilebert", "parameters", system="MobileBERT")
    mobile = (printed - _embeddings("mobilebert"), _embeddings("mobilebert"))
    thrice = 3 * (_embeddings("dualtrain-48") - 384 * 48)  # 128 of its 512 positions
    # row, reading, parameters at 32 bits that are left: without embeddings, of the embeddings
    rows: list[tuple[int, str, float, float]] = [
        (2, "4 bits, embeddings 8", rest / 8, tables / 4),
        (3, "3 bits, embeddings 4", rest * 3 / 32, tables / 8),
        (7, "6 of 12 layers", half, tables),
        (12, "6 of 12 layers", half, tables),
        (13, "6 of 12 layers", half, tables),
        (14, "MobileBERT, of the 25.3 M printed elsewhere", *mobile),
        (15, "TinyBERT, 4 layers", *_apart("tinybert-4l")),
        (16, "48 wide, counted three times", 3 * _small_vocabulary(48) - thrice, thrice),
        (21, "ALBERT-base", *_apart("albert-base")),
        (25, "MobileBERT at 8 bits, of the 25.3 M printed elsewhere", mobile[0] / 4, mobile[1] / 4),
    ]
    for row in (4, 5, 6, 10, 17, 23):  # only the sum can be checked: the share is what was chosen
        share = _size(row, "no")["value"]
        rows.append((row, "embeddings kept whole", share / 100 * rest, tables))
    where = "poster, effectiveness table"
    for row, how, inside, outside in sorted(rows):
        shares = {"with": 100 * (inside + outside) / whole, "without": 100 * inside / rest}
        chosen = how == "embeddings kept whole"
        for which, computed in shares.items():
            if chosen and which == "without":
                continue
            cell = _size(row, "yes" if which == "with" else "no")
            what, printed = f"{cell['system']}, row {row}, {which} embeddings", float(cell["value"])
            given = chosen or "printed elsewhere" in how
            yield Claim(what, printed, computed, "% of BERT-base", how, where, given=given)


def _size(row: int, with_embeddings: str) -> Mapping:
    rows = select(table("effectiveness"), metric="model size", row=row)
    return select(rows, with_embeddings=with_embeddings)[0]


def _apart(name: str) -> tuple[int, int]:
    return backbone_parameters(name) - _embeddings(name), _embeddings(name)


def claims() -> list[Claim]:
    """Every published cost that follows from an architecture, in the order of the sources."""
    sources = (_mobilebert_table, _optimal_subwords, _deformer, _xtc_sizes, _effectiveness)
    return [claim for source in sources for claim in source()]


def claim_table(found: list[Claim] | None = None) -> str:
    """The claims as text with the relative difference of each, under what was computed."""
    lines, how = [f"{'':<49}{'printed':>7}{'computed':>9}{'differs':>8}"], ""
    for claim in claims() if found is None else found:
        plain = "" if claim.plain is None else f" (plain reading: {claim.plain:.1f})"
        if claim.how + plain != how:
            how = claim.how + plain
            lines.append(f"· {how}")
        lines.append(
            f"{claim.what:<49}{claim.printed:>7g}{claim.computed:>9.4g}"
            f"{100 * claim.difference:>+7.1f}%  {claim.verdict}"
        )
    return "\n".join(lines)
