"""The artefact: a folder with packed weights that ``from_pretrained`` opens."""

from xtclib.artefact import ledger
from xtclib.artefact.checks import WEIGHTS
from xtclib.artefact.format import FORMAT, finalize, load, save, trainable

__all__ = ["FORMAT", "WEIGHTS", "finalize", "ledger", "load", "save", "trainable"]
