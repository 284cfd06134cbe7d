"""A layer without weights of its own, which runs those of another."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from torch import nn


class Again(nn.Module):
    """Computes what its ``leader`` does, and has whatever is asked for that the leader has.

    No part of it is registered, so that whoever goes through a model meets each weight once: what
    saves, counts, quantizes, exports. What is put in a part of the leader works here as well.
    Hooks on the leader itself are not run: they belong to its place among the layers, as hooks on
    this one do. It is an instance of the leader's class too, by which ``transformers`` finds the
    layers whose states it shows.

    >>> first = nn.Sequential(nn.Linear(2, 2))
    >>> model = nn.ModuleList([first, Again(first)])
    >>> list(model.state_dict()), isinstance(model[1], nn.Sequential)
    (['0.0.weight', '0.0.bias'], True)
    """

    refusal: ClassVar[str] = "comes before share_layers: list it first"

    def __new__(cls, leader: nn.Module | None = None) -> Again:
        return super().__new__(
            cls if leader is None else _like(leader.__class__)
        )  # None: for a copy

    def __init__(self, leader: nn.Module) -> None:
        nn.Module.__init__(self)  # and not that of the leader's class
        self.__dict__["leaders"] = (leader,)  # in a tuple: it is no part of this module
        self.training = leader.training

    @property
    def leader(self) -> nn.Module:
        return self.__dict__["leaders"][0]

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return getattr(self.leader, name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.leader.forward(*args, **kwargs)


@cache
def _like(kind: type[nn.Module]) -> type[Again]:
    return type(f"Again{kind.__name__}", (Again, kind), {})
