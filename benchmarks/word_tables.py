"""What every form of the word table, and every sharing of layers, makes of the file: from disk.

    python benchmarks/word_tables.py --out data/results/deployment/tables.json

Random weights at MiniLM's and BERT-base's shape: a size does not depend on what was learned. The
encoder has one bit a weight, unless it is said; pooler and positions 8 bits, 128 positions. Each
file opens again. Prints MB (10⁶ bytes) of the file and of the table in it, and the table's share;
then how far from the real MiniLM's table, fine-tuned on the reviews, each form starts
(``‖T − T'‖ / ‖T‖``), and in how many seconds.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import common
import torch
from transformers import AutoConfig, PretrainedConfig

from xtclib import artefact, techniques
from xtclib.artefact.ledger import byte_ledger, plan
from xtclib.costs import architectures
from xtclib.study import profiles

REST = techniques.Storage("int8-row", "int8-row", 128)
TIGHT = techniques.Storage("binary-row", "int8-row", 128)
ONE_BIT = {"weights": "binary", "activations": "int8-token"}
BITS = techniques.Quantize(**ONE_BIT, embeddings=None)
ROWS = techniques.Quantize(**ONE_BIT, embeddings="binary-row")
PRODUCTS = techniques.ProductTable(parts=0.0625, codes=256, codebook="int8-row")
SHARED = techniques.ShareLayers(start="first")
NARROW = techniques.LowRankTable(rank=128)
TABLES = {
    "one bit a number": [ROWS, REST],
    "products, 16 numbers a byte": [PRODUCTS, BITS, REST],
    "low rank 128, fp16": [NARROW, BITS, REST],
    "low rank 128, one bit": [NARROW, ROWS, REST],
    "tensor train, rank 32": [techniques.TensorTrainTable(rank=32), BITS, REST],
    "hashed, 1/16 of the rows, one bit": [techniques.HashTable(), ROWS, REST],
    "one layer shared, low rank 128, fp16": [SHARED, NARROW],
    "one layer shared, one bit": [SHARED, ROWS, REST],
    "one layer shared, products": [SHARED, PRODUCTS, BITS, TIGHT],
    "one layer shared, low rank 128, one bit": [SHARED, NARROW, ROWS, TIGHT],
}


STARTS = {
    "one bit": {"a row": techniques.Quantize(None, "binary-row", None)},
    "low rank": {f"rank {r}": techniques.LowRankTable(rank=r) for r in (8, 16, 32)},
    "products": {f"{n} parts": techniques.ProductTable(parts=n, codebook="int8-row")
                 for n in (8, 16, 24, 48)},
    "tensor train": {f"rank {r}": techniques.TensorTrainTable(rank=r) for r in (32, 48)},
    "hashed": {"1/16 of the rows": techniques.HashTable()},
}  # fmt: skip


def minilm() -> PretrainedConfig:
    """The shape of the 6-layer MiniLM of the profiles."""
    base = architectures.config_of("bert-base").to_dict()
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    return AutoConfig.for_model(**base | sizes)


def main() -> None:
    arguments = common.options(__doc__, out="")
    rows = []
    for shape in (minilm(), "bert-base"):
        model = common.random_model(shape)
        # Few distinct words: what k-means finds changes no size, and all of them take a minute.
        words = model.get_input_embeddings().weight.data
        words.copy_(words[:256].repeat(len(words) // 256 + 1, 1)[: len(words)])
        full = 4 * sum(p.numel() for p in model.parameters())
        name = shape if isinstance(shape, str) else "minilm"
        print(f"{name}, {full / 1e6:.1f} MB in fp32\n{'':<42}{'MB':>8}{'table':>8}{'of fp32':>9}")
        for told, chosen in TABLES.items():
            small = artefact.finalize(techniques.apply_all(model, chosen), chosen)
            with tempfile.TemporaryDirectory() as folder:
                small.save_pretrained(Path(folder, "small"))
                size = (Path(folder, "small") / artefact.WEIGHTS).stat().st_size
                entries = byte_ledger(Path(folder, "small"))
                opened = type(model).from_pretrained(Path(folder, "small")).eval()
            ids = torch.arange(5, 21)[None]
            with torch.no_grad():
                assert torch.equal(opened(ids).logits, small(ids).logits), told
            table = sum(e.bytes for e in entries if "word_embeddings" in e.tensor)
            rows.append({"shape": name, "how": told, "bytes": size, "table": table, "fp32": full})
            print(f"{told:<42}{size / 1e6:>8.2f}{table / 1e6:>8.2f}{size / full:>9.1%}")
    common.write(arguments.out, {"rows": rows, "starts": starts()})


@torch.no_grad()
def starts() -> list[dict]:
    """How far each form starts from the trained table, with its bytes and its seconds."""
    profile = profiles.profile("reviews")
    data = profiles.data_for("reviews", profile)
    model = profiles.teacher_for("reviews", profile, data, progress=False).model.to("cpu")
    words, found = model.get_input_embeddings(), []
    for method, settings in STARTS.items():
        for setting, technique in settings.items():
            begun = time.perf_counter()
            new = technique.apply(model).get_input_embeddings().eval()
            seconds = round(time.perf_counter() - begun, 1)
            far = new(torch.arange(len(words.weight))) - words.weight
            entries = plan(model.config, [technique])
            size = sum(e.bytes for e in entries if "word_embeddings" in e.tensor)
            error = round(float(far.norm() / words.weight.norm()), 4)
            found.append({"method": method, "setting": setting, "bytes": size, "error": error,
                          "seconds": seconds})  # fmt: skip
            print(f"{method:<14}{setting:<18}{size / 1e6:6.2f} MB{error:8.1%}{seconds:8.1f} s")
    return found


if __name__ == "__main__":
    main()
