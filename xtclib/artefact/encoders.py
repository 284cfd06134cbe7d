"""What makes an artefact without a head a sentence encoder: how its states become one vector."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from xtclib.bert import has_no_head, longest
from xtclib.files import write_json

_MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}


def write_pooling(model: PreTrainedModel, folder: Path) -> None:
    """Adds the files by which ``sentence-transformers`` takes the mean and makes it of length one.

    They say what :func:`xtclib.bert.text_vectors` does. A model with a head gets none.
    """
    if not has_no_head(model):
        return
    kinds = {path: f"sentence_transformers.models.{kind}" for path, kind in _MODULES.items()}
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind}
               for i, (path, kind) in enumerate(kinds.items())]  # fmt: skip
    write_json(folder / "modules.json", modules)
    mean = {"word_embedding_dimension": model.config.hidden_size, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", mean)
    (folder / "2_Normalize").mkdir()
    write_json(folder / "2_Normalize" / "config.json", {})
    about = {"max_seq_length": longest(model), "do_lower_case": False}
    write_json(folder / "sentence_bert_config.json", about)
