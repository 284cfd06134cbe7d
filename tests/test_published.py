"""The published numbers: tidy, complete, and the ones the sources print."""

import csv
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "data" / "published"
with (FOLDER / "xtc.csv").open(encoding="utf-8", newline="") as file:
    ROWS = list(csv.DictReader(file))


def where(**wanted):
    return [row for row in ROWS if all(row[key] == value for key, value in wanted.items())]


def test_every_column_is_in_the_dictionary():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [name for name in ROWS[0] if f"| `{name}` |" not in text] == []


def test_rows_are_tidy():
    for row in ROWS:
        assert None not in row and None not in row.values()
        assert 0 < float(row["value"]) < 100 and row["weight_bits"] in ("1", "2", "32")
        assert row["kind"] in ("printed", "read off a figure")
        assert row["source"] and row["where"] and row["metric"]
        assert bool(row["size_mb"]) == ("MiB, parameters × bits" in row["note"])
    keys = [tuple(row[k] for k in ("system", "layers", "weight_bits", "metric")) for row in ROWS]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    "layers, bits, matched, mismatched",
    [("12", "32", 84.2, 84.7), ("12", "1", 82.9, 84.0), ("6", "2", 82.6, 83.2),
     ("5", "32", 83.4, 83.3), ("5", "1", 81.0, 81.9)],
)  # fmt: skip
def test_mnli(layers, bits, matched, mismatched):
    values = [float(r["value"]) for r in where(task="MNLI", layers=layers, weight_bits=bits)]
    assert values == [matched, mismatched]


def test_glue_against_size():
    rows = where(task="GLUE")
    assert len(rows) == 11 and len(where(task="MNLI")) == 18
    assert {row["kind"] for row in rows} == {"read off a figure"}
    (half,) = where(task="GLUE", system="XTC-BERT*", layers="6")
    assert (half["value"], half["size_mb"], half["weight_bits"]) == ("81.8", "8", "1")
