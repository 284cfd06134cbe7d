"""Recipes: named lists of stages, in YAML, with the paper they come from."""

from xtclib.recipes.recipe import Recipe, Stage, custom, from_dict, load, names

__all__ = ["Recipe", "Stage", "custom", "from_dict", "load", "names"]
