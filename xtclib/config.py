"""Configs: frozen dataclasses whose fields say what they may hold; pydantic checks them.

A constraint stands beside its field and nowhere else; what joins several fields is a few lines of
``__post_init__``. Whatever is wrong is a ``ValueError`` of one or two lines.
"""

from __future__ import annotations

import functools
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ArgsKwargs, PydanticCustomError, core_schema
from typing_extensions import dataclass_transform

from xtclib.files import cut, nearest, unknown

T = TypeVar("T")
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother = 3, 80, 80


def short(value: object) -> str:
    """A value in at most 120 letters: what YAML's aliases can build is endless when printed."""
    return cut(_REPR.repr(value))


class Expect:
    """In an ``Annotated``: what errors and the schema say of a field: *a number above 0*."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __get_pydantic_core_schema__(self, source, handler):
        message = f"must be {self.text}"
        return core_schema.custom_error_schema(
            handler(source), custom_error_type="expected", custom_error_message=message
        )

    def __get_pydantic_json_schema__(self, core, handler) -> dict:
        return {**handler(core), "description": self.text}


class _Read:
    """In an ``Annotated``: a config that may be given as a mapping of its fields."""

    def __get_pydantic_core_schema__(self, source, handler):
        return core_schema.no_info_before_validator_function(partial(read, source), handler(source))


READ = _Read()


def _tuple(value: object) -> object:
    if isinstance(value, (list, tuple, range)):
        return tuple(value)
    hint = f": write [{value[:80]}]" if isinstance(value, str) else ""
    raise PydanticCustomError("list", "must be a list{hint}", {"hint": hint})


Flag = Annotated[bool, Expect("true or false")]
Positive = Annotated[float, Field(gt=0), Expect("a number above 0")]
NotNegative = Annotated[float, Field(ge=0), Expect("a number of at least 0")]
Share = Annotated[float, Field(gt=0, le=1), Expect("a number above 0 and at most 1")]
Ratio = Annotated[float, Field(ge=0, le=1), Expect("a number from 0 to 1")]
Whole = Annotated[int, Field(ge=0), Expect("a whole number from 0")]
Count = Annotated[int, Field(ge=1), Expect("a whole number from 1")]
Size = Annotated[
    Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)],
    Expect("a whole number from 1, or a share of the teacher's below 1"),
]
Listed = Annotated[tuple[T, ...], BeforeValidator(_tuple)]


@dataclass_transform(frozen_default=True)
def config(cls: type[T]) -> type[T]:
    """A class as a frozen dataclass, whose fields are checked strictly: ``True`` is no number.

    >>> @config
    ... class Wave:
    ...     height: Positive = 1.0
    >>> Wave(2)
    Wave(height=2.0)
    >>> Wave(heigth=2)
    Traceback (most recent call last):
    ValueError: unknown key of wave 'heigth': did you mean 'height'? Known keys of wave: height
    """
    made: Any = dataclass(frozen=True)(cls)
    made.__pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @functools.wraps(made.__init__)
    def __init__(self, *args: object, **kwargs: object) -> None:
        given = ArgsKwargs(args, kwargs)
        try:
            checks(type(self)).validator.validate_python(given, self_instance=self)
        except ValidationError as error:
            raise _explained(type(self), error, args, kwargs) from None

    made.__init__ = __init__
    return made


# What pydantic made of a config's fields, once it is needed: a millisecond a class.
checks: Callable[[Any], TypeAdapter] = functools.cache(TypeAdapter)


def read(cls: type[T], value: object, *first: object) -> T:
    """A config from a mapping of its fields, as YAML and JSON hold it; a config stays as it is.

    ``first``: the fields that come before, such as a name.
    """
    if isinstance(value, cls):
        return value
    if not isinstance(value, Mapping):
        owner = _owner(cls, first)
        raise ValueError(f"{owner} should be `name: value` pairs, received {short(value)}")
    return cls(*first, **{str(name): each for name, each in value.items()})


def written(config: Any, whole: bool = True) -> dict:
    """What :func:`read` takes; not ``whole``: only what differs from its default.

    >>> from xtclib.training.budget import Budget
    >>> written(Budget(steps=7, warmup=0.1), whole=False)
    {'steps': 7}
    """
    found = {f.name: (getattr(config, f.name), f.default) for f in fields(config)}
    return {n: _plain(v, whole) for n, (v, default) in found.items() if whole or v != default}


def _plain(value: Any, whole: bool) -> Any:
    if hasattr(value, "to_dict"):
        return value.to_dict(whole)
    if is_dataclass(value):
        return written(value, whole)
    return [_plain(each, whole) for each in value] if isinstance(value, tuple) else value


class Named:
    """A config that recipes and artefacts hold under its name: ``{name: fields}``."""

    name: ClassVar[str]

    def to_dict(self, whole: bool = True) -> dict:
        """``{name: fields}``; not ``whole``: without the fields that have their defaults."""
        return {self.name: written(self, whole)}


class Registry(dict[str, type[T]], Generic[T]):
    """Kinds of one thing by name. In an ``Annotated`` it reads a field: a name, or with fields."""

    def __init__(self, kind: str, base: type[T]) -> None:
        super().__init__()
        self.kind, self.base = kind, base

    def register(self, cls: Any) -> Any:
        """Adds a class under its ``name``; as a decorator too. ``ValueError`` for a taken name."""
        if self.get(cls.name, cls).__qualname__ != cls.__qualname__:
            taken = f"the {self.kind} {cls.name!r} is there already, as {self[cls.name].__name__}"
            raise ValueError(f"{taken}: give {cls.__name__} another name")
        self[cls.name] = cls
        return cls

    def read(self, value: object) -> T:
        """Builds one from ``name`` or ``{name: {field: value}}``; one that is built stays.

        >>> from xtclib.techniques import TECHNIQUES
        >>> TECHNIQUES.read({"layer_reduction": {"keep": [1, 3]}})
        LayerReduction(keep=(1, 3), layers=None)
        """
        if isinstance(value, self.base):
            return value
        name, given = named(self.kind, {value: None} if isinstance(value, str) else value)
        if name not in self:
            raise unknown(self.kind, name, self)
        return read(self[name], given)

    def __get_pydantic_core_schema__(self, source, handler):
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(self, core, handler) -> dict:
        each = {name: handler(checks(cls).core_schema) for name, cls in sorted(self.items())}
        return {"anyOf": [{"enum": sorted(self)}, one_of(each)]}


def named(kind: str, value: object) -> tuple[Any, Any]:
    """The name and the fields in ``{name: fields}``; ``ValueError`` for another shape."""
    if not isinstance(value, Mapping) or len(value) != 1:
        raise ValueError(f"a {kind} is one `name: {{fields}}`, received {short(value)}")
    ((name, given),) = value.items()
    return name, {} if given is None else given


def one_of(properties: dict) -> dict:
    """The JSON schema of one ``name: fields``."""
    closed = {"additionalProperties": False, "minProperties": 1, "maxProperties": 1}
    return {"type": "object", "properties": properties, **closed}


def _owner(cls: type, args: tuple = (), kwargs: Mapping = {}) -> str:  # noqa: B006 - only read
    """Whose field it is: ``sparsify``, ``stage distillation``, ``term patience``."""
    kind = getattr(cls, "name", None) or cls.__name__.lower()
    first = fields(cls)[0].name if fields(cls) else ""
    title = args[0] if args else kwargs.get(first)
    titled = first in ("name", "term", "recipe") and isinstance(title, str)
    return f"{kind} {title}" if titled else kind


def _explained(cls: type, error: ValidationError, args: tuple, kwargs: Mapping) -> ValueError:
    owner, known = _owner(cls, args, kwargs), [f.name for f in fields(cls)]
    found: dict[object, list] = {}
    for item in error.errors(include_url=False):
        at = item["loc"][0] if item["loc"] else ""
        at = known[at] if isinstance(at, int) and at < len(known) else at
        found.setdefault(at, []).append(item)
    lines = dict.fromkeys(_line(*each, owner, known) for each in found.items())
    return ValueError("\n".join([*lines][:2]))


def _line(field: object, items: list, owner: str, known: list[str]) -> str:
    """What is wrong with a field; a union has an item for each of its kinds."""
    for item in items:
        kind, given = item["type"], item["input"]
        if kind == "value_error":
            return str(item["ctx"]["error"])
        if kind == "unexpected_keyword_argument":
            return str(unknown(f"key of {owner}", field, known))
        if kind == "unexpected_positional_argument":
            return f"{owner} has {len(known)} fields ({', '.join(known)}), received more"
        if kind in ("missing", "missing_argument"):
            return f"{owner} lacks `{field}`"
        if kind == "literal_error" and isinstance(given, str):
            options = re.findall(r"'([^']*)'", item["ctx"]["expected"])
            return f"unknown {field} of {owner} {given!r}: {nearest(given, options)}"
    told = " or ".join(dict.fromkeys(i["msg"].replace("Input should", "must") for i in items))
    return f"{field} of {owner} {told}, received {short(items[0]['input'])}"
