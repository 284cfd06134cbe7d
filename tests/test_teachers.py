import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from made import roberta
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertTokenizer, MPNetConfig, MPNetForSequenceClassification

from xtclib import cache, teachers
from xtclib.tasks.evaluation import predict
from xtclib.tasks.glue import TASKS
from xtclib.tasks.rows import Split
from xtclib.training.budget import Budget

BUDGET = Budget(steps=2, batch_size=8, max_length=16)


@pytest.fixture
def folder(bert, tokenizer, tmp_path):
    bert.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def backbone(bert, tokenizer, tmp_path):
    bert.bert.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    return tmp_path / "backbone"


def tuned(backbone, data, budget=BUDGET, seed=0):
    return teachers.fine_tuned(
        str(backbone), data, budget, seed, precision="fp32", progress=False, device="cpu"
    )


def test_a_fitting_teacher_loads_in_eval_mode(folder, bert, batch):
    teacher = teachers.load_teacher(folder, "sst2")
    assert not teacher.model.training and teacher.cached
    assert torch.equal(teacher.model(**batch).logits, bert(**batch).logits)


def test_a_wrong_number_of_labels_is_refused(folder):
    with pytest.raises(ValueError, match="has 2 labels, but mnli has 3: use a model that was"):
        teachers.load_teacher(folder, "mnli")


def test_another_order_of_labels_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "POSITIVE", "1": "NEGATIVE"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"orders its labels \['positive', 'negative'\], but"):
        teachers.load_teacher(folder, "sst2")


@pytest.mark.parametrize("names", [("LABEL_0", "LABEL_1"), ("Negative", "POSITIVE")])
def test_nameless_labels_and_capitals_are_accepted(folder, names):
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": dict(enumerate(names))}
    (folder / "config.json").write_text(json.dumps(config))
    assert teachers.load_teacher(folder, "sst2").model.config.id2label[1] == "positive"


def test_a_backbone_without_a_classifier_is_refused(backbone):
    with pytest.raises(ValueError, match="holds no classifier: it was never fine-tuned for sst2"):
        teachers.load_teacher(backbone, "sst2")


def test_a_folder_without_weights_is_refused(tmp_path):
    def refused(message):
        with pytest.raises(ValueError, match=message):
            teachers.load_teacher(tmp_path, "sst2")

    refused("no model.safetensors in .*: a teacher is a folder that `save_pretrained` wrote")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused("pytorch_model.bin is a pickle, which is not opened: load it where you trust it")
    for step in (500, 1000):
        (tmp_path / f"checkpoint-{step}").mkdir()
    refused("holds a Trainer's checkpoints, name one: .*checkpoint-1000")
    (tmp_path / "adapter_config.json").write_text("{}")
    refused("holds an adapter of a model, without adapter_model.safetensors: merge it")


def test_a_teacher_s_labels_may_be_numbers_and_its_weights_in_parts(bert, tokenizer, tmp_path):
    bert.config.id2label, bert.config.label2id = {0: "0", 1: "1"}, {"0": 0, "1": 1}
    bert.save_pretrained(tmp_path, max_shard_size="20KB")
    with pytest.raises(ValueError, match="no tokenizer in .*: copy tokenizer.json"):
        teachers.load_teacher(tmp_path, "sst2")
    tokenizer.save_pretrained(tmp_path)
    assert teachers.load_teacher(tmp_path, "sst2").model.config.num_labels == 2
    bert.config.id2label = {0: "good", 1: "bad"}
    bert.config.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"has the labels \['good', 'bad'\], but sst2 is .*id2label"
    ):
        teachers.load_teacher(tmp_path, "sst2")


TINY = dict(vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=64, initializer_range=0.2)  # fmt: skip
KINDS = {
    "roberta": (roberta, ["query", "value"]),
    "mpnet": (lambda **o: MPNetForSequenceClassification(MPNetConfig(**TINY | o)), ["q", "v"]),
}


@pytest.fixture(params=KINDS)
def own(request, tokenizer, tmp_path):
    """A classifier of some family, the folder of its encoder alone, and a LoRA adapter on that."""
    peft = pytest.importorskip("peft")
    make, targets = KINDS[request.param]
    model = make(**TINY)
    model.base_model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    how = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets)
    adapted = peft.get_peft_model(copy.deepcopy(model), how).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:  # zero until it is trained
            torch.nn.init.normal_(parameter)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    return model.eval(), adapted, tmp_path


def test_weights_of_any_family_may_be_in_parts_or_a_trainer_s(own, tokenizer, batch):
    model, _, folder = own
    model.save_pretrained(folder / "parts", max_shard_size="8KB")
    assert len(list((folder / "parts").glob("model-*.safetensors"))) > 1
    model.save_pretrained(folder / "run" / "checkpoint-20")
    for name in ("parts", "run/checkpoint-20"):
        tokenizer.save_pretrained(folder / name)
        teacher = teachers.load_teacher(folder / name, "sst2")
        assert torch.equal(teacher.model(**batch).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="Trainer's checkpoints, name one: .*run/checkpoint-20"):
        teachers.load_teacher(folder / "run", "sst2")


def test_an_adapter_is_merged_into_its_base(own, batch):
    _, adapted, folder = own
    teacher = teachers.load_teacher(folder / "adapter", "sst2")
    assert not any("lora" in name for name, _ in teacher.model.named_modules())
    torch.testing.assert_close(teacher.model(**batch).logits, adapted(**batch).logits)
    assert teacher.model.config.id2label[1] == "positive" and len(teacher.tokenizer) == 200
    # Its key is of both: another base, or another adapter, is another teacher.
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path)
    assert teachers.load_teacher(folder / "adapter", "sst2").key != teacher.key
    with pytest.raises(ValueError, match="adapter has 2 labels, but mnli has 3"):
        teachers.load_teacher(folder / "adapter", "mnli")


def test_an_adapter_on_the_hub_is_fetched_and_merged(own, batch, monkeypatch, tmp_path):
    """The Hub is played by a cache that holds what was fetched, as it lies there."""
    _, _, folder = own
    home = tmp_path / "hub" / "models--somebody--reviews-lora"
    shutil.copytree(folder / "adapter", home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    fetched = teachers.load_teacher("somebody/reviews-lora", "sst2")
    here = teachers.load_teacher(folder / "adapter", "sst2")
    assert torch.equal(fetched.model(**batch).logits, here.model(**batch).logits)
    with pytest.raises(FileNotFoundError, match="no config.json in 'somebody/else'"):
        teachers.load_teacher("somebody/else", "sst2")


def test_an_adapter_that_makes_no_classifier_is_refused(own, monkeypatch):
    folder = own[2]
    path = folder / "adapter" / "adapter_model.safetensors"

    def refused(message):
        with pytest.raises(ValueError, match=message) as caught:
            teachers.load_teacher(folder / "adapter", "sst2")
        said = str(caught.value)
        assert "\n" not in said and "merge it where it was trained" in said

    with monkeypatch.context() as without:
        without.setattr(teachers.importlib.util, "find_spec", lambda name: None)
        refused("holds a LoRA adapter, which needs peft: pip install")
    whole = load_file(path)
    save_file({n: t for n, t in whole.items() if "classifier" not in n}, path)
    refused("and neither has 'classifier.dense.bias'")
    save_file(whole, path)
    (folder / "base").rename(folder / "gone")
    refused("LoRA adapter on '.*base', which cannot be read")
    said = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(said | {"peft_type": "X"}))
    refused("holds an adapter of kind 'X' on .*, where LORA on a named model is merged here")
    (folder / "adapter" / "adapter_config.json").write_text("[]")
    refused("adapter_config.json cannot be read")


def test_damaged_weights_are_refused(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="truncated|damaged|cannot be read"):
        teachers.load_teacher(folder, "sst2")


def test_weights_that_are_not_numbers_are_refused(folder, bert):
    bert.classifier.bias.data[1] = float("nan")
    bert.save_pretrained(folder)
    with pytest.raises(ValueError, match="the teacher .*: the parameter 'classifier.bias' "):
        teachers.load_teacher(folder, "sst2")


def test_a_teacher_no_better_than_the_majority_is_refused(folder, bert, data):
    bert.classifier.weight.data.zero_()
    bert.classifier.bias.data = torch.tensor([0.0, 1.0])  # always positive
    bert.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"scores 65.0 on 256 training rows of sst2, no bet"):
        teachers.load_teacher(folder, "sst2", data)


def test_fine_tuning_is_read_from_the_cache_the_second_time(backbone, data, own_cache):
    first, second = tuned(backbone, data), tuned(backbone, data)
    assert not first.cached and second.cached and first.key == second.key
    weights = second.model.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in first.model.state_dict().items())
    kept = json.loads(next(own_cache.glob("teachers/*/made_from.json")).read_text())
    assert kept["data"] == data.fingerprint and kept["training"]["steps"] == 2


@pytest.mark.slow
def test_whatever_changes_the_teacher_changes_its_key(backbone, data, bert):
    keys = [tuned(backbone, data).key, tuned(backbone, data, seed=1).key]
    keys.append(tuned(backbone, data, replace(BUDGET, steps=1)).key)
    other = replace(data, train=data.train.select(range(39)))
    keys.append(tuned(backbone, other).key)
    bert.bert.pooler.dense.bias.data += 1
    bert.bert.save_pretrained(backbone)
    changed = tuned(backbone, data)
    assert not changed.cached and len({*keys, changed.key}) == 5


def test_a_tokenizer_forgets_stored_padding_and_truncation(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    stored = json.loads(path.read_text())
    stored["padding"] = {
        "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "[PAD]",
    }  # fmt: skip
    stored["truncation"] = {
        "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
    }  # fmt: skip
    path.write_text(json.dumps(stored))
    found = teachers.load_tokenizer(tmp_path, 48)
    assert found("w0 w1 w2 w3")["input_ids"] == [2, 5, 6, 7, 8, 3]
    assert found.model_max_length == 48


def test_the_cache_is_where_the_environment_says(own_cache, monkeypatch):
    assert cache.cache_dir() == own_cache
    monkeypatch.delenv("XTC_CACHE")
    assert cache.cache_dir().parts[-2:] == (".cache", "xtclib")


def test_keys_depend_on_every_part_and_not_on_order_in_dicts():
    assert cache.key({"a": 1, "b": 2}) == cache.key({"b": 2, "a": 1})
    assert len({cache.key("ab"), cache.key("a", "b"), cache.key("b", "a")}) == 3


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(teachers.importlib.util, "find_spec", lambda name: Spec)
    return tmp_path


def test_other_minilm_weights_are_refused(package):
    with pytest.raises(ValueError, match="have sha256 .*, expected 53aa51172d.*: reinst"):
        teachers.minilm()


def test_the_published_minilm_is_the_packages_folder(package, monkeypatch):
    monkeypatch.setattr(teachers, "sha256", lambda path: teachers.MINILM_SHA256)
    assert teachers.minilm() == str(package / "model")


def test_without_the_package_minilm_comes_from_the_hub(monkeypatch):
    monkeypatch.setattr(teachers.importlib.util, "find_spec", lambda name: None)
    assert teachers.minilm() == "sentence-transformers/all-MiniLM-L6-v2"


def test_a_regression_teacher_has_no_label_order(make_bert, tokenizer, tmp_path):
    make_bert(2, 1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert teachers.load_teacher(tmp_path, TASKS["stsb"]).model.config.num_labels == 1


def test_a_body_with_one_segment_reads_pairs_of_a_tokenizer_that_gives_two(tmp_path):
    """RoBERTa's body under a WordPiece tokenizer: segments 1 have no row in its table."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path)
    labels = {0: "not_equivalent", 1: "equivalent"}
    roberta(vocab_size=7, pad_token_id=0, id2label=labels).save_pretrained(tmp_path)
    teacher = teachers.load_teacher(tmp_path, "mrpc")
    pairs = Split(["a b", "b"], ["b", "a"], [0, 1])
    assert predict(teacher.model, teacher.tokenizer, pairs).shape == (2, 2)
    teacher.tokenizer.save_pretrained(tmp_path / "again")
    assert "token_type_ids" not in AutoTokenizer.from_pretrained(tmp_path / "again")("a", "b")
