"""BERT compression: quantization, pruning, distillation and more, with files that are small.

``import xtclib`` registers the artefact format with ``transformers``; names load when first used.
"""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import version

__version__ = version("xtclib")

_WHERE = {
    "compress": "study.compress",
    "trainable": "artefact",
    "Record": "records",
    "fake_quantize": "techniques.quantization",
    "quantize": "techniques.quantization",
    "Scheme": "techniques.quantization",
    "LayerReduction": "techniques",
    "PruneHeads": "techniques",
    "PruneNeurons": "techniques",
    "PruneVocabulary": "techniques",
    "PruneWidth": "techniques",
    "Sparsify": "techniques",
    "Quantize": "techniques",
    "Compact": "techniques",
    "Budget": "training",
    "Objective": "distillation",
    "Match": "distillation",
    "Recipe": "recipes",
    "Stage": "recipes",
}
_MODULES = {found.name for found in pkgutil.iter_modules(__path__)}
__all__ = sorted(_MODULES | set(_WHERE))


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"xtclib.{_WHERE[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"xtclib.{name}")
    raise AttributeError(f"xtclib has no {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__


from xtclib.artefact import format as _format  # noqa: E402,F401 - registers it
