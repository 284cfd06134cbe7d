"""The table of encoders is true: each of its cells is run."""

import encoders
import pytest
import torch

from xtclib.artefact import format
from xtclib.techniques import LayerReduction, PruneHeads, Quantize
from xtclib.techniques.base import apply_all

TABLE = encoders.FILE.read_text(encoding="utf-8").splitlines()
FAMILIES = list(encoders.FAMILIES)


def told(line):
    """A row's cells, with the sentences below the table."""
    family, *cells = (cell.strip() for cell in line.strip("|").split("|"))
    notes = [note[2:].split(": *", 1) for note in TABLE if note.startswith("- ")]
    why = {cell: said.rstrip("*") for cells, said in notes for cell in cells.split("; ")}
    pairs = zip(encoders.CELLS, cells, strict=True)
    return family, {n: why[f"{family}, {n}"] if c == "refused" else "" for n, c in pairs}


ROWS = dict(told(line) for line in TABLE if line.startswith("| ") and "encoder" not in line)


def test_the_table_is_that_of_the_script():
    assert list(ROWS) == FAMILIES and encoders.text(ROWS).splitlines() == TABLE
    for family, row in ROWS.items():  # what has to work, works
        needed = ("quantize", "pack, reload", "layers", "logits", "states")
        assert not any(row[name] for name in needed), family
    first = FAMILIES[:6]
    refused = {(f, name) for f in first for name, why in ROWS[f].items() if why}
    assert refused == {("DistilBERT", "tokens"), ("MPNet", "tokens")}  # attention of their own


QUICK = ["quantize", "layers", "heads", "neurons"]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_quantized_and_cut(family, tmp_path):
    found = encoders.row(family, tmp_path, QUICK)
    assert found == {name: ROWS[family][name] for name in QUICK}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_other_cell_is_as_the_table_says(family, tmp_path):
    cells = [name for name in encoders.CELLS if name not in QUICK]
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    found = encoders.row(family, tmp_path, cells)
    assert found == {name: ROWS[family][name] for name in cells}


@pytest.mark.slow
@pytest.mark.fresh_process
def test_a_fresh_process_reads_every_family(tokenizer, batch, tmp_path, fresh_logits):
    models = {}
    for family in FAMILIES:
        # MPNet's heads bring numbers along by which they find their bias.
        cut = [PruneHeads(keep=0.5)] if not ROWS[family]["heads"] else []
        techniques = [LayerReduction((1, 2)), *cut, Quantize(weights="ternary-row")]
        made = apply_all(encoders.tiny(family, 200), techniques)
        models[family] = format.finalize(made, techniques)
        format.save(models[family], tokenizer, tmp_path / family)
    found = fresh_logits(*(tmp_path / family for family in FAMILIES))
    for family, logits in zip(FAMILIES, found, strict=True):
        with torch.no_grad():
            wanted = models[family](**batch).logits
        assert torch.equal(torch.tensor(logits), wanted), family
