import ast
import contextlib
import copy
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import roberta
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from xtclib import cache, files
from xtclib.artefact import checks, format
from xtclib.artefact.ledger import byte_ledger
from xtclib.costs.breakdown import break_down
from xtclib.recipes import recipe
from xtclib.tasks.base import find_task
from xtclib.tasks.masked import MASKED
from xtclib.tasks.rows import Calibration
from xtclib.teachers import load_teacher
from xtclib.techniques import (
    DistilBert,
    KeepSuccessors,
    PruneHeads,
    PruneNeurons,
    PruneVocabulary,
    PruneWidth,
    ReplaceModules,
    ReweightedProximal,
    SmallVocabulary,
    Sparsify,
    SplitTernary,
    Stored,
    apply_all,
)
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.packed import PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.quantizers import Scheme
from xtclib.techniques.quantization.technique import Quantize, Storage, with_activations

BINARY = [Quantize()]
PTQ = "ptq-1bit", "ptq-2bit", "ptq-4bit", "ptq-8bit"


def packed(model, techniques=BINARY):
    return format.finalize(apply_all(copy.deepcopy(model), techniques), techniques)


@pytest.fixture
def saved(bert, tokenizer, tmp_path):
    return format.save(packed(bert), tokenizer, tmp_path / "saved")


def rewrite(folder, change, checked=False):
    """Changes tensors (a dict) in the file, with fresh checksums or the old ones."""
    path = folder / format.WEIGHTS
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    if checked:
        metadata["xtc"] = json.dumps({k: cache.digest(t) for k, t in tensors.items()})
    save_file(tensors, path, metadata)


def first_of_their_kinds():
    """Every recipe; slow are those whose techniques are all of kinds that came before them."""
    seen = set()
    for name in recipe.names():
        kinds = {type(each) for each in recipe.load(name).techniques}
        yield pytest.param(name, marks=[pytest.mark.slow] * (kinds <= seen))
        seen |= kinds


@pytest.mark.parametrize("name", [*first_of_their_kinds()])
def test_a_reloaded_artefact_computes_the_same_bits(name, bert12, tokenizer, data, batch, tmp_path):
    techniques = recipe.load(name).techniques
    pairs = replace(data, train=replace(data.train, second=data.train.first))
    model = apply_all(bert12, techniques, Calibration(pairs, tokenizer, rows=16))
    model = format.finalize(model, techniques)
    batch["input_ids"] = batch["input_ids"].clamp(max=model.config.vocab_size - 1)
    format.save(model, tokenizer, tmp_path / "a")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        assert not torch.equal(again(**batch).logits, bert12(**batch).logits) or "8of" in name
    assert again.config.id2label == bert12.config.id2label


def test_saving_a_reloaded_artefact_gives_the_same_tensors_and_sums(saved, tokenizer, tmp_path):
    model, _ = format.load(saved)
    again = format.save(model, tokenizer, tmp_path / "again")
    sums = []
    for folder in (saved, again):
        with safe_open(folder / format.WEIGHTS, "pt") as file:
            sums.append(json.loads(file.metadata()["xtc"]))
    assert sums[0] == sums[1] and len(sums[0]) > 40  # loading checked the tensors against them
    sizes = [(folder / format.WEIGHTS).stat().st_size for folder in (saved, again)]
    assert sizes[0] == sizes[1]


def test_loading_gives_the_tokenizer_too(saved, tokenizer):
    model, found = format.load(saved)
    assert found("w3 w4")["input_ids"] == tokenizer("w3 w4")["input_ids"] and not model.training


def test_the_same_model_gives_the_same_file_byte_for_byte(bert, tokenizer, tmp_path):
    """Metadata too: the library under it orders that by chance."""
    files = set()
    for name in "abcd":
        folder = format.save(packed(bert), tokenizer, tmp_path / name)
        files.add((folder / format.WEIGHTS).read_bytes())
    (content,) = files
    size = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + size])["__metadata__"]
    assert list(metadata) == ["format", "xtc", "xtc_config"]
    assert list(json.loads(metadata["xtc"])) == sorted(json.loads(metadata["xtc"]))


def test_a_config_altered_where_another_kind_computes_is_refused(bert, tokenizer, tmp_path):
    chosen = [DistilBert(), Quantize()]
    model = format.finalize(apply_all(bert, chosen), chosen)
    folder = format.save(model, tokenizer, tmp_path / "distilbert")
    configure(folder, activation="relu")
    files.seal(folder)
    with pytest.raises(ValueError, match="config.json says activation='relu'"):
        format.load(folder)


def test_the_base_model_loads_without_its_head(saved, bert, batch):
    base = AutoModel.from_pretrained(saved).eval()
    with torch.no_grad():
        wanted = packed(bert).bert(**batch).last_hidden_state
        assert torch.equal(base(**batch).last_hidden_state, wanted)


OPEN = """
import sys
from transformers import AutoModelForSequenceClassification as Auto
for folder in sys.argv[1:]:
    try:
        Auto.from_pretrained(folder)
        print("opened")
    except Exception as error:
        print(type(error).__name__)
"""


@pytest.mark.slow
def test_a_program_without_xtclib_stops_instead_of_guessing(bert, data, tokenizer, tmp_path):
    """Every recipe whose numbers only xtclib can compute; where all matrices are split, too."""
    attention = [Quantize(None, None, None, "int8-tensor")]
    chosen = {name: recipe.load(name).techniques for name in (*PTQ, "binarybert-twn", "nip")}
    folders = []
    for name, techniques in {**chosen, "attention alone": attention}.items():
        model = apply_all(copy.deepcopy(bert), techniques, Calibration(data, tokenizer, rows=16))
        model = format.finalize(model, techniques)
        folders.append(str(format.save(model, tokenizer, tmp_path / name)))
    found = subprocess.run(
        [sys.executable, "-c", OPEN, *folders], capture_output=True, text=True, timeout=120,
        cwd=tmp_path,
    )  # fmt: skip
    assert found.stdout.split() == ["RuntimeError"] * len(folders), found.stderr[-2000:]


def test_a_sealed_weight_opens_as_it_was(bert, tokenizer, batch, tmp_path):
    """Also where nothing but attention is quantized, and no packed bytes stop a stranger."""
    model = packed(bert, [Quantize(None, None, None, "int8-tensor")])
    folder = format.save(model, tokenizer, tmp_path / "sealed")
    held = load_file(folder / format.WEIGHTS)
    columns = [name for name, t in held.items() if t.dim() == 2 and t.shape[1] == 1]
    assert columns == ["bert.embeddings.LayerNorm.weight"]
    again, _ = format.load(folder)
    assert again.config.quantization_config.format == 1
    assert again.bert.embeddings.LayerNorm.weight.shape == (bert.config.hidden_size,)
    base = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        found = base(**batch).last_hidden_state
        assert torch.equal(found, model.bert(**batch).last_hidden_state)
    twice, _ = format.load(format.save(again, tokenizer, tmp_path / "twice"))
    with torch.no_grad():
        assert torch.equal(twice(**batch).logits, model(**batch).logits)
    assert not hasattr(format.trainable(again, pack=False).config, "quantization_config")


KINDS = {
    "heads and neurons": [PruneHeads(scope="model"), PruneNeurons(0.3)],
    "hidden width": [PruneWidth()],
    "vocabulary": [PruneVocabulary(0.5)],
    "layers": [LayerReduction()],
    "single weights": [Sparsify(0.8)],
    "two of four": [Sparsify(pattern="2:4")],
    "single weights, int8": [Sparsify(0.8), Quantize("int8-row", "int8-row", "int8-token")],
    "replaced modules": [ReplaceModules(), KeepSuccessors()],
    "a vocabulary of its own": [SmallVocabulary(0.5)],
    "split": [Quantize("ternary", "ternary-row"), SplitTernary()],
    "nothing but attention": [Quantize(None, None, None, "int8-tensor")],
}


@pytest.mark.slow
def test_a_fresh_process_reads_every_structure(
    bert, tokenizer, data, batch, tmp_path, fresh_logits
):
    """To the same bits, by `from_pretrained` and nothing else; and the file is smaller."""
    wanted, folders = [], []
    whole = sum(t.numel() for t in bert.state_dict().values()) * 4
    for name, techniques in KINDS.items():
        rows = Calibration(data, tokenizer, rows=16)
        model = format.finalize(apply_all(bert, techniques, rows), techniques)
        folders.append(format.save(model, tokenizer, tmp_path / name))
        assert (folders[-1] / format.WEIGHTS).stat().st_size < whole, name
        ids = batch["input_ids"].clamp(max=model.config.vocab_size - 1)
        with torch.no_grad():
            wanted.append(model(ids, batch["attention_mask"]).logits.tolist())
    assert dict(zip(KINDS, fresh_logits(*folders), strict=True)) == dict(
        zip(KINDS, wanted, strict=True)
    )


NOTHING = {
    "no zeros": [Sparsify(0.0, schedule={"end": 0.5})],
    "no pull": [ReweightedProximal(0.0, until=0.5)],
    "all heads and neurons": [PruneHeads(1.0), PruneNeurons(1.0)],
    "all of the width": [PruneWidth(1.0)],
    "all tokens": [PruneVocabulary(1.0)],
    "all layers": [LayerReduction(layers=4)],
}


@pytest.mark.parametrize("name", NOTHING)
def test_removing_nothing_is_exactly_the_model(bert, tokenizer, data, batch, name, tmp_path):
    """Through schedule, finalizing and the file: fp32 to the last bit, without xtclib's mark."""
    model = apply_all(bert, NOTHING[name], Calibration(data, tokenizer, rows=16))
    for step in range(4):
        for item in NOTHING[name]:
            item.before_step(model, step, 4)
            item.after_step(model, step, 4, 0.1)
    model = format.finalize(model, NOTHING[name])
    again, _ = format.load(format.save(model, tokenizer, tmp_path / "a"))
    wanted = bert.state_dict()
    assert again.state_dict().keys() == wanted.keys()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in again.state_dict().items())
    assert not hasattr(again.config, "quantization_config")


def cut(folder):
    path = folder / format.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder):
    path = folder / format.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def foreign(folder):
    path = folder / format.WEIGHTS
    save_file(load_file(path), path)


def newer(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format"] = format.FORMAT + 1
    (folder / "config.json").write_text(json.dumps(config))


def older(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["format"] = "6"
    (folder / "config.json").write_text(json.dumps(config))


def unmarked(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def broken_metadata(folder):
    path = folder / format.WEIGHTS
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, {**metadata, "xtc_config": "{"})


def configure(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def scheme(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["techniques"][0]["quantize"]["activations"]["scheme"] = "int4"
    (folder / "config.json").write_text(json.dumps(config))


SCALE = "bert.encoder.layer.1.output.dense.weight_scale"


@pytest.mark.parametrize(
    "damage, message",
    [
        (cut, "truncated"),
        (lambda f: (f / format.WEIGHTS).write_bytes(b"hello"), "truncated|damaged"),
        (flip, "does not match its sha256; the file was altered or damaged, copy"),
        (foreign, "carries no checksums of an xtc artefact: it was written by another program"),
        (lambda f: rewrite(f, lambda t: t.pop("classifier.bias")), "'classifier.bias' is missing"),
        (lambda f: rewrite(f, lambda t: t.update(x=torch.zeros(1))), "tensor 'x' is extra"),
        (
            lambda f: rewrite(f, lambda t: t.pop("classifier.bias"), checked=True),
            r"does not fit BertForSequenceClassification: missing \['classifier.bias'\]",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update(x=torch.zeros(1)), checked=True),
            r"unexpected \['x'\]",
        ),
        (newer, "this artefact has format 2; this xtclib reads up to 1: update it"),
        (older, "a whole number from 1, its config says '6'"),
        (unmarked, "is packed, but config.json does not say how"),
        (broken_metadata, "the metadata 'xtc_config' of model.safetensors cannot be read"),
        (lambda f: configure(f, id2label={"0": "b", "1": "a"}), "config.json says id2label="),
        (
            lambda f: configure(f, num_hidden_layers=100_000),
            "says num_hidden_layers=100000, expected a whole number up to 1000",
        ),
        (lambda f: (f / "config.json").write_text("[]"), "config.json in .* cannot be read"),
        (
            lambda f: rewrite(f, lambda t: t[SCALE].neg_(), checked=True),
            f"tensor '{SCALE}' holds a scale below 0",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({SCALE: t[SCALE].byte()}), checked=True),
            f"tensor '{SCALE}' is of type torch.uint8, expected torch.float16",
        ),
        (
            lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
            "no tokenizer can be read in .*copy tokenizer.json",
        ),
        (
            lambda f: configure(f, num_hidden_layers=3),
            "num_hidden_layers=3, .* written with 4",
        ),
        (lambda f: configure(f, num_attention_heads=4), "num_attention_heads=4, .* written with 2"),
        (lambda f: configure(f, layer_norm_eps=0.5), "says layer_norm_eps=0.5, .* 1e-12: one of"),
        (lambda f: rewrite(f, lambda t: t.pop(SCALE)), f"tensor '{SCALE}' is missing"),
        (lambda f: rewrite(f, lambda t: t.pop(SCALE), checked=True), rf"missing \['{SCALE}'\]"),
        (
            lambda f: rewrite(f, lambda t: t[SCALE].fill_(math.nan), checked=True),
            f"tensor '{SCALE}' holds NaN or infinite values",
        ),
        (
            lambda f: rewrite(f, lambda t: t.update({SCALE: torch.ones(2).half()}), checked=True),
            rf"tensor '{SCALE}' has shape \(2,\), but config.json makes it \(1,\)",
        ),
        (lambda f: configure(f, is_decoder=True), "says is_decoder=True, .* written with False"),
        (scheme, r"config.json says techniques=.*, but model.safetensors was written with"),
        (
            lambda f: (f / format.WEIGHTS).write_bytes(b"\xff" * 8 + b"{}" * 99),
            "cannot be read .*header.*truncated or no safetensors file",
        ),
    ],
)
def test_a_damaged_artefact_gives_one_clear_error(saved, damage, message):
    damage(saved)
    with pytest.raises(
        ValueError,
        match="copy (the artefact|it) again|update it|pack it|does not fit|whole number|cannot",
    ):
        format.load(saved)
    files.seal(saved)  # the rest is checked by itself, for who edits
    with pytest.raises(ValueError, match=message):
        format.load(saved)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "config.json",
                                  format.WEIGHTS, files.SUMS])  # fmt: skip
@pytest.mark.parametrize("techniques", [BINARY, [LayerReduction()]], ids=["packed", "plain"])
def test_every_file_of_every_artefact_is_covered_by_sums(bert, tokenizer, tmp_path, techniques,
                                                         name):  # fmt: skip
    folder = format.save(packed(bert, techniques), tokenizer, tmp_path / "a")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}|{files.SUMS}"):
        format.load(folder)
    if name != format.WEIGHTS:
        with pytest.raises(ValueError, match=f"{name}|{files.SUMS}"):
            byte_ledger(folder)


def test_sums_are_those_of_sha256sum_and_are_renewed_by_it(saved):
    check = ["sha256sum", "-c", "--quiet", files.SUMS]
    assert subprocess.run(check, cwd=saved, check=True, capture_output=True).stdout == b""
    configure(saved, classifier_dropout=0.5)
    with pytest.raises(ValueError, match="renew the sums") as refused:
        format.load(saved)
    cure = str(refused.value).partition("renew the sums: ")[2]
    subprocess.run(["sh", "-c", cure], check=True)
    assert format.load(saved)[0].config.classifier_dropout == 0.5


def test_a_file_that_would_be_read_too_is_refused(saved):
    (saved / "README.md").write_text("mine")
    format.load(saved)
    (saved / "added_tokens.json").write_text('{"w3": 7}')
    with pytest.raises(ValueError, match="added_tokens.json is not listed in SHA256SUMS: remove"):
        format.load(saved)


@pytest.mark.parametrize(
    "layers, message",
    [
        ([{"heads": 1, "neurons": 64, "head_size": 32}] * 4, "says layers=.* written with None"),
        ([{"heads": 2, "neurons": 64}] * 4, "says layers=.* written with None"),
        ("all", "must be a list of .* received 'all'"),
        ([{"heads": 2.0, "neurons": 64}], r"must be a list of .* received \{'heads': 2.0"),
        ([{"heads": True, "neurons": 64}], "must be a list of"),
        ([{"heads": 10**9, "neurons": 64}], "must be a list of"),
        ([{"heads": 2}], "must be a list of"),
        ([None], "must be a list of .* received None"),
        ([{"heads": 2, "neurons": 64, "tails": 1}], "must be a list of"),
    ],
)
def test_widths_of_layers_are_typed_and_bound_to_the_weights(saved, layers, message):
    config = json.loads((saved / "config.json").read_text())
    config["quantization_config"]["layers"] = layers
    (saved / "config.json").write_text(json.dumps(config))
    files.seal(saved)
    for read in (format.load, byte_ledger, AutoModelForSequenceClassification.from_pretrained):
        with pytest.raises(ValueError, match=message):
            read(saved)


def test_other_widths_of_the_same_matrices_are_refused(bert, tokenizer, tmp_path):
    """One head of 32 instead of two of 16: every shape fits, the answers would be others."""
    chosen = [PruneNeurons(0.5)]
    folder = format.save(packed(bert, chosen), tokenizer, tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())
    for width in config["quantization_config"]["layers"]:
        width |= {"heads": 1, "head_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    files.seal(folder)
    with pytest.raises(ValueError, match="config.json says layers="):
        format.load(folder)


def test_nan_in_weights_that_are_not_packed_is_refused(bert, tokenizer, tmp_path):
    bert.classifier.bias.data[0] = math.nan
    with pytest.raises(ValueError, match="'classifier.bias' holds NaN"):
        format.load(format.save(bert, tokenizer, tmp_path / "a"))


EXHAUSTING = [
    ({"num_labels": 10**9}, "says num_labels=1000000000, expected a whole number up to 100000"),
    ({"num_hidden_layers": 10**6}, "says num_hidden_layers=1000000, expected a .* up to 1000"),
    ({"num_hidden_layers": 2.5}, "says num_hidden_layers=2.5, expected a whole number"),
    ({"hidden_size": 10**12}, "says hidden_size="),
    ({"hidden_dropout_prob": math.nan}, "dropout"),
    ({"hidden_act": "gleu"}, "unknown hidden_act 'gleu': did you mean 'gelu'"),
    ("[" * 200_000, "nested too deeply|cannot be read"),
]


@pytest.mark.parametrize("change, message", EXHAUSTING)
def test_a_config_that_exhausts_is_refused_in_every_command(bert, tokenizer, tmp_path, change,
                                                            message):  # fmt: skip
    folder = format.save(bert, tokenizer, tmp_path / "a")
    if isinstance(change, str):
        (folder / "config.json").write_text(change)
    else:
        configure(folder, **change)
    files.seal(folder)
    readers = (format.load, byte_ledger, break_down, lambda f: load_teacher(f, "sst2"),
               find_task("sst2").load_model, MASKED.load_model)  # fmt: skip
    for read in readers:
        with pytest.raises(ValueError, match=message):
            read(folder)


def test_a_folder_without_an_artefact_says_what_is_missing(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json in .*nowhere: expected a folder"):
        format.load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no model.safetensors at .*nowhere"):
        checks.check_files([tmp_path / "nowhere" / format.WEIGHTS])


@pytest.mark.parametrize("weights", ["binary", "ternary", "int4-row", "uint4-group8"])
def test_the_size_on_disk_is_what_the_bits_come_to(weights, bert, tokenizer, tmp_path):
    item = Quantize(weights=weights, embeddings="binary-row")
    folder = format.save(packed(bert, [item]), tokenizer, tmp_path / "a")
    bits = item.weights.bits
    n = {"tensor": 1, "group": 8}.get(item.weights.granularity)
    zero = item.weights.family == "uint"
    linear = sum(
        rows * (columns * bits // 8) + (n or rows) * (2 + zero)
        for rows, columns in [(32, 32)] * 4 + [(64, 32), (32, 64)]
    )
    table = 200 * (32 // 8) + 200 * 2
    # fp16: 5 biases of 32, one of 64 and two LayerNorms a layer; positions, types, LayerNorm,
    # pooler, classifier.
    rest = 2 * (4 * (5 * 32 + 64 + 4 * 32) + (64 + 2 + 2) * 32 + 32 * 33 + 2 * 33)
    entries = byte_ledger(folder)[:-1]
    assert sum(entry.bytes for entry in entries) == 4 * linear + table + rest
    assert sum(entry.minimum for entry in entries) == 4 * linear + table + rest  # nothing is padded


@pytest.mark.parametrize("weights", ["binary", "ternary-row", "int4-group8", "int8", "uint4-row"])
def test_unpacking_trains_and_packs_to_the_same_model(weights, bert, batch):
    techniques = [Quantize(weights=weights, embeddings="binary-row")]
    model = packed(bert, techniques)
    with torch.no_grad():
        wanted = model(**batch).logits
    trainable = format.trainable(copy.deepcopy(model))
    kinds = {type(m) for m in trainable.modules()}
    assert not {PackedLinear, PackedEmbedding} & kinds
    trainable(**batch).logits.sum().backward()
    gradient = trainable.bert.encoder.layer[0].output.dense.weight.grad
    assert float(gradient.abs().max()) > 0
    again = format.finalize(trainable, techniques)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, wanted)


def trained_on(model, data, tokenizer, folder, **arguments):
    """A few steps of transformers' own Trainer, which also saves the model."""
    rows = data.task.tokenize(data.train, tokenizer, 16)
    arguments = TrainingArguments(
        str(folder), max_steps=4, per_device_train_batch_size=8, learning_rate=1e-2,
        report_to="none", use_cpu=True, disable_tqdm=True, remove_unused_columns=False, **arguments,
    )  # fmt: skip
    collate = partial(data.task.collate, tokenizer=tokenizer)
    found = Trainer(model, arguments, train_dataset=rows, data_collator=collate)
    found.train()
    found.save_model(str(folder / "final"))
    return found


TRAINED_ON = {
    "binary": [Quantize()],
    "pruned": [PruneHeads(scope="model"), PruneNeurons(0.3)],
    "pruned, binary": [PruneHeads(scope="model"), Quantize()],
    "zeros, int8": [Sparsify(0.8), Quantize("int8-row", "int8-row", "int8-token")],
    "positions": [Quantize(), Storage("int8-row", "int8-row", 32)],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TRAINED_ON)
def test_a_reloaded_artefact_trains_on_and_is_packed_again(
    kind, bert, tokenizer, data, batch, tmp_path
):
    model = packed(bert, TRAINED_ON[kind])
    folder = format.save(model, tokenizer, tmp_path / "a")
    again = format.trainable(AutoModelForSequenceClassification.from_pretrained(folder))
    trained_on(again, data, tokenizer, tmp_path / "run", save_strategy="no")
    reopened, _ = format.load(_with_tokenizer(tmp_path / "run" / "final", tokenizer))
    with torch.no_grad():
        found = reopened(**batch).logits
        assert float((found - model(**batch).logits).abs().max()) > 1e-2  # it did learn
        stored = format.finalize(copy.deepcopy(again), TRAINED_ON[kind])
        assert torch.equal(found, stored(**batch).logits)
    before, after = (f / format.WEIGHTS for f in (folder, tmp_path / "run" / "final"))
    assert abs(after.stat().st_size - before.stat().st_size) < 200
    assert {k: v.shape for k, v in load_file(after).items()} == {
        k: v.shape for k, v in load_file(before).items()
    }


def _with_tokenizer(folder, tokenizer):
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["binary", "pruned", "pruned, binary"])
def test_not_packed_it_saves_an_open_model_that_trainer_resumes(
    kind, bert, tokenizer, data, batch, tmp_path
):
    folder = format.save(packed(bert, TRAINED_ON[kind]), tokenizer, tmp_path / "a")
    model = format.trainable(format.load(folder)[0], pack=False)
    found = trained_on(model, data, tokenizer, tmp_path / "run", save_steps=2)
    found.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    final = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final").eval()
    assert not any(isinstance(m, Stored) for m in final.modules())
    assert torch.isfinite(final(**batch).logits).all()


def test_packed_weights_do_not_train_and_a_pruned_model_does(bert, tokenizer, data, tmp_path):
    folder = format.save(packed(bert), tokenizer, tmp_path / "a")
    with pytest.raises(ValueError, match=r"packed weights do not train: .*xtclib.trainable"):
        trained_on(format.load(folder)[0], data, tokenizer, tmp_path / "run")
    folder = format.save(packed(bert, TRAINED_ON["pruned"]), tokenizer, tmp_path / "b")
    trained_on(format.load(folder)[0], data, tokenizer, tmp_path / "two", save_strategy="no")
    assert format.load(_with_tokenizer(tmp_path / "two" / "final", tokenizer))


def test_a_packed_checkpoint_is_not_resumed(bert, tokenizer, data, tmp_path):
    folder = format.save(packed(bert), tokenizer, tmp_path / "a")
    model = format.trainable(format.load(folder)[0])
    found = trained_on(model, data, tokenizer, tmp_path / "run", save_steps=2)
    with pytest.raises(ValueError, match="holds packed weights, from which training cannot go on"):
        found.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_saved_in_parts_it_opens(bert, tokenizer, batch, tmp_path):
    model = packed(bert)
    model.save_pretrained(tmp_path / "a", max_shard_size="10KB")
    assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 1
    again, _ = format.load(_with_tokenizer(tmp_path / "a", tokenizer))
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    part = sorted((tmp_path / "a").glob("model-*.safetensors"))[0]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match="does not match its sha256"):
        format.load(tmp_path / "a")


def test_labels_may_be_renamed_and_a_head_replaced_at_loading(bert, tokenizer, batch, tmp_path):
    model = packed(bert)
    folder = format.save(model, tokenizer, tmp_path / "a")
    names = {0: "bad", 1: "good"}
    with pytest.warns(
        UserWarning, match=r"\['negative', 'positive'\] are called \['bad', 'good'\]"
    ):
        renamed = AutoModelForSequenceClassification.from_pretrained(folder, id2label=names)
    assert renamed.config.id2label == names
    with torch.no_grad():
        assert torch.equal(renamed.eval()(**batch).logits, model(**batch).logits)
    five = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=5, ignore_mismatched_sizes=True
    ).eval()
    assert five(**batch).logits.shape == (3, 5)
    with torch.no_grad():
        states = five.bert(**batch).last_hidden_state
        assert torch.equal(states, model.bert(**batch).last_hidden_state)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=5)


def test_roberta_s_states_open_by_auto_model(tmp_path):
    model = packed(roberta())
    model.save_pretrained(tmp_path / "a")
    ids = torch.tensor([[0, 7, 8, 9, 2]])
    base = AutoModel.from_pretrained(tmp_path / "a").eval()
    with torch.no_grad():
        found, wanted = base(ids).last_hidden_state, model.roberta(ids).last_hidden_state
    assert torch.equal(found, wanted)


def test_saving_refuses_a_folder_that_holds_something(bert, tokenizer, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="is already a folder that is not empty"):
        format.save(packed(bert), tokenizer, tmp_path / "full")
    assert os.listdir(tmp_path / "full") == ["mine.txt"]


def test_a_save_that_fails_leaves_nothing_behind(bert, tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        format.save(packed(bert), Broken(), tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_what_is_pushed_to_the_hub_is_the_artefact(bert, tokenizer, batch, tmp_path, monkeypatch):
    sent = tmp_path / "hub"
    sent.mkdir()

    class Hub:
        def create_repo(self, repo_id, **_):
            return SimpleNamespace(repo_id=repo_id)

        def create_commit(self, operations, **_):
            for item in operations:
                shutil.copy(item.path_or_fileobj, sent / item.path_in_repo)

    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    monkeypatch.setattr("transformers.utils.hub.hf_api", Hub)
    monkeypatch.setattr("transformers.utils.hub.create_and_tag_model_card", lambda *a, **k: card)
    model = packed(bert)
    model.push_to_hub("me/one-bit")
    tokenizer.push_to_hub("me/one-bit")
    format.save(model, tokenizer, tmp_path / "local")
    weights = [(folder / format.WEIGHTS).stat().st_size for folder in (sent, tmp_path / "local")]
    assert weights[0] == weights[1]
    with torch.no_grad():
        assert torch.equal(format.load(sent)[0](**batch).logits, model(**batch).logits)


FULL = """
import resource, signal, sys
import torch, transformers
from xtclib import artefact
model, tokenizer = artefact.load(sys.argv[1])
model.classifier.bias.data += 1
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))  # no file may grow past 9 kB: a full disk
try:
    artefact.save(model, tokenizer, sys.argv[1], replace=True)
except OSError as error:
    print("OSError:", error)
"""


@pytest.mark.slow
def test_the_old_artefact_survives_a_full_disk(saved, batch):
    with torch.no_grad():
        wanted = format.load(saved)[0](**batch).logits
    found = subprocess.run(
        [sys.executable, "-c", FULL, str(saved)], capture_output=True, text=True, timeout=120
    )
    assert "OSError: cannot write the artefact to" in found.stdout, found.stderr[-2000:]
    assert "nothing there was changed" in found.stdout
    assert os.listdir(saved.parent) == [saved.name]
    with torch.no_grad():
        assert torch.equal(format.load(saved)[0](**batch).logits, wanted)


def test_replacing_an_artefact_leaves_only_the_new_one(saved, bert, tokenizer, batch):
    (saved / "mine.txt").write_text("old")
    model = packed(bert, [Quantize("int8", "int8-row")])
    format.save(model, tokenizer, saved, replace=True)
    with torch.no_grad():
        assert torch.equal(format.load(saved)[0](**batch).logits, model(**batch).logits)
    assert os.listdir(saved.parent) == [saved.name] and not (saved / "mine.txt").exists()


@pytest.fixture
def valid(bert, tokenizer, tmp_path, batch):
    """An artefact with every kind of tensor, its bytes and its logits."""
    chosen = [Quantize("ternary", "ternary-row"), Storage("uint4-row", "int8-row", ternary=1.6)]
    model = packed(bert, chosen)
    folder = format.save(model, tokenizer, tmp_path / "saved")
    with torch.no_grad():
        return folder, (folder / format.WEIGHTS).read_bytes(), model(**batch).logits


def corrupt(content, rng):
    """One random damage: bytes changed, cut, put in, moved, or the header's numbers altered."""
    content = bytearray(content)
    header = 8 + int.from_bytes(content[:8], "little")
    kind = rng.integers(7)
    at = int(rng.integers(len(content)))
    if kind == 0:
        content[at] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        content[int(rng.integers(header))] = int(rng.integers(256))
    elif kind == 2:
        del content[at:]
    elif kind == 3:
        content[at:at] = rng.bytes(int(rng.integers(1, 99)))
    elif kind == 4:
        other = int(rng.integers(len(content)))
        content[at : at + 64], content[other : other + 64] = (
            content[other : other + 64], content[at : at + 64],
        )  # fmt: skip
    elif kind == 5:
        content[:8] = int(rng.integers(2**62)).to_bytes(8, "little")
    else:  # another digit in the header: offsets, shapes, sums
        digits = [i for i in range(8, header) if chr(content[i]).isdigit()]
        content[digits[int(rng.integers(len(digits)))]] = 48 + int(rng.integers(10))
    return bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_is_refused_or_harmless(valid, batch, seed):
    """Never a crash, a hang, a large allocation, or another model without a word."""
    folder, content, logits = valid
    rng = np.random.default_rng(seed)
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(50):
        (folder / format.WEIGHTS).write_bytes(corrupt(content, rng))
        try:
            model, _ = format.load(folder)
        except ValueError:
            refused += 1
        else:
            with torch.no_grad():
                assert torch.equal(model(**batch).logits, logits)
    assert refused >= 35  # what is left hit a byte with its own value, or the order of the header
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_config_is_refused_or_harmless(valid, batch, seed):
    folder, _, logits = valid
    text = (folder / "config.json").read_text()
    rng = np.random.default_rng(seed)
    for _ in range(40):
        at, new = int(rng.integers(len(text))), chr(int(rng.integers(32, 127)))
        (folder / "config.json").write_text(text[:at] + new + text[at + 1 :])
        try:
            model, _ = format.load(folder)
        except ValueError:
            continue
        with torch.no_grad():
            assert torch.equal(model(**batch).logits, logits), (text[at - 20 : at + 20], new)


def test_other_activations_are_saved_as_such(bert, tokenizer, batch, tmp_path):
    model = packed(bert)
    other = with_activations(model, "uint8-tensor")
    folder = format.save(other, tokenizer, tmp_path / "a")
    with torch.no_grad():
        wanted = other(**batch).logits
        assert torch.equal(format.load(folder)[0](**batch).logits, wanted)
        assert not torch.equal(model(**batch).logits, wanted)
    assert model.config.quantization_config.techniques == [Quantize().to_dict()]
    with pytest.raises(ValueError, match="has no packed layer that quantizes its input"):
        with_activations(bert, "uint8-tensor")


def test_a_model_without_a_classifier_is_refused(bert, tokenizer, tmp_path):
    bert.bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match="holds no 'classifier.bias': it is no classifier"):
        format.load(tmp_path / "encoder")


def test_a_digest_sees_type_shape_and_content():
    kinds = [torch.zeros(2), torch.zeros(2, 1), torch.zeros(2).half(), torch.tensor([0.0, 1.0])]
    assert len({cache.digest(t) for t in kinds}) == 4


def test_finalizing_without_quantization_stays_an_ordinary_model(bert):
    model = format.finalize(copy.deepcopy(bert), [])
    assert not hasattr(model.config, "quantization_config")
    assert torch.equal(model.classifier.weight, bert.classifier.weight)


def test_the_config_holds_the_techniques(saved):
    held = json.loads((saved / "config.json").read_text())["quantization_config"]
    assert held["quant_method"] == "xtc" and held["format"] == 1
    assert held["techniques"] == [Quantize().to_dict()]
    assert Scheme.parse(held["techniques"][0]["quantize"]["weights"]) == Scheme("binary")


def test_an_artefact_asked_for_in_bf16_loads_in_fp32(saved, batch):
    whole = AutoModelForSequenceClassification.from_pretrained(saved).eval()
    asked = AutoModelForSequenceClassification.from_pretrained(saved, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        assert torch.equal(asked(**batch).logits, whole(**batch).logits)


def test_a_packed_model_can_be_differentiated_after_inference(bert, batch):
    model = packed(bert)
    with torch.inference_mode():
        wanted = model(**batch).logits
    assert torch.equal(model(**batch).logits.detach(), wanted)


@pytest.mark.parametrize("name", ["xtc-1bit", "ternarybert", "xtc-2bit", "ptq-8bit"])
def test_a_whole_model_gives_the_same_bits_on_integers_and_as_it_trains(name, bert, batch):
    model = packed(bert, recipe.load(name).techniques)
    floating, trains = copy.deepcopy(model), format.trainable(copy.deepcopy(model)).eval()
    layers = [m for m in floating.modules() if isinstance(m, PackedLinear)]
    for layer in layers:
        layer.integers = False
    for other in (floating, trains):  # one attention kernel for all
        other.set_attn_implementation(model.config._attn_implementation)
    with torch.no_grad():
        wanted = model(**batch).logits
        assert torch.equal(floating(**batch).logits, wanted)
        assert torch.equal(trains(**batch).logits, wanted)
        assert layers and all(
            m.runs_on_integers(torch.zeros(1, m.in_features))
            for m in model.modules()
            if isinstance(m, PackedLinear)
        )


def test_code_that_a_tokenizer_names_is_neither_run_nor_asked_about(saved, tmp_path, monkeypatch):
    """transformers asks on a terminal, and runs it on yes, unless it is told not to."""
    told = tmp_path / "ran"
    (saved / "evil.py").write_text(f"open({str(told)!r}, 'w').close()\nclass Evil: pass\n")
    path = saved / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    path.write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with contextlib.suppress(ValueError):
        format.load(saved)
    assert not told.exists()


def test_no_call_lets_transformers_run_a_folders_code():
    package = Path(format.__file__).parents[1]
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert given.get("trust_remote_code") == "False", f"{path}:{node.lineno}"


@pytest.mark.slow
@pytest.mark.fresh_process
def test_what_is_handed_out_is_opened_in_a_fresh_process_first(bert, tokenizer, tmp_path):
    model = packed(bert)
    format.save(model, tokenizer, tmp_path / "a", reopen=True)
    bert.classifier.bias.data += 1
    with pytest.raises(ValueError, match="opens to answers that are off by 1"):
        format.check_reopens(packed(bert), tmp_path / "a", fresh=True)

    class Wordless:
        def save_pretrained(self, folder):
            """Nothing: such an artefact cannot be used."""

    with pytest.raises(ValueError, match="does not open in a fresh process: .*no tokenizer"):
        format.save(model, Wordless(), tmp_path / "b", reopen=True)
    assert os.listdir(tmp_path) == ["a"]


def test_what_a_tokenizer_was_last_asked_is_not_in_the_file(bert, tokenizer, tmp_path):
    for name in ("before", "after"):
        format.save(bert, tokenizer, tmp_path / name)
        tokenizer("some words to cut", truncation=True, max_length=4, padding="max_length")
    before, after = ((tmp_path / n / "tokenizer.json").read_text() for n in ("before", "after"))
    assert before == after and json.loads(after)["truncation"] is None
