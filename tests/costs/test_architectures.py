"""The catalogue: sizes that others count too, and what happens to names that are not in it."""

import json

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, ViTConfig

from xtclib import bert
from xtclib.costs.architectures import ARCHITECTURES, build, config_of
from xtclib.techniques.students.shallow import (
    BiLSTMClassifier,
    BiLSTMConfig,
    CNNClassifier,
    CNNConfig,
)

# Counted by others: the papers' tables or `transformers` documentation, without a head.
KNOWN = {
    "bert-base": 109_482_240,
    "bert-large": 335_141_888,
    "distilbert": 66_362_880,
    "electra-small": 13_483_008,
    "albert-base": 11_683_584,
    "openai-gpt": 116_534_784,
    "bert-2-128": 4_385_920,
    "elmo": 93_668_434,
}


@pytest.mark.parametrize("name", KNOWN)
def test_sizes_that_are_known(name):
    model = build(name)
    backbone = getattr(model, "base_model", model)
    assert sum(p.numel() for p in backbone.parameters()) == KNOWN[name]


def test_every_system_of_the_sources_is_there_with_its_source():
    wanted = {"pkd-6l", "theseus-6l", "tinybert-4l", "tinybert-6l", "minilmv2-6l-384", "mobilebert",
              "mobilebert-tiny", "squeezebert", "electra-base", "electra-large", "bilstm", "cnn",
              "dualtrain-192", "dualtrain-96", "dualtrain-48"}  # fmt: skip
    assert wanted <= set(ARCHITECTURES)
    assert sum(name.startswith("bert-") and name[5].isdigit() for name in ARCHITECTURES) == 24
    assert all(a.source and a.summary for a in ARCHITECTURES.values())


def test_models_take_no_memory():
    assert all(p.device.type == "meta" for p in build("bert-large").parameters())


@pytest.mark.parametrize(
    "model, labels",
    [
        (BiLSTMClassifier(BiLSTMConfig(vocab_size=50, hidden_size=6, num_labels=3)), 3),
        (CNNClassifier(CNNConfig(vocab_size=50, filters=4, widths=(2, 3), num_labels=3)), 3),
    ],
    ids=["bilstm", "cnn"],
)
def test_our_own_models_give_logits_that_depend_on_the_words(model, labels):
    torch.manual_seed(0)
    ids = torch.randint(50, (4, 7))
    logits = model(ids).logits
    assert logits.shape == (4, labels)
    assert not torch.allclose(logits[0], logits[1])
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_elmo_runs_both_ways():
    with torch.device("meta"):
        assert build("elmo")(torch.zeros(2, 5, dtype=torch.long)).shape == (2, 2)


def test_a_folder_is_read_and_its_quantization_left_out(tmp_path):
    config = BertConfig(num_hidden_layers=2, num_labels=3).to_dict()
    config["quantization_config"] = {"quant_method": "xtc"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = build(str(tmp_path))
    assert isinstance(model.classifier, nn.Linear) and model.classifier.out_features == 3
    plain = AutoModel.from_config(AutoConfig.for_model("bert", num_hidden_layers=2))
    assert sum(p.numel() for p in model.bert.parameters()) == sum(
        p.numel() for p in plain.parameters()
    )


def test_the_nearest_name_is_told():
    with pytest.raises(ValueError, match="unknown architecture 'tinybert-5l'.*tinybert-4l"):
        config_of("tinybert-5l")


def test_a_folder_without_a_config_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        config_of(tmp_path)


def test_a_hub_id_that_cannot_be_reached_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(
        bert.PretrainedConfig, "get_config_dict",
        lambda *_, **__: (_ for _ in ()).throw(OSError("no route\nmore")),
    )  # fmt: skip
    with pytest.raises(FileNotFoundError, match=r"no config.json in 'someone/model'.*\(no route\)"):
        config_of("someone/model")


def test_an_image_model_has_no_classifier_of_sentences():
    with pytest.raises(ValueError, match="ViTConfig"):
        build(ViTConfig())
