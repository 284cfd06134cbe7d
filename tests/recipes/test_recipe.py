import itertools

import pytest

from xtclib.config import config
from xtclib.distillation.objective import Objective
from xtclib.recipes import recipe as recipes
from xtclib.recipes.recipe import Recipe, Stage
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.pruning.structured import LearnGates
from xtclib.techniques.pruning.unstructured import ReweightedProximal, Sparsify
from xtclib.techniques.quantization.technique import Quantize
from xtclib.training import budget as training_budget
from xtclib.training.budget import Budget

NAMES = recipes.names()


def test_there_are_recipes_and_they_are_sorted():
    assert {"xtc-1bit-half", "ternarybert", "q8bert", "ptq-8bit"} < set(NAMES)
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_what_it_is_and_reads_back(name):
    recipe = recipes.load(name)
    assert recipe.name == name and len(recipe.summary) > 20 and len(recipe.source) > 20
    again = recipes.from_dict(name, recipe.to_dict())
    assert again == recipe and again.hash == recipe.hash


def test_hashes_are_distinct():
    hashes = [recipes.load(name).hash for name in NAMES]
    assert len(set(hashes)) == len(hashes) and all(len(h) == 12 for h in hashes)


def test_the_hash_covers_stages_only():
    recipe = recipes.load("xtc-1bit")
    told = recipe.to_dict()
    renamed = recipes.from_dict("other", {**told, "summary": "s", "source": "t", "left_out": "u"})
    assert renamed.hash == recipe.hash
    ((title, body),) = told["stages"][0].items()
    body["objective"]["logits"] = 2
    assert recipes.from_dict("xtc-1bit", {**told, "stages": [{title: body}]}).hash != recipe.hash


def test_the_xtc_pipeline_in_full():
    recipe = recipes.load("xtc-1bit-half")
    one_stage = Objective(logits=1, attention_scores=1, hidden_states=1)
    assert [s.objective for s in recipe.stages] == [one_stage, one_stage]
    assert recipe.techniques == [LayerReduction("every-other"), Quantize()]
    assert recipe.trains and not recipes.load("ptq-1bit").trains


def test_a_recipe_from_python_equals_its_yaml():
    stages = [
        Stage(
            "binarization", (Quantize(),), Objective(logits=1, hidden_states=1, attention_scores=1)
        )
    ]
    assert recipes.custom("mine", stages).hash == recipes.load("xtc-1bit").hash


def test_a_yaml_file_is_read_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("summary: s\nsource: t\nstages:\n- cut: {techniques: [layer_reduction]}\n")
    recipe = recipes.load(path)
    assert recipe == recipes.load(str(path))
    assert (recipe.name, recipe.summary) == ("mine", "s")
    assert recipe.techniques == [LayerReduction()]


def test_a_missing_yaml_file_lists_what_is_built_in():
    with pytest.raises(FileNotFoundError, match="no recipe file at nowhere.yaml; built in are"):
        recipes.load("nowhere.yaml")


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe 'xtc-1bit-hlaf': did you mean 'xtc-1bit"):
        recipes.load("xtc-1bit-hlaf")


@pytest.mark.parametrize(
    "values, message",
    [
        ({"stage": []}, "unknown key of recipe r 'stage': did you mean 'stages'"),
        ({"stages": []}, "recipe 'r' has no stages"),
        ({}, "recipe 'r' has no stages"),
        ({"stages": ["cut"]}, "a stage is one `name: {fields}`, received 'cut'"),
        ({"stages": [{"a": {}, "b": {}}]}, "a stage is one `name"),
        ({"stages": [{"a": {"objectiv": {}}}]}, "key of stage a 'objectiv': did you mean 'object"),
        ({"stages": [{"a": {"objective": {"logit": 1}}}]}, "'logit': did you mean 'logits'"),
        ({"stages": [{"a": {"objective": {}}}]}, "the objective is empty"),
        ({"stages": [{"a": {"objective": 3}}]}, "objective should be `name: value` pairs"),
        ({"stages": [{"a": {"techniques": ["quantise"]}}]}, "'quantise': did you mean 'quantize'"),
    ],
)
def test_bad_recipes_name_what_is_meant(values, message):
    with pytest.raises(ValueError, match=message):
        recipes.from_dict("r", values)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "the objective is empty: give at least one term a positive weight"),
        ({"logits": -1}, "logits of objective must be a number of at least 0, received -1"),
        ({"labels": float("nan")}, "labels of objective must be a number"),
        ({"labels": float("inf")}, "labels of objective must be a number"),
        ({"hidden_states": "1"}, "weight of term hidden_states must be a number .* received '1'"),
        (
            {"logits": 1, "logits_loss": "kl"},
            "unknown logits_loss of objective 'kl': Known",
        ),
        (
            {"logits": 1, "layer_map": "unifrom"},
            "unknown layer_map of objective 'unifrom': did you mean",
        ),
        (
            {"logits": 1, "temperature": 0},
            "temperature of objective must be a number above 0, received 0",
        ),
    ],
)
def test_bad_objectives_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Objective(**fields)


def test_labels_alone_need_no_teacher():
    assert not Objective(labels=1).needs_teacher and Objective(labels=1, logits=1).needs_teacher


@pytest.mark.parametrize(
    "budget, rows, steps",
    [
        (Budget(epochs=3), 100, 12),
        (Budget(epochs=3), 96, 9),
        (Budget(epochs=3), 97, 12),
        (Budget(epochs=0.5), 96, 2),  # 1.5, halves to even
        (Budget(epochs=0.001), 96, 1),
        (Budget(epochs=3, at_most=5), 1000, 5),
        (Budget(epochs=3, at_most=500), 100, 12),
        (Budget(epochs=18, batch_size=1), 10, 180),
        (Budget(steps=7), 10**6, 7),
    ],
)
def test_steps_of_a_budget(budget, rows, steps):
    assert budget.total_steps(rows) == steps


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "a budget needs epochs or steps, one of them; received epochs=None, steps=None"),
        ({"epochs": 1, "steps": 1}, "one of them; received epochs=1, steps=1"),
        ({"epochs": 0}, "epochs of budget must be a number above 0, received 0"),
        ({"steps": -3}, "steps of budget must be a whole number from 1, received -3"),
        (
            {"steps": 1, "keep": "held_out"},
            "unknown keep of budget 'held_out': did you mean 'held-out'",
        ),
        (
            {"steps": 1, "batch_size": 0},
            "batch_size of budget must be a whole number from 1, received 0",
        ),
        (
            {"steps": 1, "learning_rate": 0.0},
            "learning_rate of budget must be a number above 0, received 0.0",
        ),
        ({"steps": 1, "max_length": -1}, "max_length of budget must be a whole .*, received -1"),
    ],
)
def test_bad_budgets_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Budget(**fields)


def test_a_budget_needs_at_least_one_evaluation():
    with pytest.raises(
        ValueError, match="evaluations of budget must be a whole number from 1, received 0"
    ):
        Budget(steps=1, evaluations=0)


KNOWN = {"A": Budget(epochs=3, learning_rate=1e-3), "B": Budget(epochs=9)}


def test_budgets_by_letter_or_length():
    assert training_budget.budget("B", KNOWN) is KNOWN["B"]
    assert training_budget.budget("500steps", KNOWN) == Budget(steps=500, learning_rate=1e-3)
    assert training_budget.budget("1step", KNOWN).steps == 1
    assert training_budget.budget("2epochs", KNOWN) == Budget(epochs=2, learning_rate=1e-3)
    assert training_budget.budget("0.5epochs", KNOWN).epochs == 0.5
    own = Budget(steps=3)
    assert training_budget.budget(own, KNOWN) is own


@pytest.mark.parametrize(
    "name, message",
    [
        ("a", "unknown budget 'a': did you mean 'A'"),
        ("500step_s", "unknown budget '500step_s': did you mean '500steps'"),
        ("500", "unknown budget '500'.*Known budgets: A, B, 500steps, 2epochs"),
        ("0steps", "steps of budget must be a whole number from 1, received 0"),
    ],
)
def test_unknown_budgets_name_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        training_budget.budget(name, KNOWN)


def test_a_recipe_without_stages_is_refused():
    with pytest.raises(ValueError, match="recipe 'r' has no stages"):
        Recipe("r", "", "", ())


def test_a_sparsity_behind_the_name():
    nip, rpp = recipes.load("nip-90"), recipes.load("rpp-65")
    assert nip.name == "nip-90" and nip.techniques[0].sparsity == 0.9
    assert [t.sparsity for t in rpp.techniques] == [0.65, 0.65]
    assert nip.hash != recipes.load("nip").hash == recipes.load("nip-80").hash
    assert nip.start == "backbone" and nip.source == recipes.load("nip").source
    with pytest.raises(ValueError, match="unknown recipe 'xtc-half-90': xtc-half prunes no single"):
        recipes.load("xtc-half-90")
    with pytest.raises(ValueError, match="sparsity of sparsify must be .* below 1, received 100.0"):
        recipes.load("nip-10000")
    with pytest.raises(ValueError, match="unknown recipe 'nipp-90'"):
        recipes.load("nipp-90")


def test_start_and_task_are_read_written_and_checked():
    recipe = recipes.load("magnitude-pretrain")
    assert recipe.start == "backbone" and recipe.stages[0].task == "mlm" and recipe.trains
    told = recipe.to_dict()
    assert told["start"] == "backbone"
    del told["start"]
    assert recipes.from_dict("m", told).hash != recipe.hash
    with pytest.raises(
        ValueError, match="unknown start of recipe m 'backbon': did you mean 'backbone'"
    ):
        recipes.from_dict("m", {**told, "start": "backbon"})
    with pytest.raises(ValueError, match="unknown task of stage s 'mlmm': did you mean 'mlm'"):
        Stage("s", task="mlmm")
    with pytest.raises(ValueError, match="learn_gates learns scores, which mlm does not train"):
        Stage("s", (LearnGates(),), task="mlm")
    for technique in (Sparsify(0.5, schedule={"end": 0.5}), LearnGates(), ReweightedProximal(0.5)):
        with pytest.raises(ValueError, match="works while a stage trains, and this one does not"):
            Stage("s", (technique,))
    with pytest.raises(ValueError, match="length of stage s must be a number above 0, received 0"):
        Stage("s", length=0)


def test_techniques_without_brackets_are_refused():
    with pytest.raises(
        ValueError, match=r"techniques of stage s must be a list: write \[bilstm\], received"
    ):
        recipes.from_dict("x", {"stages": [{"s": {"techniques": "bilstm"}}]})


def test_a_field_with_a_default_changes_no_hash_and_a_value_does():
    @config
    class Wider(LayerReduction):
        """The technique as a later version has it."""

        gap: int = 0

    def hash_of(technique_, objective=None, **rest):
        return recipes.custom("r", [Stage("s", (technique_,), objective, **rest)]).hash

    plain = hash_of(LayerReduction("top", 3))
    assert hash_of(Wider("top", 3)) == hash_of(Wider("top", 3, gap=0)) == plain
    assert hash_of(Wider("top", 3, gap=1)) != plain != hash_of(LayerReduction("top", 2))
    assert hash_of(LayerReduction("top", 3), length=1, rate=1.0, task="its own") == plain
    assert hash_of(LayerReduction("top", 3), {"labels": 1}) == hash_of(
        LayerReduction("top", 3), {"labels": 1.0, "masked": True, "cosine": 0}
    )
    assert hash_of(Quantize("binary")) == hash_of(Quantize()) != hash_of(Quantize("binary-row"))
    assert Wider("top", 3).to_dict()["layer_reduction"] == {"keep": "top", "layers": 3, "gap": 0}


def test_a_name_is_no_key_of_a_recipe_file():
    with pytest.raises(ValueError, match="name of recipe r"):
        recipes.from_dict("r", {"name": "s", "stages": [{"a": {}}]})


ALIASES = "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in itertools.pairwise("abcdefghi")
)
EXHAUSTING = {
    "is nested too deeply": "stages: " + "[" * 5000 + "]" * 5000,
    "received inf": "stages:\n- one: {techniques: [{sparsify: {sparsity: .inf}}]}",
    "summary of recipe mine must be a valid string, received": "a: &a [x, x, x, x, x, x]\n"
    + ALIASES + "summary: *i\nstages: [{one: {techniques: [storage]}}]",
}  # fmt: skip


@pytest.mark.parametrize("message", EXHAUSTING)
def test_a_file_made_to_exhaust_is_one_short_error(tmp_path, message):
    path = tmp_path / "mine.yaml"
    path.write_text(EXHAUSTING[message], encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        recipes.load(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", NAMES)
def test_what_a_paper_has_and_its_recipe_lacks_is_told(name):
    found = recipes.load(name)
    if "arXiv" in found.source:
        assert len(found.left_out) > 30, f"{name}: say what is left out, or that it is complete"
