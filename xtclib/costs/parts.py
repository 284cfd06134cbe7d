"""The arithmetic of costs: parts of a model, what each counts, and their sums by any key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xtclib.files import unknown

# The order of the data flow, and of every table and figure.
COMPONENTS = (
    "word embeddings", "position embeddings", "type embeddings", "embedding projection",
    "bottleneck", "convolution", "recurrent", "query, key, value", "attention", "attention output",
    "feed-forward", "norm and residual", "pooler", "head", "other",
)  # fmt: skip
EMBEDDINGS = COMPONENTS[:4]


@dataclass(frozen=True)
class Convention:
    """What counts as a floating-point operation; papers differ, so name it.

    ``multiply_add`` is 1 or 2; ``products``: the two products of activations in attention;
    ``elementwise``: softmax, LayerNorm, activations, biases and residuals; ``head``: pooler and
    classifier; ``lookups``: embeddings as products with one-hot vectors, as a TPU may run them.
    """

    multiply_add: int = 2
    products: bool = True
    elementwise: bool = False
    head: bool = True
    lookups: bool = False

    def __post_init__(self) -> None:
        if self.multiply_add not in (1, 2):
            raise ValueError(f"a multiply-add counts as 1 or 2, received {self.multiply_add!r}")


CONVENTIONS = {
    "FLOPs": Convention(),
    "MACs": Convention(multiply_add=1),
    "weights only": Convention(products=False, head=False),
    "everything": Convention(elementwise=True),
    "one-hot lookups": Convention(elementwise=True, lookups=True),
}


def convention(name: str | Convention) -> Convention:
    """A convention by name.

    >>> convention("MACs").multiply_add
    1
    """
    if isinstance(name, Convention):
        return name
    if name not in CONVENTIONS:
        raise unknown("convention", name, CONVENTIONS)
    return CONVENTIONS[name]


@dataclass(frozen=True)
class Part:
    """One component of one layer (``None``: outside the layers) and what it costs.

    ``macs``: multiply–adds with weights; ``products``: multiply–adds of activations with each
    other; ``elementwise``: other operations; ``lookups``: multiply–adds if embeddings were one-hot
    products; ``activations``: numbers that the modules write in one pass without dropout, scores
    and probabilities included (autograd keeps most of them, and dropout masks besides).
    """

    component: str
    layer: int | None
    parameters: int = 0
    macs: int = 0
    products: int = 0
    elementwise: int = 0
    lookups: int = 0
    activations: int = 0

    def flops(self, counted: str | Convention = "FLOPs") -> int:
        """Operations under a convention."""
        rule = convention(counted)
        if not rule.head and self.component in ("pooler", "head"):
            return 0
        multiply_adds = self.macs + rule.products * self.products + rule.lookups * self.lookups
        return rule.multiply_add * multiply_adds + rule.elementwise * self.elementwise


def _price(part: Part, price: str | Callable[[Part], float]) -> float:
    return price(part) if callable(price) else getattr(part, price)


@dataclass(frozen=True)
class Breakdown:
    """A model's parts at a batch and length, and their sums."""

    model: str
    batch: int
    length: int
    parts: tuple[Part, ...]

    def total(self, price: str | Callable[[Part], float] = "parameters") -> float:
        """The sum of a price over all parts; a price is a field of :class:`Part` or a function."""
        return sum(_price(part, price) for part in self.parts)

    def by(self, key: str, price: str | Callable[[Part], float] = "parameters") -> dict:
        """Sums of a price by ``component`` or ``layer``, in the order of the data flow.

        >>> head = Part("head", None, parameters=6)
        >>> Breakdown("toy", 1, 8, (Part("head", None, parameters=4), head)).by("component")
        {'head': 10}
        """
        if key not in ("component", "layer"):
            raise unknown("key", key, ("component", "layer"))
        sums: dict = {}
        for part in self.parts:
            name = getattr(part, key)
            sums[name] = sums.get(name, 0) + _price(part, price)
        return sums

    @property
    def parameters(self) -> int:
        """Weights and biases, shared ones once."""
        return int(self.total("parameters"))

    def flops(self, counted: str | Convention = "FLOPs") -> int:
        """Operations of one forward pass under a convention (by default as PyTorch's counter)."""
        return int(self.total(lambda part: part.flops(counted)))

    def bytes(self, bits: float | Mapping[str, float] = 32, key: str = "component") -> dict:
        """Bytes of the parameters by component or layer, at one width or a width per component.

        Components that a mapping leaves out stay at 32 bits.
        """
        widths = bits if isinstance(bits, Mapping) else dict.fromkeys(COMPONENTS, bits)
        for name, width in widths.items():
            if name not in COMPONENTS:
                raise unknown("component", name, COMPONENTS)
            if not 0 < width <= 64:
                raise ValueError(f"a width must be over 0 and at most 64 bits, received {width!r}")
        return self.by(key, lambda part: part.parameters * widths.get(part.component, 32) / 8)

    def rows(
        self, key: str = "component", bits: float = 32, counted: str | Convention = "FLOPs"
    ) -> list[dict]:
        """One row for each component or layer: parameters, bytes, operations, activations."""
        prices = {
            "parameters": self.by(key),
            "bytes": self.bytes(bits, key),
            "operations": self.by(key, lambda part: part.flops(counted)),
            "activations": self.by(key, "activations"),
        }
        return [
            {key: name} | {price: sums[name] for price, sums in prices.items()}
            for name in prices["parameters"]
        ]

    def table(
        self, key: str = "component", bits: float = 32, counted: str | Convention = "FLOPs"
    ) -> str:
        """The rows as text, with shares and sums; activations in MB of fp32."""
        name = counted if isinstance(counted, str) else "operations"
        rows = [
            r | {key: "outside" if r[key] is None else str(r[key])}
            for r in self.rows(key, bits, counted)
        ]
        rows = [r for r in rows if any(v for k, v in r.items() if k != key)]
        sums = {p: sum(r[p] for r in rows) for p in rows[0] if p != key}
        operations = "GFLOPs" if name == "FLOPs" else f"G, {name}"
        lines = [
            f"{self.model}, batch {self.batch}, length {self.length}",
            f"{key:<22}{'parameters':>13}{'%':>7}{f'MB, {bits:g} bit':>14}{operations:>20}{'%':>7}"
            f"{'activations, MB':>17}",
        ]
        for row in [*rows, {key: "all", **sums}]:
            lines.append(
                f"{row[key]:<22}{row['parameters']:>13,}"
                f"{100 * row['parameters'] / max(sums['parameters'], 1):>7.1f}"
                f"{row['bytes'] / 1e6:>14.2f}{row['operations'] / 1e9:>20.3f}"
                f"{100 * row['operations'] / max(sums['operations'], 1):>7.1f}"
                f"{row['activations'] * 4 / 1e6:>17.2f}"
            )
        return "\n".join(lines)
