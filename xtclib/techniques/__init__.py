"""What makes a model smaller: a folder for each family, one interface for all.

A technique is a small frozen config with ``apply(model, data) → model`` and, where it needs them,
what :class:`Technique` lists. They compose in a list; recipes know them by name.
"""

from xtclib.techniques.base import (
    TECHNIQUES,
    Held,
    Stored,
    Technique,
    apply_all,
    pack_,
    register,
    technique,
)
from xtclib.techniques.deformer.technique import DeFormer
from xtclib.techniques.dynamic.dropping import DropTokens
from xtclib.techniques.dynamic.technique import EarlyExit
from xtclib.techniques.embeddings.tables import (
    HashTable,
    LowRankTable,
    ProductTable,
    TensorTrainTable,
)
from xtclib.techniques.embeddings.technique import PruneVocabulary, SmallVocabulary
from xtclib.techniques.factorization.technique import Factorize
from xtclib.techniques.pruning.budget import PruneToBudget
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.pruning.structured import LearnGates, PruneHeads, PruneNeurons, PruneWidth
from xtclib.techniques.pruning.unstructured import ReweightedProximal, Sparsify
from xtclib.techniques.quantization.smoothing import Smooth
from xtclib.techniques.quantization.splitting import SplitTernary
from xtclib.techniques.quantization.technique import Quantize, Storage
from xtclib.techniques.sharing.technique import ShareLayers
from xtclib.techniques.students.technique import CNN, BiLSTM, Bottleneck, Compact, DistilBert
from xtclib.techniques.students.theseus import KeepSuccessors, ReplaceModules

__all__ = [
    "CNN", "TECHNIQUES", "BiLSTM", "Bottleneck", "Compact", "DeFormer", "DistilBert", "DropTokens",
    "EarlyExit", "Factorize", "HashTable", "Held", "KeepSuccessors", "LayerReduction", "LearnGates",
    "LowRankTable", "ProductTable", "PruneHeads", "PruneNeurons", "PruneToBudget",
    "PruneVocabulary", "PruneWidth", "Quantize", "ReplaceModules", "ReweightedProximal",
    "ShareLayers", "SmallVocabulary", "Smooth", "Sparsify", "SplitTernary", "Storage", "Stored",
    "Technique", "TensorTrainTable", "apply_all", "pack_", "register", "technique",
]  # fmt: skip
