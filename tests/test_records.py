"""The committed records: readable, current, honest about their floors; and one measured again."""

import json
import os
import re
from statistics import mean, median

import numpy as np
import pytest
from made import made

from xtclib import records
from xtclib.cache import ROOT
from xtclib.figures import records as plots
from xtclib.recipes import recipe
from xtclib.study import compress, conclusions, design, profiles, sweep
from xtclib.study.pairs import interval

RECORDS = [r for profile in profiles.PROFILES for r in records.read(profile)]
PLACES = {f"{p}-{t}": [r for r in RECORDS if (r.profile, r.task) == (p, t)]
          for p, t in sorted({(r.profile, r.task) for r in RECORDS})}  # fmt: skip


def mean_score(metrics):
    return sum(m["score"] for m in metrics.values()) / len(metrics)


def name(record):
    return f"{record.profile}-{record.task}-{record.recipe}-{record.budget}-s{record.seed}"


def test_every_built_in_recipe_is_measured_or_told_to_be_waiting():
    measured = {r.recipe for r in RECORDS
                if r.profile == "reviews" or recipe.load(r.recipe).family == "apart"}  # fmt: skip
    told = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    waiting = re.findall(
        r"`([\w-]+)`", "".join(re.findall(r"Not measured yet: (.*?)\.\n", told, re.S))
    )
    stems = {re.sub(r"-\d+$", "", name) for name in measured}  # svd-50 is svd's
    assert set(recipe.names()) <= measured | stems | set(waiting)
    assert all(recipe.load(name).name == name for name in measured)  # nip-90 and the like


@pytest.mark.parametrize("place", PLACES)
def test_a_record_belongs_to_the_recipe_as_it_is_now(place):
    for record in PLACES[place]:
        assert record.recipe_hash == recipe.load(record.recipe).hash, name(record)


@pytest.mark.parametrize("place", PLACES)
def test_a_student_beats_its_floors_or_its_record_says_that_it_does_not(place):
    for record in PLACES[place]:
        rows = int(re.search(r"(\d+) (dev|test)\b", record.data).group(1))
        scores = (record.score, mean_score(record.majority), mean_score(record.untrained))
        steps = sum(stage["steps"] for stage in record.stages)
        told = compress.verdict(recipe.load(record.recipe), *scores, steps, rows)
        assert record.note == told, name(record)


def test_the_records_of_the_reviews_were_measured_on_their_rows(texts):
    tasks = {r.task for r in RECORDS if r.profile == "reviews"}
    fingerprints = {t: profiles.data_for(t, "reviews").fingerprint for t in tasks}
    for record in RECORDS:
        if record.profile == "reviews":
            assert record.data_fingerprint == fingerprints[record.task], name(record)


@pytest.mark.slow
def test_a_committed_record_is_found_again_when_measured_again(texts):
    (old,) = records.read("reviews", recipe="ptq-8bit", task="reviews")
    new = compress.compress(
        "ptq-8bit", "reviews", "reviews", progress=False, say=lambda line: None
    ).record
    for same in ("bytes", "parameters", "flops", "teacher_bytes", "data_fingerprint", "majority"):
        assert getattr(new, same) == getattr(old, same), same
    # Bits agree on one machine; another processor sums in another order.
    assert new.teacher_score == pytest.approx(old.teacher_score, abs=0.5)
    assert new.score == pytest.approx(old.score, abs=1.0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bytes": 0}, "bytes of record .* from 1, received 0"),
        ({"metrics": {}}, "metrics of record .* lacks a split"),
        ({"metrics": {"dev": {"accuracy": 1.0}}}, "metrics of record .* lacks a `score`"),
        ({"majority": {"dev": {}}}, "majority of record .* lacks a `score`"),
        ({"latency": {"batch": 1}}, "latency of record .* lacks batch, length or milliseconds"),
        ({"flops": -1}, "flops of record .* must be a whole number from 0, received -1"),
        ({"seconds": float("nan")}, "seconds of record .* received nan"),
    ],
)
def test_a_record_that_no_table_can_show_names_its_field(tmp_path, change, message):
    path = made().save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=f"xtc-1bit-A-s0.json is no record: {message}"):
        records.Record.read(path)


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", '"a"', "\xff"])
def test_what_is_no_record_is_one_short_error(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(ValueError, match="r.json is no record: ") as error:
        records.Record.read(path)
    assert len(str(error.value)) < 300
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ValueError, match="r.json is no record: it is no file"):
        records.Record.read(path)


def test_a_record_without_floors_or_times_is_shown(tmp_path):
    bare = made(teacher_metrics={}, latency={}, teacher_flops=0)
    assert "nan" in bare.table() and "–" in plots.comparison([bare]).to_html()
    hostile = made(recipe="../../<script>")
    assert hostile.save(tmp_path).name == ".._.._<script>-A-s0.json".replace("<", "_").replace(
        ">", "_"
    )


@pytest.mark.parametrize(
    "recipe, where, words",
    [
        ("ptq-1bit", ("reviews", "reviews", "A"), "untrained, leaves {mean}:"),
        ("xtc-2bit", ("reviews", "reviews", "A"), "two bits end at {mean} ({low} to {high})"),
        ("xtc-1bit", ("reviews", "reviews", "A"), "one bit at {mean} ({low} to {high})"),
        ("finetune-1bit", ("reviews", "reviews", "A"), "ends at {mean} ({low} to {high}), ranges"),
        ("xtc-2bit-half", ("reviews", "reviews", "A"), "two bits end at {mean} ({low} to {high})"),
        ("xtc-1bit-half", ("reviews", "reviews", "A"), "31 × smaller, at {mean} ({low} to {high})"),
        ("xtc-half", ("reviews", "reviews", "A"), "one stage {mean} ({low} to {high})"),
        ("finetune-half", ("reviews", "reviews", "A"), "on labels {mean} ({low} to {high})"),
        ("logits-half", ("reviews", "reviews", "A"), "answers alone {mean} ({low} to {high})"),
        ("xtc-half", ("reviews", "reviews-few", "A"), "stage ends at {mean} ({low} to {high})"),
        (
            "finetune-half",
            ("reviews", "reviews-few", "A"),
            "labels end at {mean} ({low} to {high})",
        ),
        ("xtc-half", ("reviews", "reviews-flipped", "A"), "XTC's {mean} and"),
        ("finetune-half", ("reviews", "reviews-flipped", "A"), "and the labels' {mean} are"),
        ("xtc-half", ("reviews", "reviews-weak", "A"), "XTC ends at {mean}, below"),
        ("finetune-half", ("reviews", "reviews-weak", "A"), "of all rows ({mean})"),
        ("xtc-1bit", ("reviews", "reviews", "B"), "one bit ends at {mean} ({low} to {high}), by"),
        ("finetune-1bit", ("reviews", "reviews", "B"), "labels alone at {mean} ({low} to {high})"),
        ("xtc-1bit-half", ("reviews", "reviews", "B"), "one bit at {mean} ({low} to {high}), two"),
        ("xtc-2bit", ("reviews", "reviews", "B"), "two bits at {mean} ({low} to {high}); after"),
        ("xtc-1bit", ("reviews", "reviews", "C"), "1,200 one bit at {mean} ({low} to {high}) and"),
        ("xtc-2bit", ("reviews", "reviews", "C"), "and two at {mean} ({low} to {high}), where"),
        ("logits-1bit", ("reviews", "reviews", "A"), "(`logits-1bit`, one seed) give {mean}."),
        ("xtc-half", ("reviews", "reviews", "B"), "they end at {mean} ({low} to {high}) and"),
        ("finetune-half", ("reviews", "reviews", "B"), "and {mean} ({low} to {high}), ranges"),
        ("tinybert-6l", ("reviews", "reviews", "A"), "TinyBERT ends at {mean} ({low} to {high})"),
        ("theseus-6l", ("reviews", "reviews", "A"), "Theseus at {mean} ({low} to {high})"),
        ("pkd-6l", ("reviews", "reviews", "A"), "PKD at {mean} ({low} to {high})"),
        ("minilmv2-6l", ("reviews", "reviews", "A"), "MiniLMv2 at {mean} ({low} to {high})"),
        ("mobilebert", ("reviews", "reviews", "A"), "MobileBERT ({mean})"),
        ("dualtrain", ("reviews", "reviews", "A"), "DualTrain ({mean};"),
        ("dualtrain-sharedup", ("reviews", "reviews", "A"), "{mean} with shared projections)"),
        ("wellread-pd", ("reviews", "reviews", "A"), "Students' PD ({mean}) and"),
        ("wellread-pf", ("reviews", "reviews", "A"), "PF ({mean}) do not"),
        ("random-pruning", ("reviews", "reviews", "A"), "at 80 %, {mean} is left"),
        ("svd-50", ("reviews", "reviews", "A"), "end at {mean} by plain"),
        ("fwsvd-50", ("reviews", "reviews", "A"), "at {mean} by Fisher's weights"),
        ("drone-50", ("reviews", "reviews", "A"), "at {mean} by the inputs"),
        ("svd-50", ("minilm", "mrpc", "A"), "they end at {mean} ({low} to {high}), 81.3"),
        ("fwsvd-50", ("minilm", "mrpc", "A"), "80.1), {mean} ({low} to {high}) and"),
        ("drone-50", ("minilm", "mrpc", "A"), "and {mean} ({low} to {high}), in the order"),
        ("svd-50", ("minilm", "sst2", "500steps"), "one seed, 90.5) at {mean},"),
        ("fwsvd-50", ("minilm", "sst2", "500steps"), "89.4, {mean} and"),
        ("drone-50", ("minilm", "sst2", "500steps"), "88.2 and {mean}. Factors"),
        ("ptq-4bit", ("reviews", "reviews", "A"), "size and end at {mean}; thin"),
        ("svd-1bit-distilled", ("reviews", "reviews", "A"), "of one bit at {mean}."),
        ("deformer-9of12", ("minilm", "mrpc", "A"), "on MRPC at {mean} ({low} to {high}), below"),
        ("deformer-plain", ("minilm", "mrpc", "A"), "labels alone at {mean} ({low} to {high})."),
        ("deformer-9of12", ("minilm", "mrpc", "B"), "of three it is {mean} (one seed)"),
        ("fastbert", ("reviews", "reviews", "A"), "the last one, end at {mean} ({low} to {high})"),
        ("deebert", ("reviews", "reviews", "A"), "DeeBERT's end at {mean} with"),
        ("deebert-mean", ("reviews", "reviews", "A"), "the mean of all ({mean}, `deebert-mean`)"),
        ("berxit", ("reviews", "reviews", "A"), "BERxiT's at {mean} with"),
        ("pabee", ("reviews", "reviews", "A"), "PABEE's at {mean} with"),
        ("xtc-2bit-exits", ("reviews", "reviews", "A"), "are 6.44 MB and end at {mean} with"),
        ("power-bert", ("reviews", "reviews", "A"), "ranks end at {mean} ({low} to {high}) with"),
        ("ltp", ("reviews", "reviews", "A"), "thresholds at {mean} ({low} to {high}) with"),
        ("xtc-half", ("reviews", "reviews", "A"), "by XTC's stage end at {mean}."),
        ("gptq-4bit", ("reviews", "reviews", "A"), "of four bits end at {mean},"),
        ("gptq-3bit", ("reviews", "reviews", "A"), "of three at {mean},"),
        ("gptq-2bit", ("reviews", "reviews", "A"), "of two at {mean}, where"),
        ("ptq-2bit", ("reviews", "reviews", "A"), "with three levels, at {mean},"),
        ("xtc-2bit", ("reviews", "reviews", "A"), "stage at two bits at {mean}."),
        ("gptq-4bit", ("minilm", "sst2", "A"), "(teacher 90.5) they end at {mean},"),
        ("gptq-3bit", ("minilm", "sst2", "A"), "90.5, {mean} and 88.1"),
        ("gptq-2bit", ("minilm", "sst2", "A"), "and {mean}, on MRPC"),
        ("gptq-4bit", ("minilm", "mrpc", "A"), "on MRPC (82.5) at {mean},"),
        ("gptq-3bit", ("minilm", "mrpc", "A"), "82.2, {mean} and"),
        ("gptq-2bit", ("minilm", "mrpc", "A"), "81.7 and {mean}. Two bits of"),
        ("smooth-8bit", ("reviews", "reviews", "A"), "(`smooth-8bit`), end at {mean}"),
        ("smooth-8bit", ("minilm", "sst2", "A"), "and on SST-2 at {mean}. Two,"),
        ("qbert-mixed-2.3", ("reviews", "reviews", "A"), "(`qbert-mixed-2.3`): {mean}."),
        ("kwon-50", ("reviews", "reviews", "A"), "(`kwon-50`) at {mean},"),
        ("kprune-50", ("reviews", "reviews", "A"), "(`kprune-50`) at {mean};"),
        ("kwon-50", ("minilm", "sst2", "A"), "on SST-2 at {mean} and"),
        ("kprune-50", ("minilm", "sst2", "A"), "88.5 and {mean}, 1.8"),
        ("lowrank-embeddings", ("reviews", "reviews", "A"), "a quarter of the rank {mean},"),
        ("pq-embeddings", ("reviews", "reviews", "A"), "sixteen numbers {mean}, as"),
        ("tt-embeddings", ("reviews", "reviews", "A"), "tensor train {mean},"),
        ("hash-embeddings", ("reviews", "reviews", "A"), "hashed {mean}."),
        ("pq-1bit", ("reviews", "reviews", "A"), "2.47 MB (`pq-1bit`) that ends at {mean},"),
        ("pq-1bit", ("minilm", "sst2", "500steps"), "(500 steps a stage) at {mean} for"),
        ("xtc-1bit", ("minilm", "sst2", "500steps"), "at 84.7 for {mean}. One layer"),
        ("albert-shared", ("reviews", "reviews", "A"), "(`albert-shared`) ends at {mean};"),
        ("shared-pairs-1bit", ("reviews", "reviews", "A"), "2.93 MB, at {mean}. At BERT-base's"),
        ("xtc-half", ("reviews", "ratings", "A"), "layers by XTC end at {mean},"),
        ("finetune-half", ("reviews", "ratings", "A"), "on labels at {mean}, two"),
        ("xtc-2bit", ("reviews", "ratings", "A"), "two bits at {mean}, one"),
        ("xtc-1bit", ("reviews", "ratings", "A"), "one bit at {mean}, eight"),
        ("ptq-8bit", ("reviews", "ratings", "A"), "untrained at {mean}."),
        ("xtc-half", ("minilm", "mrpc", "A"), "XTC {mean},"),
        ("tinybert-6l", ("minilm", "mrpc", "A"), "TinyBERT {mean},"),
        ("minilmv2-6l", ("minilm", "mrpc", "A"), "MiniLMv2 ({mean})"),
        ("pkd-6l", ("minilm", "mrpc", "A"), "PKD ({mean})"),
        ("binarybert-twn", ("minilm", "mrpc", "A"), "at one bit ({mean})"),
        ("binarybert-bwn", ("minilm", "mrpc", "A"), "at {mean} ({low} to {high})"),
        ("xtc-1bit", ("minilm", "mrpc", "A"), "stage ends at {mean} ({low} to {high})"),
    ],
)
def test_the_results_say_what_the_records_hold(recipe, where, words):
    profile, task, budget = where
    (found,) = records.grouped(records.read(profile, task=task, recipe=recipe, budget=budget))
    numbers = {name: f"{getattr(found, name):.1f}" for name in ("mean", "low", "high")}
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    assert words.format(**numbers) in text


def test_the_results_say_what_leaving_early_gave():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())

    def speed(recipe):
        found = records.read("reviews", task="reviews", recipe=recipe, budget="A")
        each = [r.measures.get("tokens") or r.measures["exits"]["chosen"] for r in found]
        return f"{sum(m['speed'] for m in each) / len(each):.2f}"

    assert f"with {speed('fastbert')} times fewer operations" in text
    assert f"with {speed('deebert')} times fewer from the first token" in text
    assert f"with {speed('deebert-mean')} from the mean of all" in text
    assert f"with {speed('berxit')}, PABEE's at 86.1 with {speed('pabee')}." in text
    assert f"83.8 with {speed('xtc-2bit-exits')}." in text
    assert f"with {speed('power-bert')}, LTP's" in text and f"with {speed('ltp')}." in text
    assert {r.bytes for r in records.read("reviews", recipe="xtc-2bit-exits")} == {6442780}
    path = ROOT / "data" / "results" / "deployment" / "dynamic.json"
    found = json.loads(path.read_text())
    clock = {
        (part, r["run"], r["batch"]): r for part in ("exits", "onnx", "larger") for r in found[part]
    }

    def each(part, run, batches=(1, 8, 32)):
        return ["{:.2f}".format(clock[part, run, b]["faster"]) for b in batches]

    promised = f"{clock['exits', '2', 1]['promised']:.2f}"
    assert (
        "of {} times fewer operations come {}, {} and {} in".format(promised, *each("exits", "2"))
        in text
    )
    assert "is {} and {} times as fast".format(*each("exits", "2, waiting")[1:]) in text
    assert "half the layers {}, {} and {}.".format(*each("exits", "half")) in text
    wide = [1 / clock["exits", "padded to one length", b]["faster"] for b in (1, 8, 32)]
    assert "{:.1f}, {:.1f} and {:.1f} times the time".format(*wide) in text
    spare = [clock["exits", "off", b]["faster"] / clock["exits", "never fire", b]["faster"]
             for b in (1, 8, 32)]  # fmt: skip
    assert max(spare) < 1.01 and "never fire cost less than 1 %" in text
    for batch, words in (
        (1, "are {}, {} and {} times as fast alone"),
        (8, "{}, {} and {} by eight"),
    ):
        runs = [each("larger", run, [batch])[0] for run in ("1.25", "2.5", "3.14")]
        assert words.format(*runs) in text
    assert (
        "dropped tokens {} and {} of 1.55".format(*each("larger", "tokens dropped", (1, 8))) in text
    )
    assert "gives {}, {} and {} of {}".format(*each("onnx", "2"), promised) in text


def test_the_results_say_what_leaving_early_gave_on_glue():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())

    def points(task, recipe):
        found = records.read("minilm", task=task, recipe=recipe)
        return found, [r.measures["exits"]["chosen"]["speed"] for r in found]

    ((fast,), (speed,)), ((patient,), (slow,)) = points("sst2", "fastbert"), points("sst2", "pabee")
    assert f"a teacher of {fast.teacher_score:.1f} that" in text
    assert f"end at {fast.score:.1f} with {speed:.2f} times fewer, PABEE's" in text
    assert f"PABEE's at {patient.score:.1f} with {slow:.2f}." in text
    path = ROOT / "data" / "results" / "deployment" / "dynamic-sst2.json"
    clock = {(r["run"], r["batch"]): r for r in json.loads(path.read_text())["exits"]}
    ratio = {n: [clock["off", b]["median"] / clock[n, b]["median"] for b in (1, 8, 32)]
             for n in ("2", "never fire")}  # fmt: skip
    told = "{:.1f}, {:.1f} and {:.1f} % on SST-2's".format(
        *(100 / r - 100 for r in ratio["never fire"])
    )
    assert told in text
    told = "where {:.2f}, {:.2f} and {:.2f} of".format(*ratio["2"])
    assert f"{told} {clock['2', 1]['promised']:.2f} arrive" in text
    (reader,) = records.read("minilm", task="qa")
    assert f"F1 of {reader.score:.1f} where its teacher has {reader.teacher_score:.1f}." in text


def test_the_results_say_what_decomposition_gave():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    names = "svd-50", "fwsvd-50", "drone-50"
    before = [mean_score(records.read("reviews", recipe=n)[0].untrained) for n in names]
    assert "untrained at {:.1f}, {:.1f} and {:.1f}".format(*before) in text
    (apart,) = records.read("minilm", recipe="deformer-9of12", task="mrpc", budget="B")
    learned = apart.stages[0]["losses"][-1]["loss_labels"]
    assert learned < 0.05 and "learned by heart" in text
    assert f"where the teacher has {apart.teacher_score:.1f}" in text
    path = ROOT / "data" / "results" / "deployment" / "decomposition.json"
    found = json.loads(path.read_text())
    runs = {(r["run"], r["batch"]): r for r in found["deformer"]}
    fast = [runs[f"{kind}, cached", b]["faster"] for kind in ("fp32", "int8") for b in (1, 32)]
    assert "{:.1f} times as fast alone and {:.1f} times in".format(*fast[:2]) in text
    assert "with 8 bits {:.1f} and {:.1f} times".format(*fast[2:]) in text
    size = runs["fp32, cached", 32]["bytes a passage"]
    assert f"read before ({size / 1e3:.0f} kB)" in text
    half = [100 / r["faster"] for r in found["thin"] if r["share"] == "50%"]
    assert "take {:.0f} and {:.0f} % of the time".format(*half) in text


def test_the_results_say_what_the_page_and_the_explorer_take():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    place = ROOT / "data" / "results" / "deployment"
    page = json.loads((place / "web.json").read_text())
    model, tokenizer, runtime = (page["bytes"][k] for k in ("model", "tokenizer", "runtime"))
    assert model + tokenizer <= 4e6 and f"loaded {(model + tokenizer) / 1e6:.2f} MB" in text
    assert f"and {runtime / 1e6:.2f} MB of runtime" in text
    assert max(page["first_answer"]) <= 3000
    assert f"first answer after {median(page['first_answer']) / 1000:.1f} s" in text
    assert "{labels:.0f} % of {rows} reviews".format(**page["agreement"]) in text
    lengths, ratios = zip(*((r["tokens"], r["chromium"] / r["native"]) for r in page["rows"]),
                          strict=True)  # fmt: skip
    told = "Texts of {}, {} and {} tokens took it {:.1f}, {:.1f} and {:.1f} times"
    assert told.format(*lengths, *ratios) in text
    explorer = json.loads((place / "explorer.json").read_text())
    budget, families = (explorer[name]["median"] for name in ("budget", "families"))
    assert max(budget, families) < 100
    assert f"{explorer['records']} records in {budget:.0f} ms for another budget" in text
    assert f"in {families:.0f} ms for other families" in text


def test_the_results_say_what_integers_gain():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    path = records.RESULTS / "deployment" / "integer-path.json"
    found = json.loads(path.read_text())
    assert found["same_bits"] and found["machine"]["threads"] == 2
    shares = {r["batch"]: r["ratio"] for r in found["rows"] if r["model"] == "packed, int8"}
    alone, eight = (f"{1 / shares[batch]:.1f}" for batch in (1, 8))
    assert f"{alone} and {eight} × as fast as fp32 for BERT-base's shape" in text
    (two,) = records.read("reviews", recipe="gptq-2bit")
    times = two.latency["milliseconds"]
    assert times["student"]["median"] < 0.7 * times["teacher"]["median"]
    assert "they run on PyTorch's int8 like the others" in text


def test_the_results_say_what_a_gpu_gave():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    found = records.read("reviews", records.RESULTS / "gpu")
    cards = {(r.machine["gpu"], stage["precision"]) for r in found for stage in r.stages}
    assert cards == {("NVIDIA H200", "bf16")}
    here = {(r.recipe, r.budget, r.seed): r.score for r in records.read("reviews", task="reviews")}
    apart: dict[tuple, list] = {}
    for r in found:
        both = r.score - here[r.recipe, r.budget, r.seed]
        apart.setdefault((r.recipe, r.budget), []).append(both)
    low, high = interval([np.array(group) for group in apart.values()])
    assert -0.2 < low < high < 0.2 and "to within a fifth of a point" in text
    assert f"measured {len(found)} runs on the one card" in text
    path = records.RESULTS / "deployment" / "effectiveness-cuda.json"
    faster = json.loads(path.read_text())["faster"]
    layers = [faster[name]["1"] for name in ("logits-half", "tinybert-4l")]
    assert f"Fewer layers are {min(layers):.1f} to {max(layers):.1f} times as fast" in text
    cnn, thin = (sorted(faster[name].values()) for name in ("cnn-kd", "drone-50"))
    assert f"convolutions {cnn[0]:.1f} to {cnn[1]:.1f} times" in text
    assert f"(`drone-50` {thin[0]:.1f} to {thin[1]:.1f})" in text
    for name in ("kprune-50", "gptq-3bit"):
        assert f"(`{name}` {faster[name]['1']:.1f})" in text
    packed = ("qbert-mixed-2.3", "gptq-3bit", "rpp-50", "movement-90")
    assert all(max(faster[name].values()) < 1 for name in packed)
    alike = [abs(t["8"] / t["1"] - 1) for t in faster.values()]
    assert sorted(alike)[len(alike) // 2] < 0.05 and max(alike) < 0.2


def test_the_results_say_what_tables_and_rounding_take():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    found = json.loads((ROOT / "data" / "results" / "deployment" / "tables.json").read_text())
    rows = {r["how"]: r for r in found["rows"] if r["shape"] == "bert-base"}
    least = rows["one layer shared, low rank 128, one bit"]
    told = f"is {least['bytes'] / 1e6:.2f} MB, {least['fp32'] / least['bytes']:.0f} × smaller"
    wide = rows["one layer shared, low rank 128, fp16"]
    assert told in text and f"in fp16 {wide['bytes'] / wide['fp32']:.1%}".replace("%", " %") in text
    (small,) = records.read("reviews", recipe="pq-1bit")
    assert f"make a file of {small.bytes / 1e6:.2f} MB" in text and small.bytes < 2.6e6
    path = ROOT / "data" / "results" / "deployment" / "post-training.json"
    found = json.loads(path.read_text())
    spent = {row["recipe"]: row["seconds"] for row in found["spent"]}
    rounds = [spent[f"gptq-{bits}bit"] for bits in (2, 3, 4)]
    assert f"{min(rounds):.0f} to {max(rounds):.0f} s on two idle cores)" in text
    assert max(rounds) < 120 and found["threads"] == 2
    assert f"in {spent['kwon-50']:.0f} and {spent['kprune-50']:.0f} s on two" in text
    wanted, left = ([100 * row[key] for row in found["budgets"]] for key in ("wanted", "left"))
    told = "Of budgets of {:.0f}, {:.0f} and {:.0f} % of the encoder's milliseconds {:.1f}, {:.1f}"
    assert told.format(*wanted, *left[:2]) + f" and {left[2]:.1f} % are used" in text
    assert all(abs(left_ / wanted_ - 1) < 0.1 for wanted_, left_ in zip(wanted, left, strict=True))
    for name in ("kwon-50", "kprune-50"):
        (run,) = records.read("minilm", task="sst2", recipe=name)
        times = run.latency["milliseconds"]
        assert times["teacher"]["median"] > 1.7 * times["student"]["median"]
        assert run.teacher_score - run.score < 2 and run.measures["applied"]["seconds"] < 300
    for name, most in (("gptq-4bit", 0.5), ("gptq-3bit", 1.5)):
        (run,) = records.read("minilm", task="sst2", recipe=name)
        assert run.teacher_score - run.score <= most


def test_the_results_say_what_the_adapter_gives_away():
    place = ROOT / "data" / "teachers" / "reviews"
    measured = json.loads((place / "full.json").read_text())
    full, sure = measured["scores"], measured["confidence"]
    ours = json.loads((place / "score.json").read_text())["test"]["score"]
    gap = sum(full) / 3 - ours
    told = f"ends at {sum(full) / 3:.1f} ({min(full):.1f} to {max(full):.1f}), {gap:.1f} above"
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    assert told in text and gap < 0.5
    softer = f"it chooses {sure['adapter']:.2f} on average, the whole model {sure['full'][0]:.2f}"
    assert softer in text


def test_the_results_say_what_the_study_of_stages_shows():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    study = design.load(records.RESULTS / "stages.yaml")
    found = sweep.records_of(study.runs())
    compared = conclusions.compare(found, study.compare)
    assert [bool(c.shown) for c in compared] == [True] + 5 * [False]
    longer, *_ = compared
    told = f"400 steps are ahead of 150 by {longer.mean:.1f} points ({longer.low:.1f} to"
    assert f"{told} {longer.high:.1f})" in text
    assert f"At two bits they gain {compared[1].mean:.1f}." in text
    one_short, one_long, two_short, two_long = (-c.mean for c in compared[2:])
    assert f"by {one_short:.1f} and {two_short:.1f} points (one and two bits) after 150" in text
    assert f"and by {one_long:.1f} and {two_long:.1f} after 400" in text
    behind = {}
    for r in found:
        if r.recipe == "xtc-1bit" and r.budget in "AC":
            behind.setdefault(r.budget, []).append(r.teacher_score - r.score)
    longest = sorted(behind["C"])
    told = f"{mean(longest):.1f} behind the teacher ({longest[0]:.1f} to {longest[-1]:.1f})"
    assert f"and 1,200 end {told}, where" in text and len(longest) == 3
    assert f"where 150 end {mean(behind['A']):.1f} behind" in text
    best = [r for r in found if (r.recipe, r.budget) == ("xtc-1bit", "C@0.0005")]
    lost = sorted(r.teacher_score - r.score for r in best)
    told = (
        f"1,200 steps end **{mean(lost):.1f} behind** the teacher ({lost[0]:.1f} to {lost[-1]:.1f})"
    )
    assert told in text and round(best[0].ratio) == 25 and len(best) == 3
    for bits in (1, 2):
        for budget in "AB":
            means = [
                mean(r.score for r in found if (r.recipe, r.budget) == (name, budget))
                for name in (
                    f"xtc-{bits}bit{stages}" for stages in ("-three-stage", "-two-stage", "")
                )
            ]
            assert means == sorted(means)
    slow, usual, fast = (
        mean(r.score for r in found if (r.recipe, r.budget) == ("xtc-1bit", budget))
        for budget in ("A@5e-05", "A", "A@0.0005")
    )
    told = f"{slow:.1f} are reached for {usual:.1f}, at two and a half times it {fast:.1f}"
    assert told in text


def studied(name):
    """The comparisons of a study's file, made on its records."""
    study = design.load(records.RESULTS / f"{name}.yaml")
    return conclusions.compare(sweep.records_of(study.runs()), study.compare)


def test_the_results_say_what_the_smaller_studies_show():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    lost = {}
    for name in ("xtc-half", "xtc-1bit", "xtc-1bit-half"):
        runs = [r for r in records.read("reviews", task="reviews", recipe=name) if r.budget == "A"]
        lost[name] = mean(r.teacher_score - r.score for r in runs)
    half, bit, both = lost.values()
    assert f"cost {half:.1f} points, one bit {bit:.1f}, both together {both:.1f};" in text

    one, two = studied("longest")
    assert not one.shown and not two.shown and one.low > -1.05 and one.high < 1.05
    told = (
        f"three stages end {-one.mean:.1f} behind one at one bit, and the interval leaves at most a"
    )
    assert f"{told} point ({one.low:.1f} to {one.high:.1f})" in text
    assert f"two bits {-two.mean:.1f} behind ({two.low:.1f} to {two.high:.1f}, no answer)" in text
    one_short, one_long, two_short, two_long = studied("layers")
    assert not one_short.shown and not one_long.shown
    assert f"{-one_short.mean:.1f}" == f"{-one_long.mean:.1f}"
    assert f"cost {-one_short.mean:.1f} at either length (not shown), beside two bits" in text
    told = [f"{-c.mean:.1f} ({-c.high:.1f} to {-c.low:.1f})" for c in (two_short, two_long)]
    assert f"{told[0]} and, after 400 steps, {told[1]}." in text

    half_short, half_long, short, long = studied("start")
    assert [c.shown for c in studied("start")] == ["", "", "ahead", ""]
    assert f"teacher is {short.mean:.1f} points ({short.low:.1f} to {short.high:.1f}) ahead" in text
    assert f"after 150 steps, and {-long.mean:.1f} behind it after 400; half the layers" in text
    assert f"layers {half_short.mean:.1f} and {half_long.mean:.1f} ahead, which three" in text

    short, long = studied("augmentation")
    assert not short.shown and not long.shown
    assert f"one bit by {short.mean:.1f} after 150 steps and by {long.mean:.1f} after 400" in text


def test_the_results_say_what_exits_lose_on_few_rows():
    text = " ".join((ROOT / "RESULTS.md").read_text(encoding="utf-8").split())
    hindsight = []
    for name, told in (
        ("fastbert", "FastBERT's exits lose {} on the test pairs, at {} times"),
        ("deebert", "DeeBERT's {} at {},"),
        ("deebert-mean", "from the mean of all tokens {} at {},"),
        ("berxit", "BERxiT's {} at {} and"), ("pabee", "PABEE's {} at {}."),
        ("power-bert", "PoWER-BERT's ranks lose {} at {},"), ("ltp", "LTP's thresholds {} at {}."),
    ):  # fmt: skip
        runs = records.read("minilm", task="mrpc", recipe=name)
        lost = sorted(r.teacher_score - r.score for r in runs)
        found = [r.measures.get("exits", {}).get("chosen") or r.measures["tokens"] for r in runs]
        spread = f"{mean(lost):.1f} ({lost[0]:.1f} to {lost[-1]:.1f})"
        assert len(runs) == 3
        assert told.format(spread, f"{mean(f['speed'] for f in found):.2f}") in text
        near = [
            [p["speed"] for p in r.measures["exits"]["curve"] if p["score"] >= r.teacher_score - 1]
            for r in runs
            if "exits" in r.measures
        ]
        if name in ("berxit", "pabee"):
            assert near == [[], [], []]  # behind by more than a point before a row leaves
        hindsight += [mean(map(max, near))] if any(near) else []
    assert "bought {:.2f}, {:.2f} and {:.2f} times".format(*hindsight) in text
