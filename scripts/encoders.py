"""What works with which encoder: tiny random models of each family through every technique.

``data/encoders.md`` is the table. After a change: ``python scripts/encoders.py`` writes it anew; a
test compares. A cell works if the model went through all of it, to a folder and back to the same
logits; it is refused if a ``TypeError`` or ``ValueError`` of one line said so before training.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from xtclib import teachers
from xtclib.artefact import format
from xtclib.bert import encoder_linears
from xtclib.cache import ROOT
from xtclib.costs.breakdown import break_down, flops
from xtclib.distillation import Objective
from xtclib.files import write_text
from xtclib.study import profiles
from xtclib.tasks import Calibration, TaskData
from xtclib.techniques import (
    DropTokens,
    EarlyExit,
    Factorize,
    LayerReduction,
    PruneHeads,
    PruneNeurons,
    PruneVocabulary,
    Quantize,
    Technique,
    apply_all,
)
from xtclib.training import Budget, Lesson, Run, train

FILE = ROOT / "data" / "encoders.md"
_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip
_DEBERTA = {
    "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
    "type_vocab_size": 0,
}  # fmt: skip
_TURNS = {  # local and global attention
    "local_attention": 8, "global_attn_every_n_layers": 2, "bos_token_id": 2, "eos_token_id": 3,
    "cls_token_id": 2, "sep_token_id": 3,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict]] = {
    "BERT": ("bert", {}),
    "RoBERTa": ("roberta", {"type_vocab_size": 1}),
    "XLM-R": ("xlm-roberta", {"type_vocab_size": 1}),
    "DistilBERT": ("distilbert", {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}),
    "ELECTRA": ("electra", {"embedding_size": 16}),
    "MPNet": ("mpnet", {}),
    "DeBERTa-v2": ("deberta-v2", {**_DEBERTA, "conv_kernel_size": 3}),
    "DeBERTa-v3": ("deberta-v2", _DEBERTA),
    "ALBERT": ("albert", {"embedding_size": 16}),
    "MobileBERT": ("mobilebert", {"embedding_size": 16, "intra_bottleneck_size": 16}),
    "ModernBERT": ("modernbert", _TURNS),
}


@dataclass(frozen=True)
class Trial:
    """A model, what it reads, and a folder to write to."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    data: TaskData
    folder: Path

    def calibration(self) -> Calibration:
        return Calibration(self.data, self.tokenizer, 24, rows=8)

    def logits(self, model: PreTrainedModel, tokenizer=None, rows: int = 8) -> Tensor:
        """What a model says of the first rows, the longest of which are padded to."""
        texts = self.data.train.first[:rows]
        read = (tokenizer or self.tokenizer)(texts, padding=True, return_tensors="pt")
        named = {name: read[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            return model.eval()(**named).logits

    def layers(self, model: PreTrainedModel, rows: int) -> Tensor:
        """After how many layers the first rows leave."""
        read = self.tokenizer(self.data.train.first[:rows], padding=True, return_tensors="pt")
        with torch.no_grad():
            return model(**{n: read[n] for n in ("input_ids", "attention_mask")})["layers"]

    def reopens(self, model: PreTrainedModel, tokenizer=None) -> PreTrainedModel:
        """Saves a model, and checks that the folder opens to the same logits, to the last bit."""
        tokenizer = tokenizer or self.tokenizer
        folder = format.save(model, tokenizer, Path(tempfile.mkdtemp(dir=self.folder)) / "model")
        again, words = format.load(folder)
        assert torch.equal(self.logits(again, words), self.logits(model, tokenizer))
        return again

    def through(self, *techniques: Technique) -> PreTrainedModel:
        """The model with techniques on, finalized, saved and opened again."""
        made = apply_all(self.model, techniques, self.calibration())
        return self.reopens(format.finalize(made, techniques))

    def taught(self, **objective: float) -> None:
        """A student of two of the three layers, taught for two steps by an objective."""
        half, found = LayerReduction((0, 2)), Objective(**objective)
        student = half.apply(self.model)
        found.check(student, self.model)
        budget = Budget(steps=2, batch_size=4, learning_rate=1e-3, max_length=24)
        lesson = Lesson(self.data, self.tokenizer, budget, found, self.model, [half])
        place = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        run = Run(place, 0, "fp32", "cpu", progress=False)
        before = {name: p.detach().clone() for name, p in student.named_parameters()}
        student, notes = train(student, lesson, run)
        assert all(np.isfinite(each["loss"]) for each in notes["losses"])
        assert any(not torch.equal(p, before[n]) for n, p in student.named_parameters())
        self.reopens(format.finalize(student, [half]))


def _quantizes(trial: Trial) -> None:
    student = Quantize(weights="ternary-row").apply(trial.model).train()
    student(input_ids=torch.arange(16).reshape(2, 8)).logits.square().sum().backward()
    linears = encoder_linears(student).values()
    assert len(linears) >= 4 and all(bool(m.weight.grad.any()) for m in linears)


def _thins(trial: Trial) -> None:
    trial.through(Factorize("fisher"), LayerReduction((1, 2)))
    trial.through(Factorize("data", words=0.5), Quantize())


def _leaves(trial: Trial) -> None:
    """Some rows leave on the way, alone and in a batch at the same place."""
    model = trial.through(EarlyExit(criterion="probability"))
    model.config.exits["threshold"] = 0.6
    together = trial.logits(model, rows=8)
    assert int((trial.layers(model, 8) < 3).sum()) > 0
    assert torch.equal(trial.logits(model, rows=1)[0].argmax(), together[0].argmax())


def _drops(trial: Trial) -> None:
    trial.through(DropTokens(keep=[1.0, 0.5, 4]))


def _cuts_vocabulary(trial: Trial) -> None:
    """Only what no row uses goes: rows are read, and answered, as before."""
    cut, data = PruneVocabulary(), trial.calibration()
    student = format.finalize(cut.apply(trial.model, data), [cut])
    _, tokenizer = cut.reads(None, trial.tokenizer, data)
    assert len(tokenizer) == student.config.vocab_size < len(trial.tokenizer)
    again = trial.reopens(student, tokenizer)
    torch.testing.assert_close(
        trial.logits(again, tokenizer), trial.logits(trial.model), rtol=0.01, atol=0.02
    )


def _exports(trial: Trial) -> None:
    import onnxruntime

    from xtclib.deployment.onnx import export_onnx

    # One layer, a local one of ModernBERT's: export takes its time.
    packed = trial.through(LayerReduction((1,)), Quantize(activations=None))
    path = export_onnx(packed, trial.folder / "model.onnx", "trained")
    session = onnxruntime.InferenceSession(str(path))
    for rows in (2, 8):  # other shapes than it was traced by
        read = trial.tokenizer(trial.data.train.first[:rows], padding=True, return_tensors="np")
        given = {"token_type_ids": np.zeros_like(read["input_ids"]), **read}
        found = session.run(None, {i.name: given[i.name] for i in session.get_inputs()})[0]
        np.testing.assert_allclose(found, trial.logits(packed, rows=rows), atol=1e-4)


def _breaks_down(trial: Trial) -> None:
    config = trial.model.config
    found = break_down(config, 1, 24)
    assert found.flops() == flops(config, 1, 24)
    assert found.parameters == sum(p.numel() for p in trial.model.parameters())


CELLS: dict[str, Callable[[Trial], object]] = {
    "quantize": _quantizes,
    "pack, reload": lambda trial: trial.through(Quantize()),
    "layers": lambda trial: trial.through(LayerReduction((1, 2)), Quantize(weights="ternary-row")),
    "heads": lambda trial: trial.through(PruneHeads(keep=0.5, scope="model")),
    "neurons": lambda trial: trial.through(PruneNeurons(keep=0.5, scope="model")),
    "vocabulary": _cuts_vocabulary,
    "thin matrices": _thins,
    "exits": _leaves,
    "tokens": _drops,
    "logits": lambda trial: trial.taught(logits=1),
    "states": lambda trial: trial.taught(hidden_states=1),
    "scores": lambda trial: trial.taught(attention_scores=1),
    "ONNX": _exports,
    "breakdown": _breaks_down,
}


def tiny(family: str, vocabulary: int) -> PreTrainedModel:
    """A random classifier of a family: three layers, 32 wide."""
    kind, own = FAMILIES[family]
    values = {"vocab_size": vocabulary, **_SIZES, **own}
    if kind == "distilbert":  # which has other names for these
        values = {k: v for k, v in values.items() if k in own or k not in list(_SIZES)[:4]}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **values, id2label={0: "negative", 1: "positive"},
        label2id={"negative": 0, "positive": 1},
    )  # fmt: skip
    return AutoModelForSequenceClassification.from_config(config).eval()


def trial(family: str, folder: Path) -> Trial:
    """A family's tiny model with the built-in tokenizer and rows."""
    tokenizer = teachers.load_tokenizer(profiles.BUILT_IN / "backbone", 48)
    data = profiles.data_for("sst2", "smoke")
    return Trial(tiny(family, len(tokenizer)), tokenizer, data, folder)


def row(family: str, folder: Path, cells: Sequence[str] = tuple(CELLS)) -> dict[str, str]:
    """For each cell of a family why it is refused; nothing where it works."""
    given, found = trial(family, folder), {}
    for name in cells:
        found[name] = ""
        try:
            CELLS[name](given)
        except (TypeError, ValueError) as error:
            found[name] = str(error)
            assert found[name] and "\n" not in found[name], name
    return found


def line(family: str, found: dict[str, str]) -> str:
    """A row of the table.

    >>> line("CNN", {"layers": "it has none", "ONNX": ""})
    '| CNN | refused | works |'
    """
    return f"| {family} | {' | '.join('refused' if why else 'works' for why in found.values())} |"


def text(rows: dict[str, dict[str, str]]) -> str:
    """The table, and below it one sentence for each refusal."""
    lines = [f"| encoder | {' | '.join(CELLS)} |", "|---" * (len(CELLS) + 1) + "|"]
    lines += [line(family, found) for family, found in rows.items()]
    told: dict[str, list[str]] = {}
    for family, found in rows.items():
        for name, why in found.items():
            if why:
                told.setdefault(why, []).append(f"{family}, {name}")
    lines += ["", *(f"- {'; '.join(cells)}: *{why}*" for why, cells in told.items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        write_text(FILE, text({name: row(name, Path(place)) for name in FAMILIES}))
