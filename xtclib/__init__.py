"""BERT compression: quantization, pruning, distillation and more, with files that are small.

``import xtclib`` registers the artefact format with ``transformers``; names load when first used.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
from importlib.metadata import version


def _interrupted(*_: object) -> None:
    """Ctrl-C while the command `xtc` still imports; then `cli.main` takes over."""
    os.write(2, b"xtc: interrupted; the same command goes on where it was\n")
    os._exit(130)


_command = "xtclib.cli" in sys.orig_argv or os.path.basename((sys.argv or [""])[0]) == "xtc"
if _command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not under nohup
    signal.signal(signal.SIGINT, _interrupted)

__version__ = version("xtclib")

_WHERE = {
    "compress": "study.compress",
    "own": "tasks.own",
    "tags": "tasks",
    "questions": "tasks",
    "vectors": "tasks",
    "trainable": "artefact",
    "Record": "records",
    "fake_quantize": "techniques.quantization",
    "quantize": "techniques.quantization",
    "Scheme": "techniques.quantization",
    "set_speed": "techniques.dynamic.calibration",
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


if not _command:  # that one does it where it needs more than its help
    from xtclib.artefact import format as _format  # noqa: F401 - registers it
