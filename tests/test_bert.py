import pytest
import torch
import transformers
from torch import nn

from xtclib import bert as models
from xtclib.distillation import Reader
from xtclib.tasks.glue import TASKS
from xtclib.techniques import CNN, LayerReduction, PruneHeads, Quantize, ReplaceModules, base
from xtclib.techniques.pruning import surgery
from xtclib.techniques.students.shallow import CNNClassifier, CNNConfig


@pytest.mark.parametrize(
    "keep, message",
    [
        ([0, 4], r"cannot keep layers \[4\]: the teacher has 4 layers, numbered 0 to 3"),
        ([-1, 2], r"cannot keep layers \[-1\]"),
        ([0.0, 1], r"cannot keep layers \[0.0\]"),
        (["1"], r"cannot keep layers \['1'\]"),
        ([], "the list of layers to keep is empty"),
        ([1, 1], r"rising and without repeats, received \[1, 1\]"),
        ([2, 1], r"rising and without repeats, received \[2, 1\]"),
    ],
)
def test_bad_lists_of_layers_are_refused(bert, keep, message):
    with pytest.raises(ValueError, match=message):
        models.keep_layers(bert, keep)


def test_keeping_every_layer_changes_nothing(bert, batch):
    student = models.keep_layers(bert, range(4))
    assert torch.equal(student(**batch).logits, bert(**batch).logits)
    theirs = bert.state_dict()
    assert student.state_dict().keys() == theirs.keys()
    assert all(torch.equal(v, theirs[k]) for k, v in student.state_dict().items())


def test_kept_layers_are_copies_of_the_named_ones(bert, batch):
    student = models.keep_layers(bert, [1, 3])
    assert student.config.num_hidden_layers == 2 and bert.config.num_hidden_layers == 4
    for index, source in enumerate((1, 3)):
        ours = models.encoder_layers(student)[index].state_dict()
        theirs = models.encoder_layers(bert)[source].state_dict()
        assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    before = bert(**batch).logits
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(bert(**batch).logits, before)  # nothing is shared


def test_a_shorter_student_is_the_teacher_with_layers_skipped(bert, batch):
    student = models.keep_layers(bert, [0, 1])
    states = bert(**batch, output_hidden_states=True).hidden_states
    wanted = bert.classifier(bert.bert.pooler(states[2]))
    torch.testing.assert_close(student(**batch).logits, wanted)


def test_encoder_linears_are_the_six_of_each_layer(bert):
    found = models.encoder_linears(bert)
    assert len(found) == 6 * 4
    inside = {name.split("layer.0.")[1] for name in found if ".layer.0." in name}
    assert inside == {
        "attention.self.query", "attention.self.key", "attention.self.value",
        "attention.output.dense", "intermediate.dense", "output.dense",
    }  # fmt: skip
    assert all(bert.get_submodule(name) is module for name, module in found.items())


def test_replacing_a_module_puts_it_where_the_name_points(bert):
    new = nn.Linear(64, 32)
    models.replace_module_(bert, "bert.encoder.layer.2.output.dense", new)
    assert bert.bert.encoder.layer[2].output.dense is new


def test_a_model_without_a_list_of_layers_is_refused():
    config = CNNConfig(vocab_size=20, embedding_size=8, filters=2)
    with pytest.raises(TypeError, match="has no layers that are built as BERT's.*expected BERT,"):
        models.encoder_layers(CNNClassifier(config))


SMALL = dict(
    vocab_size=40, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
    embedding_size=8, d_model=8, n_layers=1, n_heads=2, hidden_dim=8, pad_token_id=1,
)  # fmt: skip


@pytest.mark.parametrize("kind", ["deberta", "squeezebert", "nystromformer", "convbert", "fnet"])
def test_encoders_of_another_build_are_refused_in_one_line(kind, own_cache):
    config = transformers.AutoConfig.for_model(kind, **SMALL)
    model = transformers.AutoModelForSequenceClassification.from_config(config)
    for use in (models.encoder_layers, Quantize().apply, LayerReduction(layers=1).apply):
        with pytest.raises(TypeError, match="no layers that are built as BERT's.*logits alone"):
            use(model)
    assert CNN(8, 4, (2,)).apply(model).config.vocab_size == 40


@pytest.mark.parametrize(
    "kind, count",
    [("roberta", 6), ("xlm-roberta", 6), ("electra", 6), ("distilbert", 6), ("camembert", 6),
     ("mpnet", 6), ("deberta-v2", 6), ("albert", 6), ("modernbert", 4)],
)  # fmt: skip
def test_encoders_of_bert_s_build_are_taken(kind, count):
    config = transformers.AutoConfig.for_model(kind, **SMALL)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    assert len(models.encoder_linears(Quantize().apply(model))) == count
    (layer,) = models.encoder_layers(model)
    assert models.heads_of(layer) == 2
    inner = [models.part(layer, name) for name in models.PARTS]
    assert {*inner} == {*models.encoder_linears(model).values()}


IDS = torch.arange(2, 12).reshape(1, -1)


def test_a_layer_that_takes_turns_is_stored_once_and_takes_fewer():
    config = transformers.AlbertConfig(**SMALL | {"num_hidden_layers": 4})
    albert = transformers.AlbertForSequenceClassification(config).eval()
    assert len(models.encoder_layers(albert)) == 4 and len(models.encoder_linears(albert)) == 6
    student = models.keep_layers(albert, [0, 3])
    assert student.config.num_hidden_layers == 2 and student.config.kept_layers == [0, 3]
    twice = albert(IDS, output_hidden_states=True).hidden_states[2]
    wanted = albert.classifier(albert.albert.pooler_activation(albert.albert.pooler(twice[:, 0])))
    torch.testing.assert_close(student(IDS).logits, wanted)
    with pytest.raises(TypeError, match="all its layers are one"):
        PruneHeads().apply(albert)
    with pytest.raises(TypeError, match="the layers of a AlbertForSeq.* for no modules"):
        ReplaceModules().apply(albert)


def test_a_layer_that_takes_turns_shows_what_each_turn_reads():
    config = transformers.AlbertConfig(**SMALL | {"num_hidden_layers": 3})
    albert = transformers.AlbertForSequenceClassification(config).eval()
    read = Reader(albert, ["values", "hidden_states"])
    shown, value = (
        read(albert, input_ids=IDS),
        models.part(models.encoder_layers(albert)[0], "value"),
    )
    read.close()
    for turn in (1, 2, 3):
        before = shown.at("hidden_states", turn - 1)
        torch.testing.assert_close(shown.at("values", turn), value(before))


def test_positions_that_are_scored_too_are_not_trimmed():
    config = transformers.DebertaV2Config(**SMALL, relative_attention=True)
    model = transformers.DebertaV2ForSequenceClassification(config)
    with pytest.raises(TypeError, match="scores relative positions, .* leave out `length`"):
        models.trim_positions_(model, 16)


@pytest.mark.parametrize("name", ["max_relative_positions", "num_hidden_groups", "inner_group_num"])
def test_sizes_that_no_machine_builds_are_refused_in_every_family(name):
    models.check_config_values({"max_relative_positions": -1, "num_hidden_groups": 1}, "here")
    for value in (10**9, -2, 1.5):
        with pytest.raises(ValueError, match=f"here says {name}=.*, expected a whole number up to"):
            models.check_config_values({name: value}, "here")


def test_kept_layers_of_modernbert_keep_their_kind_of_attention():
    own = {"num_hidden_layers": 4, "global_attn_every_n_layers": 2, "local_attention": 4}
    model = transformers.ModernBertForSequenceClassification(
        transformers.ModernBertConfig(**SMALL | own)
    ).eval()
    student = models.keep_layers(model, [1, 2])
    assert student.config.layer_types == ["sliding_attention", "full_attention"]
    kept = student.model.layers
    assert [kept[0].attn.sliding_window, kept[1].attn.sliding_window] == [3, None]
    # The first layer has no norm: what the norm of layer 1 scaled, its matrix does.
    norm = nn.init.uniform_(model.model.layers[1].attn_norm.weight)
    first = models.keep_layers(model, [1]).model.layers[0]
    assert isinstance(first.attn_norm, nn.Identity)
    torch.testing.assert_close(
        first.attn.Wqkv.weight, model.model.layers[1].attn.Wqkv.weight * norm
    )


def test_heads_of_mpnet_keep_their_bias_by_position():
    config = transformers.MPNetConfig(**SMALL | {"num_hidden_layers": 2, "hidden_size": 16})
    config.num_attention_heads = 4
    model = transformers.MPNetForSequenceClassification(config).eval()
    nn.init.normal_(model.mpnet.encoder.relative_attention_bias.weight)
    layers, ids = models.encoder_layers(model), torch.arange(2, 22).reshape(2, 10)
    for layer, kept in zip(layers, ([1, 3], [2]), strict=True):
        silent = [i for i in range(16) if i // 4 not in kept]
        models.part(layer, "attention output").weight.data[:, silent] = 0
    with torch.no_grad():
        wanted = model(ids).logits
        surgery.keep_heads_(layers[0], [1, 2, 3])
        surgery.keep_heads_(layers[0], [0, 2])  # of what is left
        surgery.keep_heads_(layers[1], [2])
        torch.testing.assert_close(model(ids).logits, wanted)
    assert [models.heads_of(layer) for layer in layers] == [2, 1]


def test_positions_of_roberta_start_behind_the_padding():
    config = transformers.RobertaConfig(**SMALL, max_position_embeddings=42, type_vocab_size=1)
    model = transformers.RobertaForSequenceClassification(config).eval()
    ids = torch.arange(2, 32).repeat(1, 1)
    before = model(ids).logits
    assert models.longest(model) == 40
    models.trim_positions_(model, 30)
    assert torch.equal(model(ids).logits, before)  # 30 tokens, 32 rows
    assert model.config.max_position_embeddings == 32 and models.longest(model) == 30
    with pytest.raises(ValueError, match="received 31 tokens, but this model has 30 positions"):
        model(torch.full((1, 31), 5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_numbers_are_named(bert, bad):
    bert.bert.pooler.dense.bias.data[0] = bad
    with pytest.raises(ValueError, match="teacher: the parameter 'bert.pooler.dense.bias' holds"):
        base.check_finite(bert, "teacher")


def test_a_loaded_classifier_says_what_its_outputs_mean(bert, tmp_path):
    bert.bert.save_pretrained(tmp_path)
    three, again = (TASKS["mnli"].load_model(tmp_path, seed=5) for _ in "ab")
    assert three.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert three.classifier.out_features == 3
    assert torch.equal(three.classifier.weight, again.classifier.weight)
    other = TASKS["mnli"].load_model(tmp_path, seed=6)
    assert not torch.equal(three.classifier.weight, other.classifier.weight)
    one = TASKS["stsb"].load_model(tmp_path)
    assert one.classifier.out_features == 1 and one.config.problem_type == "regression"
