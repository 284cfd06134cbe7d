"""Smaller forms of the word table: near it at the start, small in the file, open to training."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import taught
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

from xtclib.artefact import format, ledger
from xtclib.costs import breakdown
from xtclib.deployment.onnx import export_onnx
from xtclib.deployment.runtimes import OnnxModel
from xtclib.distillation.objective import Objective
from xtclib.recipes import recipe
from xtclib.study.compress import compress
from xtclib.tasks.rows import Calibration
from xtclib.techniques import (
    Compact,
    DistilBert,
    Factorize,
    HashTable,
    LayerReduction,
    LowRankTable,
    ProductTable,
    PruneHeads,
    PruneNeurons,
    PruneVocabulary,
    PruneWidth,
    Quantize,
    Storage,
    TensorTrainTable,
    apply_all,
    technique,
)
from xtclib.techniques.embeddings import hashing, layers, tensor_train
from xtclib.techniques.embeddings.product_quantization import kmeans, nearest, product_codes
from xtclib.techniques.factorization.layers import LowRankEmbedding
from xtclib.techniques.quantization.layers import QuantEmbedding
from xtclib.techniques.quantization.packed import PackedEmbedding
from xtclib.training import trainer
from xtclib.training.budget import Budget

BITS = Quantize("binary", None, "int8-token")
TABLES = {
    "narrow": LowRankTable(rank=8),
    "parts": ProductTable(4, 64),
    "parts of int8": ProductTable(4, 64, codebook="int8-row"),
    "train": TensorTrainTable(8),
    "hashed": HashTable(0.25),
}
for_each = pytest.mark.parametrize("name", TABLES)


def logits(model, batch):
    with torch.no_grad():
        return model.eval()(**batch).logits


def table(model):
    with torch.no_grad():
        return model.get_input_embeddings().weight.detach()


def far(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# The formulas.


def test_nearest_is_the_least_distance_in_chunks():
    points, centroids = random(20_000, 3), random(7, 3, seed=1)
    index, apart = nearest(points, centroids)
    least = torch.cdist(points.double(), centroids.double()).min(1)
    assert (index == least.indices).float().mean() > 0.999
    torch.testing.assert_close(apart, least.values.square().float(), rtol=1e-3, atol=1e-5)


def test_kmeans_is_exact_for_few_distinct_rows_and_never_worse_for_more_centroids():
    few = random(5, 4)[torch.arange(300) % 5]
    centroids, own = kmeans(few, 8, torch.ones(300))
    assert torch.equal(centroids[own], few) and not centroids[5:].any()
    points, lost = random(400, 4), []
    for count in (2, 8, 32, 128, 400):
        centroids, own = kmeans(points, count, torch.ones(400))
        lost.append(float((points - centroids[own]).square().sum()))
        assert len(own.unique()) == count  # none is empty
    assert lost == sorted(lost, reverse=True) and lost[-1] == 0
    assert torch.equal(kmeans(points, 8, torch.ones(400), seed=3)[1],
                       kmeans(points, 8, torch.ones(400), seed=3)[1])  # fmt: skip


def test_a_centroid_is_the_weighted_mean_of_its_points():
    points, weights = random(200, 3), torch.rand(200, generator=torch.Generator()) + 0.1
    centroids, own = kmeans(points, 4, weights, rounds=200)
    for k in range(4):
        mean = (points * weights[:, None])[own == k].sum(0) / weights[own == k].sum()
        torch.testing.assert_close(centroids[k], mean, rtol=1e-4, atol=1e-5)
    heavy = torch.where(torch.arange(200) < 10, 1e4, 1.0)
    centroids, own = kmeans(points, 16, heavy)
    apart = (points - centroids[own]).square().sum(1)
    assert apart[:10].mean() < 0.1 * apart[10:].mean()


def test_product_codes_are_the_nearest_of_each_part():
    rows = random(100, 8)
    numbers, books = product_codes(rows, 4, 16, torch.ones(100))
    assert numbers.dtype == torch.uint8 and books.shape == (4, 16, 2)
    found = torch.cat([books[p][numbers[:, p].long()] for p in range(4)], 1)
    other = torch.cat([books[p][(numbers[:, p].long() + 1) % 16] for p in range(4)], 1)
    assert far(found, rows) < 0.4 < far(other, rows)


@given(st.integers(1, 40_000), st.integers(1, 1100))
@settings(max_examples=60)
def test_digits_number_every_row_and_exactly_the_columns(rows, columns):
    (n1, n2, n3), (d1, d2, d3) = tensor_train.Digits.of(rows, columns)
    assert rows <= n1 * n2 * n3 and d1 * d2 * d3 == columns and d1 >= d2 >= d3
    assert n1 * n2 * n3 < rows + n1 * n3 + n3**2 and max(n1, n2, n3) == n3


def test_a_tensor_train_is_best_at_its_joints_and_exact_at_full_rank():
    rows = random(60, 8)
    digits, lost = tensor_train.Digits.of(60, 8), []
    for rank in range(1, digits.most + 1):
        cores = tensor_train.tt_svd(rows, digits, rank)
        assert [core.shape for core in cores] == digits.shapes(rank)
        sizes = [float(core.square().mean().sqrt()) for core in cores]
        assert max(sizes) == pytest.approx(min(sizes), rel=1e-4)
        lost.append(far(tensor_train.look_up(torch.arange(60), cores, digits), rows))
    assert lost == sorted(lost, reverse=True) and lost[0] > 0.9 and lost[-1] < 1e-5
    # A table that is a train of that rank is found again.
    cores = [random(*shape, seed=i) for i, shape in enumerate(digits.shapes(3))]
    made = tensor_train.look_up(torch.arange(64), cores, digits)
    again = tensor_train.look_up(torch.arange(64), tensor_train.tt_svd(made, digits, 3), digits)
    assert far(again, made) < 1e-4


def test_a_train_multiplies_the_slices_of_its_digits():
    digits = tensor_train.Digits.of(30, 12)
    (_, n2, n3), (d1, d2, d3) = digits
    a, b, c = (random(*shape, seed=i) for i, shape in enumerate(digits.shapes(2)))
    word, column = 23, 7
    i, j = (word // (n2 * n3), word // n3 % n2, word % n3), (column // (d2 * d3), column // d3 % d2)
    product = a.view(-1, d1, 2)[i[0], j[0]] @ b.view(n2, 2, d2, 2)[i[1], :, j[1]]
    product = product @ c.view(n3, 2, d3)[i[2], :, column % d3]
    found = tensor_train.look_up(torch.tensor([[word]]), [a, b, c], digits)
    assert found.shape == (1, 1, 12) and float(found[0, 0, column]) == pytest.approx(float(product))


def test_hashes_spread_words_evenly_and_apart():
    where = hashing.addresses(torch.arange(30_000), 1000, 2)
    assert where.min() == 0 and where.max() == 999
    loads = [torch.bincount(where[:, k], minlength=1000).double() for k in range(2)]
    assert all(16 < load.var() < 50 for load in loads)  # 30 by chance
    both = where[:, 0] * 1000 + where[:, 1]
    assert 29_400 < len(both.unique()) < 29_700  # 29,554 by chance
    assert torch.equal(hashing.addresses(torch.tensor(2**31 - 1), 7, 3),
                       hashing.addresses(torch.tensor([2**31 - 1]), 7, 3)[0])  # fmt: skip


def test_rounds_bring_hashed_rows_nearer():
    rows, where = random(600, 16), hashing.addresses(torch.arange(600), 100, 2)

    def lost(rounds):
        pool, weights = hashing.fit(rows, where, 100, rounds)
        return far((weights[:, :, None] * pool[where]).sum(1), rows)

    found = [lost(rounds) for rounds in (1, 2, 4, 8, 16)]
    assert found == sorted(found, reverse=True) and found[-1] < 0.9 * found[0] and found[-1] < 0.85
    own, pool = torch.arange(20)[:, None], random(20, 4)
    exact, weights = hashing.fit(pool, own, 20)
    torch.testing.assert_close(exact * weights, pool, rtol=1e-3, atol=1e-4)
    same = torch.zeros(6, 2, dtype=torch.long)  # both hashes of a word on one row
    assert all(x.isfinite().all() for x in hashing.fit(random(6, 4), same, 2))


# The techniques.


@for_each
def test_the_table_starts_near_and_the_model_given_stays(bert, batch, name):
    before = {k: v.clone() for k, v in bert.state_dict().items()}
    found = TABLES[name].apply(bert)
    assert all(torch.equal(before[k], v) for k, v in bert.state_dict().items())
    assert found.config.vocab_size == 200
    words = found.get_input_embeddings()
    assert words(batch["input_ids"]).shape == (3, 7, 32)
    torch.testing.assert_close(words(batch["input_ids"]), table(found)[batch["input_ids"]])
    lost = far(table(found), table(bert))
    assert lost < {"narrow": 0.85, "train": 0.82, "hashed": 0.76}.get(name, 0.5), lost
    others = [n for n in before if "word_embeddings" not in n]
    assert all(torch.equal(found.state_dict()[n], before[n]) for n in others)
    same = TABLES[name].apply(bert)
    assert torch.equal(table(same), table(found))


def test_what_is_one_of_those_forms_is_found_exactly(bert):
    words = bert.get_input_embeddings().weight
    words.data = random(200, 4) @ random(4, 32, seed=1)
    assert far(table(LowRankTable(rank=4).apply(bert)), words) < 1e-5
    assert torch.equal(table(ProductTable(4).apply(bert)), words)  # a code for each of 200 rows
    words.data = random(60, 32)[torch.arange(200) % 60]
    assert torch.equal(table(ProductTable(4, 60).apply(bert)), words)
    digits = tensor_train.Digits.of(200, 32)
    cores = [random(*shape, seed=i) for i, shape in enumerate(digits.shapes(4))]
    words.data = tensor_train.look_up(torch.arange(216), cores, digits)[:200]
    assert far(table(TensorTrainTable(digits.most).apply(bert)), words) < 1e-3


def test_words_in_use_are_nearer_where_use_weighs(bert, data, tokenizer):
    rows = Calibration(data, tokenizer, 16)
    used = torch.from_numpy(rows.token_counts()) > 3

    def lost(weigh):
        found = table(ProductTable(2, 40, weigh).apply(bert, rows))
        return far(found[used], table(bert)[used])

    assert lost("use") < 0.95 * lost("rows")
    with pytest.raises(ValueError, match="pq_embeddings weighed by use looks at the task's rows"):
        ProductTable(2, 40, "use").apply(bert)


@for_each
def test_it_learns(bert, batch, name):
    found = TABLES[name].apply(bert).train()
    found(**batch, labels=torch.ones(3, dtype=torch.long)).loss.backward()
    own = dict(found.get_input_embeddings().named_parameters())
    assert own and all(p.grad is not None and p.grad.abs().sum() > 0 for p in own.values())


@for_each
def test_ids_that_no_table_has_are_refused_as_before(bert, name):
    words = TABLES[name].apply(bert).get_input_embeddings()
    for wrong in (200, 10_000, -1, -300):
        with pytest.raises(IndexError):
            words(torch.tensor([[3, wrong]]))
    assert words(torch.zeros(2, 0, dtype=torch.long)).shape == (2, 0, 32)


STACKS = {
    "alone": lambda t: [LayerReduction(layers=1), t],
    "among others": lambda t: [LayerReduction(layers=1), PruneHeads(), PruneNeurons(0.5), t,
                               BITS, Storage("int8-row", "int8-row", 16)],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stack", STACKS)
@for_each
def test_it_is_saved_opened_exported_and_priced(make_bert, batch, tokenizer, tmp_path, name, stack):
    bert = make_bert(2)
    techniques = STACKS[stack](TABLES[name])
    made = format.finalize(apply_all(bert, techniques), techniques)
    format.save(made, tokenizer, tmp_path / "a")
    found, _ = format.load(tmp_path / "a")
    assert torch.equal(logits(found, batch), logits(made, batch))
    assert (logits(found, batch) - logits(bert, batch)).abs().max() > 1e-3

    entries, planned = ledger.byte_ledger(tmp_path / "a"), ledger.plan(bert.config, techniques)
    size = (tmp_path / "a" / format.WEIGHTS).stat().st_size
    assert sum(e.bytes for e in entries) == size
    assert sum(e.bytes for e in entries[:-1]) <= 1.02 * sum(e.minimum for e in entries[:-1])
    if stack == "alone":
        assert {e.tensor: e.bytes for e in planned[:-1]} == {
            e.tensor: e.bytes for e in entries[:-1]
        }
    assert sum(e.bytes for e in planned) == pytest.approx(size, rel=0.3)
    words = sum(e.bytes for e in entries if "word_embeddings" in e.tensor)
    assert words < 200 * 32 * 2  # less than in fp16

    export_onnx(found, tmp_path / "m.onnx", "trained")
    exported = torch.as_tensor(OnnxModel(tmp_path / "m.onnx")(**batch).logits)
    atol = 1e-4 if stack == "alone" else 1e-2  # a code of the activations apart
    torch.testing.assert_close(exported, logits(made, batch), rtol=0, atol=atol)
    priced = breakdown.break_down(made.config, 1, 16)
    assert priced.flops() == breakdown.flops(made.config, 1, 16)
    assert priced.by("component").get("other", 0) == 0


@pytest.mark.slow
def test_a_fresh_process_reads_every_form(make_bert, tokenizer, batch, tmp_path, fresh_logits):
    wanted = []
    for name, item in TABLES.items():
        made = format.finalize(apply_all(make_bert(1), [item, BITS]), [item, BITS])
        format.save(made, tokenizer, tmp_path / name)
        wanted.append(logits(made, batch).tolist())
    assert fresh_logits(*(tmp_path / name for name in TABLES)) == wanted


@for_each
def test_an_opened_one_trains_on_packed_or_not(make_bert, batch, tokenizer, tmp_path, name):
    techniques = [TABLES[name], BITS]
    made = format.finalize(apply_all(make_bert(1), techniques), techniques)
    format.save(made, tokenizer, tmp_path / "a")
    model = format.trainable(format.load(tmp_path / "a")[0])
    torch.testing.assert_close(logits(model, batch), logits(made, batch))
    model.train()(**batch).logits.sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in model.get_input_embeddings().parameters())
    format.save(model.eval(), tokenizer, tmp_path / "again")  # packed, as before
    assert torch.equal(logits(format.load(tmp_path / "again")[0], batch), logits(made, batch))

    loose = format.trainable(format.load(tmp_path / "a")[0], pack=False)
    loose.save_pretrained(tmp_path / "loose")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "loose")
    assert not any(isinstance(m, PackedEmbedding) for m in plain.modules())
    torch.testing.assert_close(table(plain), table(made), rtol=1e-3, atol=1e-4)  # in fp16
    tensors = {n: t.clone() for n, t in plain.state_dict().items()}
    model.load_state_dict(tensors)  # what `Trainer` does with a checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("name", ["parts of int8", "train", "hashed"])
@pytest.mark.parametrize("opened", [False, True], ids=["new", "opened"])
def test_a_killed_run_goes_on_to_the_same_weights(
    make_bert, data, tokenizer, tmp_path, monkeypatch, name, opened
):
    techniques = [TABLES[name], BITS]
    budget = Budget(steps=4, batch_size=8, learning_rate=1e-2, max_length=16, evaluations=2)

    def student():
        model = apply_all(make_bert(1), techniques)
        if not opened:
            return model
        if not (tmp_path / "a").exists():
            format.save(format.finalize(model, techniques), tokenizer, tmp_path / "a")
        return format.trainable(format.load(tmp_path / "a")[0], pack=False)

    def run(folder):
        return taught(student(), tokenizer, data, Objective(labels=1), budget, tmp_path / folder)

    before = table(student())
    whole, _ = run("whole")
    compute, calls = trainer.DistillationTrainer.compute_loss, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return compute(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer.DistillationTrainer, "compute_loss", killed)
        run("cut")
    found, notes = run("cut")
    assert notes["resumed"] and not torch.equal(table(found), before)
    assert all(torch.equal(v, found.state_dict()[n]) for n, v in whole.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["pq-embeddings", "tt-embeddings", "hash-embeddings", "lowrank-embeddings", "pq-1bit"]
)
def test_a_recipe_of_each_runs(name):
    found = compress(name, "sst2", "smoke", "2steps", progress=False)
    assert found.record.recipe == name and found.record.bytes < 0.6 * found.record.teacher_bytes


@pytest.mark.slow
def test_one_bit_and_numbered_parts_are_a_file_of_two_megabytes(tmp_path):
    """Of MiniLM's shape; the plan says so before anything is trained."""
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
                        intermediate_size=1536)  # fmt: skip
    first, *rest = recipe.load("pq-1bit").techniques
    techniques = [replace(first, weigh="rows"), *rest]  # the size is the same, no row is needed
    planned = sum(e.bytes for e in ledger.plan(config, techniques))
    assert 2.4e6 < planned < 2.5e6
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    words = model.get_input_embeddings().weight
    words.data = words.data[torch.arange(30522) % 256]  # few distinct rows are found at once
    format.finalize(apply_all(model, techniques), techniques).save_pretrained(tmp_path)
    size = (tmp_path / format.WEIGHTS).stat().st_size
    assert size <= 2.6e6 and size == pytest.approx(planned, rel=0.01)


# With others.


@for_each
def test_layers_and_heads_are_cut_after_it_too(bert, batch, tokenizer, tmp_path, name):
    techniques = [TABLES[name], LayerReduction(layers=1), PruneHeads(), BITS]
    made = format.finalize(apply_all(bert, techniques), techniques)
    found, _ = format.load(format.save(made, tokenizer, tmp_path / "a"))
    assert torch.equal(logits(found, batch), logits(made, batch))
    assert torch.equal(table(found), table(made))


def test_quantize_takes_the_narrow_table_and_the_pool_and_leaves_the_rest(bert):
    for item in (TABLES["narrow"], TABLES["hashed"]):
        words = apply_all(bert, [item, Quantize()]).get_input_embeddings()
        assert isinstance(words.table, QuantEmbedding)
        stored = Quantize().finalize(apply_all(bert, [item, Quantize()])).get_input_embeddings()
        assert isinstance(stored.table, PackedEmbedding)
        assert not isinstance(getattr(stored, "importance", None), QuantEmbedding)
    for item in (TABLES["parts"], TABLES["train"]):
        with pytest.raises(ValueError, match=r"quantize finds no table of vectors in .*Embedding, "
                           "which is small by itself: give it `embeddings: null`"):  # fmt: skip
            apply_all(bert, [item, Quantize()])
        with pytest.raises(ValueError, match="give it `embeddings: null`"):
            ledger.plan(bert.config, [item, Quantize()])


def test_vocabulary_and_width_are_cut_before(bert, batch, data, tokenizer, tmp_path):
    rows = Calibration(data, tokenizer, 16)
    for item in TABLES.values():
        for cut in (PruneVocabulary(0.7), PruneWidth(0.5)):
            with pytest.raises(ValueError, match=f"{cut.name} comes before what changes the word"):
                apply_all(bert, [item, cut], rows)
    techniques = [PruneVocabulary(0.7), PruneWidth(0.5), ProductTable(4, 32), BITS]
    made = format.finalize(apply_all(bert, techniques, rows), techniques)
    assert made.get_input_embeddings().codes.shape == (140, 4)
    _, small = techniques[0].reads(bert, tokenizer, rows)
    found, _ = format.load(format.save(made, small, tmp_path / "a"))
    ids = batch["input_ids"].clamp(max=139)
    with torch.no_grad():
        assert torch.equal(found(ids).logits, made(ids).logits)


ONCE = "comes before what changes the word table, and one that does is enough: list it first"


@pytest.mark.parametrize("name", ["narrow", "parts", "train", "hashed"])
def test_an_order_that_cannot_be_is_refused(bert, name):
    item, other = TABLES[name], TABLES["train" if name != "train" else "parts"]
    for before, says in (
        (Quantize(), f"{item.name} comes before quantize: list it first"),
        (item, f"{item.name} {ONCE}"),
        (other, f"{item.name} {ONCE}"),
        (Factorize(words=0.5), f"{item.name} {ONCE}"),
    ):
        with pytest.raises(ValueError) as error:
            apply_all(bert, [before, item])
        assert says in str(error.value)
    for later in (Factorize(words=0.5), Compact(layers=2), DistilBert()):
        with pytest.raises(ValueError, match=f"{later.name} {ONCE}"):
            apply_all(bert, [item, later])
    packed = format.finalize(BITS.apply(bert), [BITS])
    with pytest.raises(ValueError, match=r"already packed; apply `xtclib\.trainable` first"):
        item.apply(packed)
    with pytest.raises(ValueError, match="BertForMaskedLM may share the word table: give a class"):
        item.apply(BertForMaskedLM(bert.config))
    bert.get_input_embeddings().weight.data[3, 3] = float("nan")
    with pytest.raises(ValueError, match=f"{item.name} cannot start from this model: .*word_emb"):
        item.apply(bert)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LowRankTable(rank=3, share=0.5), "rank or share, one of them; received rank=3"),
        (lambda: LowRankTable(rank=28), "200 × 32 table hold more than it does: give a rank up"),
        (lambda: LowRankTable(share=0.0), "share of lowrank_embeddings must be a number above 0"),
        (lambda: ProductTable(5), "5 parts do not divide a width of 32: give 4 or 8"),
        (lambda: ProductTable(33), "33 parts do not divide a width of 32: give 32"),
        (lambda: ProductTable(4, 256), "256 codes are more than the 200 rows of the table: "),
        (lambda: ProductTable(4, 1), "must be a whole number from 2 to 256, received 1"),
        (lambda: ProductTable(4, 257), "must be a whole number from 2 to 256, received 257"),
        (lambda: ProductTable(4, 16, codebook="int9"), "unknown quantization scheme 'int9'"),
        (lambda: ProductTable(4, 16, "us"), "unknown weigh of pq_embeddings 'us': did you mean"),
        (lambda: TensorTrainTable(25), "more than a tensor train of 200 × 32 can use: give a rank "
                                       "up to 12"),
        (lambda: HashTable(201), "cannot keep 201 of 200 rows of the word table"),
        (lambda: HashTable(hashes=0), "hashes of hash_embeddings must be a whole number from 1"),
    ],
)  # fmt: skip
def test_what_it_cannot_do_it_says(bert, make, says):
    with pytest.raises(ValueError) as error:
        make().apply(bert)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [("narrow", "rank", 7), ("parts", "parts", 8), ("parts", "codes", 32), ("train", "rank", 7),
     ("hashed", "rows", 49), ("hashed", "hashes", 3), ("parts of int8", "codebook", None)],
)  # fmt: skip
def test_what_was_altered_in_config_is_refused(make_bert, tokenizer, tmp_path, name, field, value):
    item = TABLES[name]
    folder = format.save(
        format.finalize(item.apply(make_bert(1)), [item]), tokenizer, tmp_path / "a"
    )
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["techniques"][0][item.name][field] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="was written with .* altered, copy the artefact again"):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_it_reads_back_from_what_it_writes():
    for item in TABLES.values():
        assert technique(item.to_dict()) == item
    assert ProductTable(seed=2).for_seed(3).seed == 5


def test_an_encoder_and_another_family_take_it_too(batch, tmp_path):
    torch.manual_seed(0)
    config = DistilBertConfig(vocab_size=200, dim=32, n_layers=1, n_heads=2, hidden_dim=16)
    for item in TABLES.values():
        made = format.finalize(
            item.apply(DistilBertForSequenceClassification(config).eval()), [item]
        )
        made.save_pretrained(tmp_path / item.name)
        again = AutoModelForSequenceClassification.from_pretrained(tmp_path / item.name)
        assert torch.equal(logits(again, batch), logits(made, batch))
        encoder = AutoModel.from_pretrained(tmp_path / item.name).eval()
        with torch.no_grad():
            found = encoder(**batch).last_hidden_state
            assert torch.equal(found, made.distilbert(**batch).last_hidden_state)


def test_a_layer_says_what_it_stands_for(bert):
    found = {n: t.apply(bert).get_input_embeddings() for n, t in TABLES.items()}
    kinds = [type(words) for words in found.values()]
    assert kinds == [LowRankEmbedding, *2 * [layers.ProductEmbedding],
                     layers.TensorTrainEmbedding, layers.HashEmbedding]  # fmt: skip
    assert str(found["train"]) == "TensorTrainEmbedding(200 × 32)"
    assert found["parts"].codes.dtype == torch.uint8 and found["hashed"].pool == 50
