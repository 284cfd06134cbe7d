"""The published numbers: tidy, complete, the ones the sources print, and open about slips."""

import re
from pathlib import Path
from statistics import mean

import pytest

from xtclib.costs import published
from xtclib.costs.published import select, table

README = (published.FOLDER / "README.md").read_text(encoding="utf-8")
COMMON = {"system", "task", "metric", "value", "unit", "kind", "source", "where", "note"}
TEXTS = {"findings", "summary_lines"}
# Rows, counted in the sources, and the sum of their values.
COUNTS = {
    "deformer_latency": (2 * 3, 21.33),
    "deformer_squad": (3 * 3, 3075.30),
    "deformer_tasks": (5 * 6, 1158.80),
    "effectiveness": (198, 8373.81),
    "findings": (39, None),
    "glue_against_gflops": (11, 875),
    "glue_against_size": (11, 913.5),
    "mobilebert": (8 + 10 + 12 + 2 * 8 + 3 * 12 + 1, 6336.90),
    "optimal_subwords": (15 * 5, 5923.80),
    "rpp": (4 * 10, 3245.36),
    "summary_lines": (15, None),
    "well_read_students": (7 * 10, 5774.10),
    "xtc": (9 * 2 + 3, 1494.50 + 16 + 32 + 52),
}
NUMBERS = sorted(set(COUNTS) - TEXTS)
UNITS = {
    "percent", "percentage points", "×", "MB", "GFLOPs", "millions", "thousands", "seconds",
}  # fmt: skip


def one(name, **columns):
    """The value of the only row that matches."""
    (row,) = select(table(name), **columns)
    return row["value"]


def notes(name, **columns):
    return " | ".join(row["note"] or "" for row in select(table(name), **columns))


# The reader


def test_names_are_the_files():
    assert published.names() == sorted(COUNTS)


def test_cells_become_numbers_text_or_none():
    row = table("glue_against_size")[3]
    assert row["system"] == "BinaryBERT (TWN)" and row["layers"] is None
    assert (row["weight_bits"], type(row["weight_bits"])) == (1, int)
    assert (row["value"], type(row["value"])) == (82.5, float)
    assert [r["change"] for r in select(table("rpp"), task="CoLA")] == [-5.2, -12.37, 1.3, -2.2]
    assert table("glue_against_gflops")[0]["release"] == "2020-07"


def test_select():
    rows = select(table("xtc"), layers=5, weight_bits=2)
    assert [row["value"] for row in rows] == [82.2, 83.0]
    assert select(table("xtc"), layers=7) == [] and select([], layers=7) == []
    with pytest.raises(ValueError, match="unknown column 'layer': did you mean 'layers'"):
        select(table("xtc"), layer=5)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="'mobilbert': did you mean 'mobilebert'.*rpp.*xtc"):
        table("mobilbert")


def test_without_the_folder_the_error_says_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setattr(published, "FOLDER", tmp_path / "data" / "published")
    for read in (published.names, lambda: table("xtc")):
        with pytest.raises(FileNotFoundError, match="come with a clone"):
            read()


# The schema


@pytest.mark.parametrize("name", NUMBERS)
def test_rows_are_tidy(name):
    rows = table(name)
    assert set(rows[0]) >= COMMON and list(rows[0])[-4:] == ["kind", "source", "where", "note"]
    for row in rows:
        assert set(row) == set(rows[0]), row
        assert isinstance(row["value"], int | float), row
        assert row["unit"] in UNITS and row["system"] and row["metric"], row
        if row["unit"] == "percent":
            assert 0 < row["value"] <= 100, row
    assert (rows[0]["kind"] == "read off a figure") == name.startswith("glue_against")
    assert len({row["kind"] for row in rows}) == 1


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_row_says_where_it_comes_from(name):
    for row in table(name):
        assert row["kind"] in ("printed", "read off a figure")
        assert re.search(r"arXiv:\d{4}\.\d{5}|deepspeed\.ai/|^Small BERT", row["source"]), row
        assert row["where"], row
        texts = [value for value in row.values() if isinstance(value, str)]
        assert all(text == text.strip() and "  " not in text for text in texts), row


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_stands_twice(name):
    free = {"value", "unit", "change", "size_mib", "gflops", "release", "note"}
    keys = [tuple(v for k, v in row.items() if k not in free) for row in table(name)]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_complete(name):
    rows, total = COUNTS[name]
    assert len(table(name)) == rows
    assert re.search(rf"\| `{name}\.csv` \|.*\| {rows} \|", README)
    if total is not None:
        assert sum(row["value"] for row in table(name)) == pytest.approx(total, abs=0.001)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_every_column_is_in_the_dictionary(name):
    own = dict(re.findall(r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)+) \|", README, re.MULTILINE))
    assert len(own) == 18
    for column in table(name)[0]:
        assert f"\n| `{column}` |" in README
        if name not in TEXTS and column in own:
            assert f"`{name}`" in own[column], f"{column} of {name}"


# Cells, read again in the sources


@pytest.mark.parametrize(
    "layers, bits, matched, mismatched",
    [(12, 32, 84.2, 84.7), (12, 1, 82.9, 84.0), (6, 2, 82.6, 83.2), (5, 32, 83.4, 83.3),
     (5, 1, 81.0, 81.9)],
)  # fmt: skip
def test_xtc(layers, bits, matched, mismatched):
    rows = select(table("xtc"), task="MNLI", layers=layers, weight_bits=bits)
    assert [row["value"] for row in rows] == [matched, mismatched]
    assert all(("MiB" in (row["note"] or "")) == bool(row["size_mib"]) for row in rows)


def test_glue_against_size():
    half = {"system": "XTC-BERT*", "layers": 6}
    (row,) = select(table("glue_against_size"), **half)
    assert (row["value"], row["size_mib"], row["weight_bits"]) == (81.8, 8, 1)
    for region, systems, sizes in (
        ("quantization", 5, {8, 16, 32}), ("layer reduction", 3, {200}),
    ):  # fmt: skip
        rows = select(table("glue_against_size"), region=region)
        assert len({row["system"] for row in rows}) == systems
        assert {row["size_mib"] for row in rows} == sizes
        assert {row["weight_bits"] == 32 for row in rows} == {region == "layer reduction"}
    assert one("glue_against_size", system="XTC-BERT", layers=8) == 83.3
    assert "L=5" in notes("glue_against_size", layers=8)


def test_glue_against_gflops():
    points = {r["system"]: (r["gflops"], r["value"]) for r in table("glue_against_gflops")}
    assert points["MobileBERT tiny"] == (4, 75) and points["ELECTRA-Small"] == (6, 77)
    assert points["SqueezeBERT"] == (7, 80) and points["Theseus 6/768"] == (10, 79)
    assert points["ELECTRA Large"] == (50, 85) == max(points.values(), key=lambda p: p[1])
    assert points["BERT Large"] == (70, 82) == max(points.values())
    dates = {r["system"]: r["release"] for r in table("glue_against_gflops")}
    assert all(re.fullmatch(r"20(18|19|20)-0[17]", date) for date in dates.values())
    wrong = {"BERT-Base": "2019-01", "BERT Large": "2018-07", "ELECTRA Large": "2020-07"}
    for system, date in wrong.items():
        assert dates[system] == date
        assert re.search("October 2018|March 2020", notes("glue_against_gflops", system=system))


@pytest.mark.parametrize(
    "system, columns, cells",
    [("BERT-base (teacher)", {"compression": 1}, [88.5, 84.3, 84.0, 82.8, 93.5]),
     ("PKD, 3 layers", {}, [80.7, 72.5, 76.7, 76.3, 87.5]),
     ("NoKD baseline", {"hidden": 192}, [82.6, 74.1, 77.4, 76.5, 87.1]),
     ("DualTrain", {"compression": 19.41}, [86.1, 80.5, 76.1, 74.7, 85.4]),
     ("DualTrain + SharedProjUp", {"hidden": 48}, [79.3, 68.6, 71.0, 70.8, 82.2])],
)  # fmt: skip
def test_optimal_subwords(system, columns, cells):
    rows = select(table("optimal_subwords"), system=system, **columns)
    assert [row["value"] for row in rows] == cells
    assert [row["metric"] for row in rows[:2]] == ["F1", "accuracy"]


def test_slips_in_optimal_subwords_are_corrected_in_the_open():
    rows = table("optimal_subwords")
    assert {row["hidden"] for row in rows} == {768, 192, 96, 48}
    assert {row["vocabulary"] for row in rows} == {30522, 4928}
    assert {row["compression"] for row in rows} == {1, 1.64, 2.4, 5.74, 19.41, 61.94}
    for system, hidden, slips in (
        ("PKD, 3 layers", 768, "708 30322"), ("DualTrain + SharedProjDown", 96, "90"),
        ("DualTrain + SharedProjDown", 48, "40 4920 61.94X"),
    ):  # fmt: skip
        found = select(rows, system=system, hidden=hidden)
        assert len(found) == 5
        for slip in slips.split():
            assert all(re.search(rf"(reads|printed) {slip}\b", row["note"]) for row in found)
    assert sum("in the scan" in (row["note"] or "") for row in rows) == 15


def test_mobilebert():
    def mine(**columns):
        return one("mobilebert", **columns)

    assert mine(system="BERT-base", metric="operations") == 22.5
    assert mine(system="BERT-base-3L-PKD", metric="parameters") == 45.3
    assert mine(system="MobileBERT", task="GLUE") == 77.7
    assert mine(system="MobileBERT w/o OPT", task="MNLI", metric="accuracy, matched") == 84.3
    assert mine(system="ELMo-BiLSTM-Attn", task="QQP") == 63.1
    assert mine(system="training set", task="MNLI") == 393
    assert select(table("mobilebert"), system="BERT-base-6L-PKD", task="CoLA") == []
    assert notes("mobilebert", metric="parameters").count('"#Parame') == 6
    assert notes("mobilebert", metric="GLUE score").count('"CLUE') == 5


def test_the_glue_score_is_not_the_mean_of_the_cells_and_the_note_has_that_mean():
    for row in select(table("mobilebert"), metric="GLUE score"):
        cells = select(table("mobilebert"), system=row["system"], split="test")
        tasks = {c["task"] for c in cells} - {"GLUE"}
        own = mean(mean(c["value"] for c in select(cells, task=task)) for task in tasks)
        assert len(tasks) == 8 and 0.3 < abs(own - row["value"]) < 0.8
        noted = float(re.search(r"printed cells, ([\d.]+)", row["note"])[1])
        assert noted == pytest.approx(own, abs=0.0051)


def test_rpp_implies_one_unpruned_score_a_task_but_for_mrpc():
    rows = table("rpp")
    assert {(r["system"], r["prune_ratio"]) for r in rows} == {
        ("NIP", 50.0), ("NIP", 80.0), ("RPP", 59.3), ("RPP", 88.4),
    }  # fmt: skip
    full = {}
    for row in rows:
        full.setdefault((row["task"], row["metric"]), []).append(row["value"] - row["change"])
    full = {key: [round(value, 2) for value in values] for key, values in full.items()}
    assert full.pop(("MRPC", "score")) == [89.0, 88.9, 89.3, 89.0]
    assert notes("rpp", task="MRPC").count("89.0, 88.9, 89.3 and 89.0") == 4
    assert {key: set(values) for key, values in full.items()} == {
        ("SQuAD 1.1", "score"): {90.9}, ("QQP", "score"): {91.2}, ("MNLI", "score"): {86.1},
        ("CoLA", "score"): {81.5}, ("SQuAD 2.0", "score"): {81.9}, ("QNLI", "score"): {91.3},
        ("MNLI", "score, mismatched"): {85.9}, ("SST-2", "score"): {93.2}, ("RTE", "score"): {70.1},
    }  # fmt: skip
    assert one("rpp", system="RPP", prune_ratio=59.3, task="SQuAD 1.1") == 90.23
    assert one("rpp", system="NIP", prune_ratio=80.0, task="MNLI", metric="score") == 73.81


def test_deformer_drops_follow_from_the_scores():
    assert [r["input_tokens"] for r in select(table("deformer_tasks"), metric="drop")] == [
        320, 2048, 320, 120, 100,
    ]  # fmt: skip
    for task, full, small, times, saved in (
        ("SQuAD", 88.5, 87.1, 3.2, 70.3), ("RACE", 66.3, 64.5, 3.4, 72.9),
        ("BoolQ", 77.8, 76.8, 3.5, 72.0), ("MNLI", 84.4, 82.6, 2.2, 56.4),
        ("QQP", 90.5, 90.3, 2.0, 50.0),
    ):  # fmt: skip
        rows = select(table("deformer_tasks"), task=task)
        values = [row["value"] for row in rows]
        assert values[:2] == [full, small] and values[4:] == [times, saved]
        assert values[2] == pytest.approx(full - small)
        assert values[3] == pytest.approx(100 * (full - small) / full, abs=0.05)


def test_deformer_squad_and_latency():
    for system, cells in (
        ("BERT-large", [92.3, 204.1, 1549.6]), ("BERT-base", [88.5, 58.4, 584.2]),
        ("Decomp-BERT-large", [90.8, 47.7, 359.7]),
    ):  # fmt: skip
        rows = select(table("deformer_squad"), system=system)
        assert [row["value"] for row in rows] == cells
        assert [row["unit"] for row in rows] == ["percent", "GFLOPs", "MB"]
    phone = select(table("deformer_latency"), device="OnePlus 6 Phone")
    assert [(r["value"], r["batch_size"], r["unit"]) for r in phone] == [
        (10.2, 1, "seconds"), (3.28, 1, "seconds"),
    ]  # fmt: skip
    assert {r["batch_size"] for r in table("deformer_latency") if r not in phone} == {32}


def test_the_meta_score_is_the_mean_of_six_tasks():
    rows = table("well_read_students")
    scores = select(rows, metric="meta score")
    assert [r["value"] for r in scores] == [80.5, 81.6, 82.1, 81.7, 82.8, 84.4, 82.3]
    for score in scores:
        cells = select(rows, system=score["system"], split=score["split"])
        tasks = {c["task"] for c in cells} - {None}
        own = mean(mean(c["value"] for c in select(cells, task=task)) for task in tasks)
        assert len(tasks) == 6 and own == pytest.approx(score["value"], abs=0.051)
        assert "not the GLUE score" in score["note"]


def test_effectiveness_has_every_line_of_the_poster():
    rows = table("effectiveness")
    assert {row["row"] for row in rows} == set(range(1, 27))
    assert len({row["system"] for row in rows} - {"BERT-base"}) == 12
    assert one("effectiveness", row=2, with_embeddings="no") == 12.5
    assert one("effectiveness", row=11, device="GPU") == 19.5
    assert one("effectiveness", row=17, device="GPU") == 0.92
    assert one("effectiveness", row=21, task="SQuAD") == 89.3
    assert one("effectiveness", row=26, with_embeddings="yes") == 1.3
    assert select(rows, row=26, device="CPU") == []
    larger = [
        row["row"] for row in select(rows, with_embeddings="yes")
        if one("effectiveness", row=row["row"], with_embeddings="no") > row["value"]
    ]  # fmt: skip
    assert larger == [14, 16, 25]
    assert all("embeddings shrank more" in notes("effectiveness", row=n) for n in larger)
    for n in (9, 13):
        assert "in the scan" in notes("effectiveness", row=n)


def test_mean_differences_follow_from_their_rows_or_are_noted():
    rows = table("effectiveness")
    base = {r["task"]: r["value"] for r in select(rows, row=1) if r["task"]}
    assert base == {"MNLI": 84.6, "QQP": 89.2, "SST-2": 93.5, "SQuAD": 88.5}
    off, cut = [], []
    for row in select(rows, metric="mean difference"):
        cells = [r for r in select(rows, row=row["row"]) if r["task"]]
        error = abs(mean(r["value"] - base[r["task"]] for r in cells) - row["value"])
        off += [row["row"]] if error > 0.0101 else []
        cut += [row["row"]] if 0.00501 < error <= 0.0101 else []
        assert ("does not follow" in row["note"]) == (error > 0.0101), row
    assert (off, cut) == ([6, 11], [8, 14, 18, 19, 23])


# Between the tables


def test_pkd_is_the_same_in_three_tables():
    for metric, value in (("accuracy, matched", 81.5), ("accuracy, mismatched", 81.0)):
        cells = {
            one("optimal_subwords", system="PKD, 6 layers", metric=metric),
            one("mobilebert", system="BERT-base-6L-PKD", metric=metric),
            one("well_read_students", system="Sun et al. (2019a)", metric=metric),
        }
        assert cells == {value}
    full = one("mobilebert", system="BERT-base", metric="parameters")
    for layers, times in ((6, 1.64), (3, 2.4)):
        small = one("mobilebert", system=f"BERT-base-{layers}L-PKD", metric="parameters")
        assert full / small == pytest.approx(times, abs=0.01)


def test_deformer_in_the_poster_is_the_slides_one():
    for device, column in (("Tesla V100 GPU", "GPU"), ("Intel i9-7900X CPU", "CPU")):
        full, small = (r["value"] for r in select(table("deformer_latency"), device=device))
        times = one("effectiveness", row=18, device=column)
        assert full / small == pytest.approx(times, abs=0.006)
    for task in ("MNLI", "QQP", "SQuAD"):
        own = select(table("deformer_tasks"), task=task, system="Decomp-BERT-base")[0]["value"]
        assert one("effectiveness", row=18, task=task) == own


# Lines and findings


def test_summary_lines():
    rows = table("summary_lines")
    papers = [row["paper"] for row in rows]
    assert [papers.count(p) for p in dict.fromkeys(papers)] == [4, 3, 3, 1, 4]
    lines = [row for row in rows if row["size_ratio"]]
    assert [(r["times_smaller"], r["before"], r["after"]) for r in lines] == [
        (6, 84, 78), (20, 84, 76), (60, 84, 71), (4, 84, 84), (10, 87, 84), (2, 86, 86),
        (10, 86, 82), (4, 84, 82), (2, 84, 82.5), (3.5, 84, 80), (10, 84, 78), (25, 84, 72),
    ]  # fmt: skip
    for row in lines:
        ratio, before, after = re.search(
            r"(1/[\d.]+): (\d+) ?(?:\(\?\))? ?=> ([\d.]+)$", row["text"]
        ).groups()
        assert (ratio, int(before), float(after)) == (
            row["size_ratio"],
            row["before"],
            row["after"],
        )
        assert ratio == f"1/{row['times_smaller']}"
        assert (row["unsure"] == "yes") == ("(?)" in row["text"])
    verdicts = [row for row in rows if not row["size_ratio"]]
    assert {row[k] for row in verdicts for k in ("before", "after", "unit", "unsure")} == {None}
    assert [row["text"] for row in verdicts] == [
        "Severe Performance Drop", "Retrain the teacher", "Retrain the model",
    ]  # fmt: skip


def test_findings():
    rows = table("findings")
    assert len({row["finding"] for row in rows}) == len(rows)
    for row in rows:
        assert (row["low"] is None) == (row["high"] is None) == (row["unit"] is None)
        assert row["low"] is None or row["low"] <= row["high"]
        assert row["finding"].endswith(".")
    (pruned,) = select(rows, metric="weights pruned")
    assert (pruned["low"], pruned["high"], pruned["unit"]) == (30, 40, "percent")
    (claim,) = select(rows, metric="times smaller")
    assert claim["low"] == 50 and "52.3" in claim["note"]
    ranking = [row["finding"] for row in select(rows, about="ranking")]
    assert ranking[0].index("MobileBERT") < ranking[0].index("DeFormer") < ranking[0].index(">>")
    assert ranking[1].startswith("Winner: Reweighted Proximal Pruning")
    assert len(select(rows, about="advice")) == 7
    assert len([r for r in rows if "bullets" in r["where"]]) == 6


def test_the_folder_holds_tables_and_their_dictionary_only():
    found = {Path(path).name for path in published.FOLDER.iterdir()}
    assert found == {f"{name}.csv" for name in COUNTS} | {"README.md"}
