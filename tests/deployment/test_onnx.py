"""Packed ONNX files against the models they come from, in ONNX Runtime."""

import copy
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from made import roberta
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

from xtclib.artefact import format
from xtclib.recipes import recipe
from xtclib.techniques import (
    CNN,
    BiLSTM,
    Bottleneck,
    Compact,
    DistilBert,
    PruneHeads,
    PruneNeurons,
    Sparsify,
    apply_all,
)
from xtclib.techniques.pruning.depth import LayerReduction
from xtclib.techniques.quantization.layers import QuantEmbedding, QuantLinear
from xtclib.techniques.quantization.packed import PackedEmbedding, PackedLinear
from xtclib.techniques.quantization.quantizers import Scheme
from xtclib.techniques.quantization.technique import Quantize, Storage, with_activations

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
onnx_export = pytest.importorskip("xtclib.deployment.onnx")
OnnxModel = pytest.importorskip("xtclib.deployment.runtimes").OnnxModel

pytestmark = pytest.mark.slow
UINT8 = "uint8-tensor"


@pytest.fixture
def bert(make_bert):
    return make_bert(1)


@pytest.fixture(scope="module")
def exported(make_bert, tmp_path_factory):
    """A packed model of two layers and its file."""
    model = make_bert(2)
    model.config.id2label = {0: "down", 1: "up"}
    model = packed(model, [Quantize(activations=UINT8), Storage("int8-row", "int8-row", 32)])
    return model, onnx_export.export_onnx(model, tmp_path_factory.mktemp("deep") / "b" / "a.onnx")


def packed(model, techniques):
    return format.finalize(apply_all(copy.deepcopy(model), techniques), techniques).eval()


def difference(ours, theirs, batch):
    with torch.no_grad():
        return float((ours(**batch).logits - theirs(**batch).logits).abs().max())


WEIGHTS = "binary", "ternary-row", "int4-group8", "int8", "uint4-row", "uint8"
# Every scheme that runtimes have a product for, with every option.
INPUTS = [
    Scheme("int", bits, granularity, clip=clip, rule=rule)
    for bits, granularity, clip, rule in itertools.product(
        (4, 8), ("token", "tensor"), (None, 1.0), (None, "release")
    )
]
INPUTS += [Scheme("uint", 8, clip=clip) for clip in (None, 1.0)]
INPUTS += [Scheme("int", 8, learned=how) for how in ("lsq", "pact")] + [None]
PAIRS = itertools.product(WEIGHTS, INPUTS)
CASES = [(*pair, columns) for pair, columns in zip(PAIRS, itertools.cycle((40, 43)), strict=False)]
# Exported: every third pair, which takes each scheme twice, and each kind of input for all weights.
PLAIN = Scheme("uint", 8), Scheme("int", 8, learned="lsq"), None
EXPORTED = [
    i for i, (weights, activations, _) in enumerate(CASES)
    if (WEIGHTS.index(weights) + INPUTS.index(activations)) % 3 == 0 or activations in PLAIN
]  # fmt: skip


class SideBySide(nn.Module):
    """Layers that all see the same input, as far as they are wide: one export for all."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *tensors):
        return torch.stack([layer(tensors[0][..., : layer.columns]) for layer in self.layers])


def linear(weights, activations, columns):
    torch.manual_seed(0)
    layer = QuantLinear.from_linear(nn.Linear(columns, 24), Scheme.parse(weights), activations)
    if layer.input_clip is not None:
        layer.input_clip.data.fill_(1.25)
    stored = PackedLinear.from_quant(layer)
    if weights.startswith("ternary"):
        stored.set_width_(1.6)
    return layer, stored


@pytest.fixture(scope="module")
def side_by_side():
    """Every kind of layer, as it trains and packed, and ONNX Runtime's answers for EXPORTED."""
    ours = [linear(*case) for case in CASES]
    theirs = [onnx_export._OnnxLinear(ours[i][1], "trained") for i in EXPORTED]
    content = onnx_export.trace(SideBySide(theirs), {"x": torch.randn(3, 5, 43)}, ["y"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return ours, lambda x: torch.from_numpy(session.run(["y"], {"x": x.numpy()})[0])


@pytest.mark.parametrize("index", range(len(CASES)), ids=["-".join(map(str, c)) for c in CASES])
def test_a_layer_agrees_on_equal_input(side_by_side, index):
    """As it trains, packed on integers, packed in floating point, in ONNX Runtime."""
    (layers, run), (weights, activations, columns) = side_by_side, CASES[index]
    trains, stored = layers[index]
    floating = copy.deepcopy(stored)
    floating.integers = False
    torch.manual_seed(1)
    for x in (2 * torch.randn(3, 5, 43), 9 * torch.randn(1, 2, 43), torch.zeros(2, 9, 43)):
        given = x[..., :columns]
        with torch.no_grad():
            wanted = stored(given)
            fits = Scheme.parse(weights).levels[1] < 128
            assert stored.runs_on_integers(given) == bool(activations and fits)
            assert torch.equal(floating(given), wanted)
            largest = max(1, wanted.abs().max())
            assert (trains(given) - wanted).abs().max() <= 2e-3 * largest  # scales in fp16
        if index in EXPORTED:
            assert (run(x)[EXPORTED.index(index)] - wanted).abs().max() <= 1e-5 * largest


@pytest.mark.parametrize(
    "name, activations",
    [("xtc-1bit", "trained"), ("xtc-1bit", "dynamic"), ("xtc-1bit-uint8", "trained"),
     ("xtc-1bit-rest1", "dynamic"), ("ptq-4bit", "trained"), ("ptq-4bit", "dynamic")],
)  # fmt: skip
def test_a_model_gives_the_logits_of_the_scheme_it_deploys(
    name, activations, bert, batch, tmp_path
):
    model = packed(bert, recipe.load(name).techniques)
    path = onnx_export.export_onnx(model, tmp_path / "a.onnx", activations)
    deployed = with_activations(model, UINT8)
    wanted = {"trained": model, "dynamic": deployed}[activations]
    assert difference(OnnxModel(path), wanted, batch) < 1e-3
    if name != "xtc-1bit-uint8":
        assert difference(deployed, model, batch) > 1e-4  # the schemes differ, so the test can fail


@pytest.mark.parametrize(
    "attention, clip",
    [("int8-tensor", None), ("int8-token", None), ("int8-token", 0.5), (UINT8, None), (UINT8, 0.5)],
)
def test_quantized_attention_goes_along(attention, clip, bert, batch, tmp_path):
    whole, attention = attention, replace(Scheme.parse(attention), clip=clip)
    model = packed(bert, [Quantize(activations=UINT8, attention=attention)])
    plain = packed(bert, [Quantize(activations=UINT8)])
    assert difference(model, plain, batch) > 1e-3
    path = onnx_export.export_onnx(model, tmp_path / "a.onnx", "trained")
    assert difference(OnnxModel(path), model, batch) < 1e-3
    round_trips = onnx_export.operators(path)["DequantizeLinear"]
    assert round_trips == (4 if whole == UINT8 else 0)


def test_the_dynamic_scheme_replaces_that_of_attention_too(bert, tmp_path):
    model = packed(bert, recipe.load("ternarybert").techniques)
    path = onnx_export.export_onnx(model, tmp_path / "a.onnx")
    assert onnx_export.operators(path)["DequantizeLinear"] == 4


def test_a_clip_of_the_activations_goes_along(bert, batch, tmp_path):
    clipped = Scheme("int", 8, "token", clip=1.0)
    model = packed(bert, [Quantize(activations=clipped)])
    assert difference(model, packed(bert, [Quantize()]), batch) > 1e-2
    path = onnx_export.export_onnx(model, tmp_path / "a.onnx", "trained")
    assert difference(OnnxModel(path), model, batch) < 1e-3


def test_batch_length_masks_and_labels_travel(exported):
    model, path = exported
    found = OnnxModel(path)
    assert found.labels == ["down", "up"] and found.activations == "dynamic"
    assert found.max_length == 32
    for shape in ((1, 1), (1, 32), (9, 3)):
        ids = torch.randint(5, 200, shape)
        assert difference(found, model, {"input_ids": ids}) < 0.02  # a rounding may fall apart
    ids = torch.randint(5, 200, (1, 6))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    shorter = found(ids[:, :4]).logits
    masked, unmasked = ((x.logits - shorter).abs().max() for x in (found(ids, mask), found(ids)))
    assert masked < 0.05 and masked < unmasked
    types = found(ids, token_type_ids=torch.ones_like(ids)).logits
    assert not torch.equal(types, found(ids).logits)


def test_the_file_holds_bits_and_the_runtime_int8_kernels(exported):
    model, path = exported
    graph = onnx.load(path).graph
    onnx.checker.check_model(str(path), full_check=True)
    stored = {i.name: i for i in graph.initializer}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear):
            assert list(stored[f"model.{name}.bytes"].dims) == list(module.weight.shape[:2])
    wide = [i for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(torch.tensor(i.dims).prod()) for i in wide) < 50
    content = path.read_bytes()
    assert b".py" not in content and b"site-packages" not in content
    count, layers = onnx_export.operators(path, optimized=True), 2
    # Query, key and value share one DynamicQuantizeLinear; the other three have theirs inside.
    assert count["DynamicQuantizeMatMul"] == 3 * layers
    assert count["MatMulIntegerToFloat"] == 3 * layers
    assert count["DynamicQuantizeLinear"] == layers and count["MatMulInteger"] == 0


def test_the_metadata_is_plain_json_and_the_model_is_left_as_it_was(exported, batch):
    model, path = exported
    entries = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    said = {"activations", "labels", "max_length", "trained_on"}
    assert set(json.loads(entries.pop("xtc"))) == said
    assert list(entries) == ["xtc_sha256"] and len(entries["xtc_sha256"]) == 64
    assert model.config._attn_implementation == "sdpa"
    assert all(not type(m).__name__.startswith("_Onnx") for m in model.modules())


def test_bert_base_is_a_file_of_15_megabytes(tmp_path):
    """One and two of its layers are exported: the other ten are as large as the second."""
    sizes = []
    for layers in (1, 2):
        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers)).eval()
        chosen = [Quantize(), Storage(pooler="int8-row", positions="int8-row")]
        path = onnx_export.export_onnx(packed(model, chosen), tmp_path / "a.onnx")
        sizes.append(path.stat().st_size)
    assert 14e6 < sizes[1] + 10 * (sizes[1] - sizes[0]) < 15e6


def test_structure_goes_along(make_bert, batch, tmp_path):
    chosen = [
        LayerReduction("top", 1),
        Quantize("ternary", "ternary-row", UINT8),
        Storage(ternary=1.6),
    ]
    model = packed(make_bert(2), chosen)
    path = onnx_export.export_onnx(model, tmp_path / "a.onnx")
    assert difference(OnnxModel(path), model, batch) < 1e-3
    names = [i.name for i in onnx.load(path).graph.initializer]
    assert sum("query.bytes" in name for name in names) == 1
    assert [243, 5] in [list(i.dims) for i in onnx.load(path).graph.initializer]


@pytest.mark.parametrize(
    "chosen",
    [
        [], [PruneHeads(0.5, "magnitude"), PruneNeurons(0.5)], [Compact(layers=1, hidden=0.5)],
        [Sparsify(0.5)], [DistilBert(layers=1)], [Bottleneck()], [BiLSTM(8, 6, 5)],
        [CNN(8, 4, (2, 3))],
    ],
    ids=lambda chosen: chosen[0].name if chosen else "plain",
)  # fmt: skip
def test_what_is_not_quantized_is_exported_too(chosen, bert, batch, tmp_path):
    model = packed(bert, chosen)
    path = OnnxModel(onnx_export.export_onnx(model, tmp_path / "a.onnx"))
    assert difference(path, model, batch) < 1e-5
    alone = {name: x[:1, :4] for name, x in batch.items()}
    assert difference(path, model, alone) < 1e-5


def test_inputs_are_those_of_the_tokenizer(tmp_path):
    """RoBERTa's gives no segments, and its 42 positions read 40 tokens."""
    model = roberta()
    ids = torch.tensor([[0, 7, 8, 9, 2], [0, 7, 2, 1, 1]])
    given = {"input_ids": ids, "attention_mask": (ids != 1).long()}
    for chosen in ([], [Quantize(activations=UINT8)]):
        made = packed(model, chosen)
        path = onnx_export.export_onnx(made, tmp_path / "a.onnx")
        exported = OnnxModel(path)
        assert exported.inputs == ["input_ids", "attention_mask"] and exported.max_length == 40
        assert difference(exported, made, given) < 1e-3


def test_bad_input_is_one_clear_error(exported, make_bert, tmp_path):
    model, path = exported
    with pytest.raises(ValueError, match="activations must be one of dynamic, trained, .*'int8'"):
        onnx_export.export_onnx(model, tmp_path / "a.onnx", "int8")
    other = packed(make_bert(1), [Quantize(activations="uint8-token")])
    with pytest.raises(ValueError, match="no product for activations uint8-token.*'dynamic'"):
        onnx_export.export_onnx(other, tmp_path / "a.onnx", "trained")
    assert not list(tmp_path.iterdir())
    narrow = OnnxModel(path)(torch.full((1, 3), 5, dtype=torch.int32)).logits
    assert torch.equal(narrow, OnnxModel(path)(torch.full((1, 3), 5)).logits)
    with pytest.raises(ValueError, match="received 33 tokens, but the file has 32 positions"):
        OnnxModel(path)(torch.full((1, 33), 5))
    for wrong in (torch.tensor([[9999]]), torch.arange(5, 9)):
        with pytest.raises(ValueError, match="ONNX Runtime refused the inputs .*token ids"):
            OnnxModel(path)(wrong)
    for name in ("folder", "a.bin"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="expected the name of a file ending in .onnx"):
            onnx_export.export_onnx(model, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no ONNX file at .*none.onnx"):
        OnnxModel(tmp_path / "none.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="cut.onnx .*altered"):
        OnnxModel(tmp_path / "cut.onnx")
    with pytest.raises(ValueError, match="cut.onnx cannot be read by ONNX Runtime"):
        OnnxModel(tmp_path / "cut.onnx", check=False)
    foreign = onnx.load(path)
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="carries no checksum: it was exported by another program"):
        OnnxModel(tmp_path / "foreign.onnx")
    with pytest.raises(ValueError, match="was not exported by xtclib: it carries no labels"):
        OnnxModel(tmp_path / "foreign.onnx", check=False)


def test_every_damaged_bit_of_a_file_shows(exported, tmp_path):
    content, rng = bytearray(exported[1].read_bytes()), np.random.default_rng(0)
    damaged = tmp_path / "damaged.onnx"
    for at in rng.integers(len(content), size=60):
        content[at] ^= 1 << (at % 8)
        damaged.write_bytes(content)
        content[at] ^= 1 << (at % 8)
        with pytest.raises(ValueError, match="altered"):
            OnnxModel(damaged)
    damaged.write_bytes(content)
    OnnxModel(damaged)


ALONE = """
import json, sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
feeds = {name: np.array(value) for name, value in json.loads(sys.argv[2]).items()}
logits = session.run(["logits"], feeds)[0]
assert "torch" not in sys.modules and "xtclib" not in sys.modules
about = json.loads(session.get_modelmeta().custom_metadata_map["xtc"])
print(json.dumps([logits.tolist(), about["labels"]]))
"""


def test_a_file_runs_where_there_is_only_onnxruntime(exported, batch, tmp_path):
    _, path = exported
    feeds = {name: batch[name].tolist() for name in ("input_ids", "attention_mask")}
    feeds["token_type_ids"] = (batch["input_ids"] * 0).tolist()
    found = subprocess.run(
        [sys.executable, "-c", ALONE, str(path), json.dumps(feeds)], capture_output=True,
        text=True, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert not found.returncode, found.stderr[-2000:]
    logits, labels = json.loads(found.stdout)
    assert labels == ["down", "up"]
    wanted = OnnxModel(path)(**batch).logits
    assert torch.allclose(torch.tensor(logits), wanted, atol=1e-6)


def test_an_encoder_layer_agrees_on_equal_input(make_bert):
    """Attention, both residuals and the feed-forward part, to 1e-5."""
    model = make_bert(1)
    model.set_attn_implementation("eager")
    layer = packed(model, [Quantize(activations=UINT8)]).bert.encoder.layer[0]
    exported = copy.deepcopy(layer)
    for name, module in list(exported.named_modules()):
        if isinstance(module, PackedLinear):
            owner, _, own = name.rpartition(".")
            wrapped = onnx_export._OnnxLinear(module, "trained")
            setattr(exported.get_submodule(owner), own, wrapped)
    torch.manual_seed(0)
    states = torch.randn(3, 7, model.config.hidden_size)
    content = onnx_export.trace(Alone(exported), {"x": states}, ["y"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (found,) = session.run(["y"], {"x": states.numpy()})
    with torch.no_grad():
        assert (torch.from_numpy(found) - Alone(layer)(states)).abs().max() <= 1e-5


class Alone(nn.Module):
    """A module of one input, as `trace` calls it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *tensors):
        found = self.module(*tensors)
        return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("weights", ["binary-row", "ternary", "int4-row", "int8-row"])
def test_embeddings_gather_packed_rows_and_open_only_those(weights):
    torch.manual_seed(0)
    table = PackedEmbedding.from_quant(
        QuantEmbedding.from_embedding(nn.Embedding(211, 40), Scheme.parse(weights))
    )
    ids = torch.randint(0, 211, (3, 7))
    alone = Alone(onnx_export._OnnxEmbedding(table, "trained"))
    content = onnx_export.trace(alone, {"ids": ids}, ["rows"])
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = torch.from_numpy(session.run(["rows"], {"ids": ids.numpy()})[0])
    with torch.no_grad():
        assert (found - table(ids)).abs().max() <= 1e-5
    graph = onnx.load_from_string(content).graph
    held = {i.name: i for i in graph.initializer}
    gathered = [held[n.input[0]] for n in graph.node if n.op_type == "Gather"
                and n.input[0] in held]  # fmt: skip
    # Rows are gathered as packed bytes, and no table of whole rows stands anywhere.
    rows = [i for i in gathered if i.dims[0] == 211 and len(i.dims) > 1]
    assert [i.data_type for i in rows] == [onnx.TensorProto.UINT8]
    assert not any(list(i.dims)[:2] == [211, 40] for i in graph.initializer if i not in rows)


def test_a_failed_export_leaves_the_old_file(bert, tmp_path, monkeypatch):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        onnx_export.export_onnx(packed(bert, [Quantize()]), path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
