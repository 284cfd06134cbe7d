"""The JSON schema of recipe files, by which editors complete and check their YAML.

A recipe's first line names it: ``# yaml-language-server: $schema=schema.json``. After a change of
a config: ``python scripts/schema.py`` writes it anew.
"""

from __future__ import annotations

import json

from xtclib.cache import ROOT
from xtclib.config import checks, one_of
from xtclib.distillation import TERMS
from xtclib.files import write_text
from xtclib.recipes import Recipe

FILE = ROOT / "xtclib" / "recipes" / "schema.json"


def schema() -> dict:
    """What a recipe file may hold: every technique, term and criterion with its fields.

    >>> sorted(schema()["properties"])
    ['left_out', 'source', 'stages', 'start', 'summary']
    """
    whole = checks(Recipe).json_schema()
    parts = whole["$defs"]
    match, objective, stage = parts.pop("Match"), parts["Objective"], parts["Stage"]
    for config, field in ((whole, "name"), (stage, "name"), (match, "term")):
        config["required"].remove(field)
        del config["properties"][field]
    del match["properties"]["options"], objective["properties"]["matches"]
    for name, term in TERMS.items():
        own = {**match["properties"], **{option: {} for option in term.options}}
        told = {"description": (term.loss.__doc__ or "").split("\n")[0], "properties": own}
        fields = {"type": "object", "additionalProperties": False, **told}
        objective["properties"][name] = {"anyOf": [{"type": "number", "minimum": 0}, fields]}
    # A stage stands under its name: `- distillation: {objective: …}`.
    named = {**one_of({}), "additionalProperties": {"$ref": "#/$defs/Stage"}}
    whole["properties"]["stages"]["items"] = named
    whole["required"] = ["stages"]
    return _bare(whole)


def _bare(value):
    """Without pydantic's titles, which only repeat the names."""
    if isinstance(value, list):
        return [_bare(each) for each in value]
    if not isinstance(value, dict):
        return value
    kept = {k: v for k, v in value.items() if not (k == "title" and isinstance(v, str))}
    return {name: _bare(each) for name, each in kept.items()}


def text() -> str:
    """The schema as its file holds it."""
    return json.dumps(schema(), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    write_text(FILE, text())
