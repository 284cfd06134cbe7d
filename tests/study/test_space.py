"""Places in a recipe: named by their ends, varied alone, refused with the nearest name."""

import pytest

from xtclib.recipes import recipe as recipes
from xtclib.study.space import Range, Space, dimensions
from xtclib.training.budget import Budget

BUDGET = Budget(steps=4)
THIRDS = {"quantize": {"by_layer": ["binary", "binary", "int4-row"]}}
STAGE = {"q": {"techniques": [THIRDS], "objective": {"logits": 1}}}
MINE = recipes.from_dict("mine", {"stages": [STAGE]})


def space(given, recipe="xtc-1bit-half"):
    return Space.of(recipes.load(recipe), BUDGET, dimensions(given))


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_is_what_it_was_where_nothing_is_put(name):
    recipe = recipes.load(name)
    assert Space(recipe, BUDGET, {}, {}).made({}) == (recipe, BUDGET)


def test_an_end_is_a_name_and_a_star_stands_for_each_of_a_list():
    ends = {
        "layer_reduction.layers": [2, 3], "binarization.objective.logits": [0.5, 2],
        "stages.1.binarization.rate": {"low": 0.5, "high": 2},
    }  # fmt: skip
    recipe, _ = space(ends).made(dict(zip(ends, (3, 2, 0.7), strict=True)))
    assert recipe.techniques[0].layers == 3 and recipe.stages[1].rate == 0.7
    assert [stage.objective.logits for stage in recipe.stages] == [1, 2]
    bits = space({"quantize.by_layer.*": ["int2-row", "int8-row"]}, MINE)
    assert [*bits.ways] == [f"quantize.by_layer.{i}" for i in range(3)]
    recipe, _ = bits.made({"quantize.by_layer.1": "int8-row"})
    assert [str(s) for s in recipe.techniques[0].by_layer] == [
        "binary-tensor", "int8-row", "int4-row"
    ]  # fmt: skip


def test_a_choice_may_be_a_list_or_nothing_and_steps_take_the_place_of_epochs():
    given = {"quantize.by_layer": [None, ["int8-row", "int4-row"]]}
    recipe, _ = space(given, MINE).made({"quantize.by_layer": '["int8-row", "int4-row"]'})
    assert len(recipe.techniques[0].by_layer) == 2
    assert space(given, MINE).made({"quantize.by_layer": None})[0].techniques[0].by_layer is None
    _, budget = space({"budget.epochs": [1, 2]}).made({"budget.epochs": 2})
    assert (budget.epochs, budget.steps) == (2, None)


def test_a_range_is_of_whole_numbers_where_both_ends_are():
    optuna = pytest.importorskip("optuna")
    found = space({
        "budget.steps": {"low": 1, "high": 64, "log": True},
        "budget.warmup": {"low": 0, "high": 0.5}, "layer_reduction.keep": ["top", [0, 5]],
    }).distributions()  # fmt: skip
    assert found == {
        "budget.steps": optuna.distributions.IntDistribution(1, 64, log=True),
        "budget.warmup": optuna.distributions.FloatDistribution(0, 0.5),
        "layer_reduction.keep": optuna.distributions.CategoricalDistribution(["top", "[0, 5]"]),
    }


@pytest.mark.parametrize(
    "given, message",
    [
        ({}, "the space is empty or no mapping: received {}"),
        ([1], r"the space is empty or no mapping: received \[1\]"),
        ({"budget.steps": {"low": 5, "high": 5}}, "budget.steps: nothing is from 5 to 5"),
        ({"budget.steps": {"low": 5}}, "budget.steps: range lacks `high`"),
        ({"budget.steps": {"low": 5, "high": 9, "logs": True}}, "range 'logs': did you mean 'log'"),
        ({"budget.learning_rate": {"low": "1e-5", "high": 1.0}}, "YAML reads 1e-5 as a word"),
        ({"budget.learning_rate": {"low": 0, "high": 1.0, "log": True}}, "starts above 0, .*low=0"),
        ({"budget.steps": 5}, "budget.steps: received 5, expected {low: …, high: …} or a list"),
        ({"budget.steps": [5, 5]}, r"received \[5, 5\], .* two or more different choices"),
        ({"budget.stpes": [5, 6]}, "unknown place 'budget.stpes' in .*'budget.steps'"),
        ({"quantize.by_layer.*": ["int4", "int8"]}, "did you mean 'quantize.by_layer'"),
        ({"sparsify.sparsity": [0.5, 0.9]}, "unknown place 'sparsify.sparsity' in xtc-1bit-half"),
        ({"rate": [1, 2]}, "end in 'rate': write one of layer reduction.rate, binarization.rate$"),
        ({"quantize": ["quantize", {}], "weights": ["int4", "int8"]}, "weights lies in quantize"),
        ({"weights": ["int3", "int8"], "quantize.weights": ["int4", "int8"]}, "in weights: vary"),
        ({"budget.steps": [5, 6], "budget.epochs": [1, 2]}, "steps or epochs, the space has both"),
        ({"quantize.weights": ["binry", "in4"]}, "of what quantize.weights offers: .*'binry'"),
        ({"budget.steps": {"low": -2, "high": 0}}, "takes nothing of what budget.steps offers"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_in_one_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        space(given)
    assert "\n" not in str(error.value)


def test_a_range_stays_a_range():
    assert dimensions({"a": Range(1, 2)}) == {"a": Range(1, 2)}
