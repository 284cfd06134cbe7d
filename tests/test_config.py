"""Configs: what is refused and how that is told, what is written, and what a hash covers."""

from dataclasses import fields
from typing import Annotated, ClassVar, Literal

import pytest

from xtclib.config import (
    READ,
    Count,
    Flag,
    Listed,
    Named,
    Positive,
    Registry,
    Share,
    Size,
    config,
    read,
    written,
)


class Thing(Named):
    pass


THINGS = Registry("thing", Thing)


@config
class Clock:
    begin: Share = 0.5

    def __post_init__(self):
        if self.begin == 0.25:
            raise ValueError("a quarter is never right")


@THINGS.register
@config
class Wheel(Thing):
    name: ClassVar[str] = "wheel"
    spokes: Count = 8
    radius: Positive = 1.0
    rim: Literal["steel", "wood"] = "steel"
    layers: Size | None = None
    sizes: Listed[int] = ()
    round_: Flag = True


@config
class Cart:
    name: str
    wheels: Listed[Annotated[Thing, THINGS]] = ()
    clock: Annotated[Clock, READ] = Clock()


@pytest.mark.parametrize(
    "values, message",
    [
        ({"spokes": True}, "spokes of wheel must be a whole number from 1, received True"),
        ({"spokes": 2.0}, "spokes of wheel must be a whole number from 1, received 2.0"),
        ({"spokes": "8"}, "spokes of wheel must be a whole number from 1, received '8'"),
        ({"radius": float("nan")}, "radius of wheel must be a number above 0, received nan"),
        ({"radius": float("inf")}, "radius of wheel must be a number above 0, received inf"),
        (
            {"rim": "stele"},
            "unknown rim of wheel 'stele': did you mean 'steel'? Known: steel, wood",
        ),
        ({"rim": 3}, "rim of wheel must be 'steel' or 'wood', received 3"),
        ({"layers": 1.5}, "layers of wheel must be a whole number from 1, or a share of the"),
        ({"sizes": 3}, "sizes of wheel must be a list, received 3"),
        ({"sizes": "34"}, "sizes of wheel must be a list: write [34], received '34'"),
        ({"sizes": [1, "a"]}, "sizes of wheel must be a valid integer, received 'a'"),
        ({"round_": "no"}, "round_ of wheel must be true or false, received 'no'"),
        ({"spoke": 3}, "unknown key of wheel 'spoke': did you mean 'spokes'? Known keys of wheel:"),
        ({1: 3}, "unknown key of wheel '1'"),
        ([1], "wheel should be `name: value` pairs, received [1]"),
        ({"spokes": 0, "rim": "wod", "radius": 0}, "\nradius of wheel must be"),
    ],
)
def test_errors_name_field_owner_what_was_received_and_what_was_expected(values, message):
    with pytest.raises(ValueError) as told:
        read(Wheel, values)
    assert message in str(told.value) and type(told.value) is ValueError
    assert len(str(told.value).splitlines()) <= 2


@pytest.mark.parametrize(
    "values, message",
    [
        ({"wheels": [{"wheel": {"spokes": 0}}]}, "spokes of wheel must be a whole number from 1"),
        ({"wheels": ["weel"]}, "unknown thing 'weel': did you mean 'wheel'"),
        ({"wheels": ["wheel", 3]}, "a thing is one `name: {fields}`, received 3"),
        ({"wheels": "wheel"}, "wheels of cart c must be a list: write [wheel], received 'wheel'"),
        ({"clock": {"begun": 1}}, "unknown key of clock 'begun': did you mean 'begin'"),
        ({"clock": {"begin": 0.25}}, "a quarter is never right"),
        ({"clock": 3}, "clock should be `name: value` pairs, received 3"),
        ({"name": "d"}, "name of cart c"),
    ],
)
def test_errors_inside_of_others_are_told_as_their_own(values, message):
    with pytest.raises(ValueError) as told:
        read(Cart, values, "c")
    assert message in str(told.value) and "\n" not in str(told.value)


def test_what_python_refuses_too():
    with pytest.raises(ValueError, match="cart lacks `name`"):
        Cart()
    with pytest.raises(ValueError, match="clock has 1 fields .begin., received more"):
        Clock(0.5, 0.6)
    with pytest.raises(AttributeError):
        Clock().begin = 0.1  # frozen


def test_a_value_that_yaml_built_of_aliases_is_told_in_short():
    grown = ["x"]
    for _ in range(30):
        grown = [grown, grown]
    with pytest.raises(ValueError) as told:
        read(Wheel, {"rim": grown})
    assert len(str(told.value)) < 300


def test_a_config_reads_back_from_what_it_writes():
    cart = read(
        Cart, {"wheels": ["wheel", {"wheel": {"sizes": [1, 2]}}], "clock": {"begin": 1}}, "c"
    )
    assert cart.wheels == (Wheel(), Wheel(sizes=(1, 2))) and cart.clock == Clock(1.0)
    for whole in (True, False):
        assert read(Cart, written(cart, whole)) == cart
    assert written(cart)["wheels"][0]["wheel"]["spokes"] == 8
    short = {"name": "c", "wheels": [{"wheel": {}}, {"wheel": {"sizes": [1, 2]}}]}
    assert written(cart, whole=False) == {**short, "clock": {"begin": 1.0}}


def test_a_name_belongs_to_one_class():
    class Wheel2(Thing):
        name = "wheel"

    with pytest.raises(ValueError, match="the thing 'wheel' is there already, as Wheel: give Whe"):
        THINGS.register(Wheel2)
    assert THINGS.register(Wheel) is Wheel  # a notebook's cell runs twice
    assert [f.name for f in fields(Wheel)][0] == "spokes"
