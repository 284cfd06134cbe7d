"""BERT compression: quantization, layer reduction and distillation, with files that are small.

``import xtclib`` registers the artefact format with ``transformers``; names load when first used.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_WHERE = {
    "compress": "study",
    "profiles": "settings",
    "Record": "results",
    "records": "results",
    "fake_quantize": "quantizers",
    "quantize": "quantizers",
    "Scheme": "quantizers",
    "LayerReduction": "techniques",
    "PruneHeads": "techniques",
    "PruneNeurons": "techniques",
    "PruneVocabulary": "techniques",
    "PruneWidth": "techniques",
    "Sparsify": "techniques",
    "Quantize": "techniques",
    "Compact": "techniques",
    "Budget": "recipes",
    "Objective": "objectives",
    "Match": "matching",
    "Recipe": "recipes",
    "Stage": "recipes",
}
_MODULES = {
    "architectures",
    "artefact",
    "attention",
    "augmentation",
    "batches",
    "breakdown",
    "cost_plots",
    "costs",
    "deployment",
    "deployment_plots",
    "distillation",
    "distillation_plots",
    "dualtrain",
    "english",
    "evaluation",
    "files",
    "first_principles",
    "glue",
    "grammar",
    "integrity",
    "interface",
    "latency",
    "layers",
    "learned",
    "ledger",
    "masked",
    "matching",
    "metrics",
    "mini",
    "mlm",
    "models",
    "objectives",
    "onnx_export",
    "onnx_graph",
    "packing",
    "plot_style",
    "plots",
    "pruning",
    "pruning_plots",
    "published",
    "quantizers",
    "recipes",
    "results",
    "sensitivity",
    "stages",
    "settings",
    "shallow",
    "sparsify",
    "sparsity",
    "splitting",
    "structure",
    "students",
    "study",
    "teachers",
    "techniques",
    "tensor_plots",
    "theseus",
    "training",
    "vocabulary",
    "widgets",
}
__all__ = sorted(_MODULES | set(_WHERE))


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"xtclib.{_WHERE[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"xtclib.{name}")
    raise AttributeError(f"xtclib has no {name!r}; it has: {', '.join(__all__)}")


def __dir__() -> list[str]:
    return __all__


from xtclib import artefact as _artefact  # noqa: E402,F401 - registers the format
