"""Places in a recipe and its budget, and what a search may put there.

A place is named by the way to it in the data that YAML holds, from the recipe or from ``budget``
down, with dots: ``stages.0.binarization.techniques.0.quantize.weights``. Its end is enough where
no other place ends so, ``quantize.weights``; ``*`` stands for every number of a list.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from xtclib.config import Expect, Flag, config, read, short, written
from xtclib.files import first_line
from xtclib.recipes import recipe as recipes
from xtclib.training.budget import Budget

Number = Annotated[int | float, Expect("a number, where YAML reads 1e-5 as a word: write 1.0e-5")]


@config
class Range:
    """Numbers from ``low`` to ``high``, on a logarithmic scale if ``log``; whole if both are."""

    low: Number
    high: Number
    log: Flag = False

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(
                f"nothing is from {self.low} to {self.high}: give a low below the high"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic scale starts above 0, received low={self.low}")


Choices = tuple[Any, ...]


def dimensions(given: object) -> dict[str, Range | Choices]:
    """What may stand where, as YAML holds it: ``{low: …, high: …}`` or a list, by place.

    >>> dimensions({"budget.steps": {"low": 50, "high": 400}, "quantize.weights": ["int4", "int8"]})
    {'budget.steps': Range(low=50, high=400, log=False), 'quantize.weights': ('int4', 'int8')}
    """
    if not isinstance(given, Mapping) or not given:
        told = f"received {short(given)}, expected places with a range or a list of choices"
        raise ValueError(f"the space is empty or no mapping: {told}")
    return {str(place): _dimension(place, value) for place, value in given.items()}


def _dimension(place: object, given: object) -> Range | Choices:
    if isinstance(given, (list, tuple)) and len(set(map(label, given))) == len(given) > 1:
        return tuple(given)
    if isinstance(given, (Mapping, Range)):
        try:
            return read(Range, given)
        except ValueError as error:
            raise ValueError(f"{place}: {first_line(error)}") from None
    wanted = "expected {low: …, high: …} or a list of two or more different choices"
    raise ValueError(f"{place}: received {short(given)}, {wanted}")


def label(choice: object) -> str | int | float | None:
    """A choice as a journal holds it: itself, or a list or mapping as JSON."""
    plain = choice is None or isinstance(choice, (str, int, float))
    return choice if plain else json.dumps(choice, sort_keys=True, default=str)  # type: ignore


@dataclass(frozen=True)
class Space:
    """A recipe and a budget with places in them that vary, each by the keys that lead to it."""

    recipe: recipes.Recipe
    budget: Budget
    dimensions: dict[str, Range | Choices]
    ways: dict[str, tuple]

    @classmethod
    def of(cls, recipe: recipes.Recipe, budget: Budget, given: Mapping[str, Range | Choices]
           ) -> Space:  # fmt: skip
        """The space of places as a design names them; ``ValueError`` for what cannot be one.

        Refused: an unknown place (the nearest is named), one that several end in, one inside
        another, and one where nothing of what is offered makes a recipe.

        >>> space = Space.of(recipes.load("gptq-4bit"), Budget(steps=9), {"budget.steps": (3, 4)})
        >>> space.made({"budget.steps": 3})[1].steps
        3
        """
        known, found, ways = dict(_places(_data(recipe, budget))), {}, {}
        for place, dimension in given.items():
            for name, way in _named(place, known, recipe.name).items():
                found[name], ways[name] = dimension, way
        for name, way in ways.items():
            for other, longer in ways.items():
                if name != other and longer[: len(way)] == way:
                    raise ValueError(f"{other} lies in {name}: vary one of them")
        if {("budget", "steps"), ("budget", "epochs")} <= {*ways.values()}:
            raise ValueError("a budget has steps or epochs, the space has both: vary one of them")
        space = cls(recipe, budget, found, ways)
        for name, dimension in found.items():
            ends = (dimension.low, dimension.high) if isinstance(dimension, Range) else dimension
            refused = [why for end in ends if (why := space._refusal({name: label(end)}))]
            if len(refused) == len(ends):
                raise ValueError(f"{recipe.name} takes nothing of what {name} offers: {refused[0]}")
        return space

    def made(self, chosen: Mapping[str, object]) -> tuple[recipes.Recipe, Budget]:
        """Recipe and budget with the labels of ``chosen`` in their places."""
        data = copy.deepcopy(_data(self.recipe, self.budget))
        for name, value in chosen.items():
            *way, last = self.ways[name]
            offered, node = self.dimensions[name], data
            for key in way:
                node = node[key]
            by_label = {} if isinstance(offered, Range) else {label(each): each for each in offered}
            node[last] = by_label.get(value, value)  # type: ignore[call-overload]
            if way == ["budget"] and last in ("steps", "epochs"):
                node["epochs" if last == "steps" else "steps"] = None
        budget = Budget(**data.pop("budget"))
        return recipes.from_dict(self.recipe.name, data), budget

    def _refusal(self, chosen: Mapping[str, object]) -> str:
        try:
            self.made(chosen)
        except (ValueError, TypeError) as error:
            return first_line(error)
        return ""

    def distributions(self) -> dict[str, Any]:
        """The same for Optuna."""
        from optuna import distributions as kinds

        def one(offered: Range | Choices) -> kinds.BaseDistribution:
            if not isinstance(offered, Range):
                return kinds.CategoricalDistribution([label(each) for each in offered])
            whole = isinstance(offered.low, int) and isinstance(offered.high, int)
            kind: Any = kinds.IntDistribution if whole else kinds.FloatDistribution
            return kind(offered.low, offered.high, log=offered.log)

        return {name: one(offered) for name, offered in self.dimensions.items()}


def _data(recipe: recipes.Recipe, budget: Budget) -> dict:
    """A recipe as YAML could hold it, with every field, and its budget."""
    values, stages = written(recipe), []
    for stage in recipe.stages:
        body = written(stage)
        body["techniques"] = [{t.name: written(t)} for t in stage.techniques]
        stages.append({body.pop("name"): body})
    del values["name"]
    return {**values, "stages": stages, "budget": written(budget)}


def _places(node: object, way: tuple = ()) -> Iterator[tuple[str, tuple]]:
    """Names with ways, of all that can be replaced."""
    if len(way) > 1:
        yield ".".join(map(str, way)), way
    items: Iterable = ()
    if isinstance(node, (Mapping, list)):
        items = node.items() if isinstance(node, Mapping) else enumerate(node)
    for key, each in items:
        yield from _places(each, (*way, key))


def _named(place: str, known: Mapping[str, tuple], recipe: str) -> dict[str, tuple]:
    """What a place stands for, under the name as it was written, with numbers in place of ``*``."""
    pattern = re.compile(r"(?:.*\.)?" + re.escape(place).replace(r"\*", r"(\d+)"))
    found = {full: match.groups() for full in known if (match := pattern.fullmatch(full))}
    if not found:
        ends = _ends(known)
        near = difflib.get_close_matches(place, ends, 4, 0.0)
        told = f"did you mean '{near[0]}'? Near it: {', '.join(near)}"
        raise ValueError(f"unknown place {place!r} in {recipe} and its budget: {told}")
    if len({*found.values()}) < len(found):
        told = ", ".join(end for end, full in _ends(known).items() if full in found)
        raise ValueError(f"several places of {recipe} end in {place!r}: write one of {told}")
    parts = place.split("*")
    names = {full: "".join(a + b for a, b in zip(parts, (*numbers, ""), strict=True))
             for full, numbers in found.items()}  # fmt: skip
    return {name: known[full] for full, name in names.items()}


def _ends(known: Mapping[str, tuple]) -> dict[str, str]:
    """Each place by the shortest end that no other has, with the name before a lone field."""
    ends = {full: [way[start:] for start in range(len(way))][::-1] for full, way in known.items()}
    often = Counter(end for each in ends.values() for end in each)
    found = {}
    for full, each in ends.items():
        end = next(e for e in each if often[e] == 1)
        before = known[full][-2]
        found[end if len(end) > 1 or isinstance(before, int) else (before, *end)] = full
    return {".".join(map(str, end)): full for end, full in found.items()}
