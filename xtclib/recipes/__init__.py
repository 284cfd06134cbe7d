"""Recipes: named lists of stages, in YAML, with the paper they come from.

Editors complete and check a recipe whose first line names its schema, as those here do:
``# yaml-language-server: $schema=…/xtclib/recipes/schema.json``.
"""

from xtclib.recipes.recipe import Recipe, Stage, custom, from_dict, load, names

__all__ = ["Recipe", "Stage", "custom", "from_dict", "load", "names"]
