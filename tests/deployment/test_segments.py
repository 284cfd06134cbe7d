"""Exits in ONNX Runtime: a session a segment answers as the model does, row by row."""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from xtclib.artefact import format
from xtclib.deployment import onnx
from xtclib.deployment.segments import SegmentedModel, export, export_segments
from xtclib.techniques import DropTokens, EarlyExit, Quantize, apply_all

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


def rows():
    ids = torch.randint(5, 60, (6, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[4, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "threshold"),
    [
        ({"pooling": "mean", "after": [1]}, 0.5),
        ({"criterion": "patience"}, 1),
        ({"criterion": "learned", "after": [2]}, 0.5),
    ],
)
def test_segments_answer_as_the_model(bert, tmp_path, how, threshold):
    model = EarlyExit(**how).apply(bert).eval()
    for head in model.exits.heads:
        torch.nn.init.normal_(head.classifier.weight, 0, 1)
    session = SegmentedModel(export_segments(model, tmp_path / "segments"))
    assert len(session.sessions) == len(model.exits.after) + 1
    for now in ("never", threshold, "always"):
        model.config.exits["threshold"] = session.threshold = now
        with torch.no_grad():
            wanted = model(**rows())
        found = session(**rows())
        assert found["layers"].tolist() == wanted["layers"].tolist()
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_packed_weights_stay_packed_in_segments(bert, tmp_path):
    techniques = [Quantize(), EarlyExit(after=[2])]
    model = format.finalize(apply_all(bert, techniques), techniques)
    path, size = export(model, tmp_path, activations="trained")
    assert path == tmp_path / "segments" and size == sum(f.stat().st_size for f in path.iterdir())
    found = SegmentedModel(path)(**rows())
    with torch.no_grad():
        torch.testing.assert_close(found.logits, model(**rows()).logits, atol=5e-3, rtol=0)


def test_what_does_not_export_says_so(bert, tmp_path):
    with pytest.raises(ValueError, match="exits is several files: write them by `export_segments`"):
        onnx.export_onnx(EarlyExit().apply(bert), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match="the model has no exits: `export_onnx` writes it"):
        export_segments(bert, tmp_path / "segments")
    with pytest.raises(ValueError, match="depends on the row, which ONNX does not trace"):
        export(DropTokens(keep=[1.0, 0.5, 0.5]).apply(bert), tmp_path)
    with pytest.raises(FileNotFoundError, match="no segments in .* write them by `xtc export`"):
        SegmentedModel(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(ValueError, match="no folder of segments and holds mine.txt: name a new"):
        export_segments(EarlyExit().apply(bert), tmp_path)
    with pytest.raises(ValueError, match="model.onnx is no folder of segments: name a new folder"):
        export_segments(EarlyExit().apply(bert), tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
