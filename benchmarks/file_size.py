"""How large the file is at BERT-base's shape: layers, widths and what is trimmed, read from disk.

    python benchmarks/file_size.py

Random weights: a file's size does not depend on what was learned. fp32 is 437.9 MB (10⁶ bytes).
Prints size, ratio, and seconds to save and to load.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import common
from transformers import AutoModelForSequenceClassification

from xtclib import artefact
from xtclib.techniques import LayerReduction, Quantize, Storage, apply_all

INT8 = {"pooler": "int8-row", "positions": "int8-row"}
ROWS = (
    ("1 bit", 12, "binary", INT8),
    ("1 bit", 6, "binary", INT8),
    ("1 bit", 5, "binary", INT8),
    ("1 bit, 1-bit pooler, 128 positions", 6, "binary",
     {"pooler": "binary-row", "positions": "int8-row", "length": 128}),
    ("ternary, 1.6 bits", 12, "ternary", INT8 | {"ternary": 1.6}),
    ("ternary, 2 bits", 12, "ternary", INT8),
    ("8 bits", 12, "int8", INT8),
)  # fmt: skip


def main() -> None:
    common.options(__doc__)
    model = common.random_model("bert-base")
    full = 4 * sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{'':<38}{'layers':>7}{'MB':>9}{'smaller':>10}{'save, s':>9}{'load, s':>9}")
    for name, layers, scheme, storage in ROWS:
        chosen = [Quantize(scheme, f"{scheme}-row"), Storage(**storage)]
        cut = [LayerReduction(layers=layers)] if layers < 12 else []
        packed = artefact.finalize(apply_all(model, cut + chosen), chosen)
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder, "artefact")
            start = time.perf_counter()
            packed.save_pretrained(target)
            saved = time.perf_counter()
            AutoModelForSequenceClassification.from_pretrained(target)
            loaded = time.perf_counter()
            size = (target / artefact.WEIGHTS).stat().st_size / 1e6
        print(
            f"{name:<38}{layers:>7}{size:>9.2f}{full / size:>9.1f}×{saved - start:>9.2f}"
            f"{loaded - saved:>9.2f}"
        )


if __name__ == "__main__":
    main()
