"""The JSON schema of recipes: current, true of every shipped recipe, and of no broken one."""

import copy
from importlib import resources

import jsonschema
import pytest
import schema
import yaml

from xtclib.recipes import recipe

TOLD = schema.schema()
VALID = jsonschema.Draft202012Validator(TOLD)
FOLDER = resources.files("xtclib.recipes")


def held(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def test_the_file_is_current():
    assert schema.FILE.read_text(encoding="utf-8") == schema.text(), (
        "the configs changed: write the schema anew by `python scripts/schema.py`"
    )
    VALID.check_schema(TOLD)


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_names_it_and_fits(name):
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=schema.json"
    VALID.validate(held(name))
    VALID.validate(recipe.load(name).to_dict())


def test_every_technique_and_term_is_told():
    techniques = TOLD["$defs"]["Stage"]["properties"]["techniques"]["items"]["anyOf"][1]
    sparsify = techniques["properties"]["sparsify"]
    assert sparsify["description"].startswith("Sets a share of the encoder's weights to zero")
    assert "score_noise" in str(sparsify["properties"]["criterion"])
    heads = TOLD["$defs"]["Objective"]["properties"]["key_relations"]["anyOf"][1]["properties"]
    shared = {"weight", "states", "layers", "projection", "per_layer"}
    assert shared | {"heads", "per_token"} == set(heads)


@pytest.mark.parametrize(
    "change",
    [
        lambda stage: stage.update(techniqes=[]),
        lambda stage: stage.update(rate=0),
        lambda stage: stage["objective"].update(logit=1),
        lambda stage: stage["objective"].update(cosine={"weigth": 1}),
        lambda stage: stage["techniques"].append("quantise"),
        lambda stage: stage["techniques"].append({"sparsify": {"begin": 0.5}}),
        lambda stage: stage["techniques"].append({"quantize": {"weights": "binry"}}),
    ],
)
def test_what_is_refused_does_not_fit(change):
    values = copy.deepcopy(held("movement"))
    ((_, stage),) = values["stages"][0].items()
    change(stage)
    assert not VALID.is_valid(values)
    with pytest.raises(ValueError):
        recipe.from_dict("m", values)
