"""A real student's answers in every scheme and runtime, over a whole dev set.

    python benchmarks/onnx_agreement.py --glue-dir FOLDER [--task sst2] [--budget 2000steps]
                                        [--recipes xtc-1bit,xtc-1bit-uint8] [--out FILE.json]

Takes the students of profile ``minilm`` from the cache, or trains them. For each: the metric in
PyTorch with the scheme it was trained with and with ONNX's (uint8, one scale a tensor), and in ONNX
Runtime with both; how many labels agree with the scheme that is deployed, and how far the logits
are apart. *Disturbed*: PyTorch against itself with noise of 1e-7 on the embeddings, the floor under
any agreement. Then the rows one at a time: one scale a tensor makes an answer depend on its batch.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import common
import torch

from xtclib.deployment import onnx, runtimes
from xtclib.study.compress import Result, compress
from xtclib.tasks import evaluation
from xtclib.techniques.quantization import with_activations


def main() -> None:
    given = {"task": "sst2", "budget": "2000steps", "recipes": "xtc-1bit,xtc-1bit-uint8"}
    args = common.options(__doc__, glue_dir=None, **given, out="")
    found = []
    for name in args.recipes.split(","):
        run = compress(name, args.task, "minilm", args.budget, 0, args.glue_dir, progress=False)
        found += compare(name, run)
    about = {"task": args.task, "budget": args.budget, "seed": 0, "rows": found}
    common.write(args.out, about, "onnxruntime")


def compare(name: str, run: Result) -> list[dict]:
    """Rows of one student: what runs, against what, metric, agreement."""
    ((split_name, split),) = run.data.evaluation.items()
    trained = run.student
    tensor = with_activations(trained, onnx.DYNAMIC)
    with tempfile.TemporaryDirectory() as folder:
        onnx_files = {}
        for chosen in onnx.ACTIVATIONS:
            path = onnx.export_onnx(trained, Path(folder, f"{chosen}.onnx"), chosen)
            onnx_files[chosen] = runtimes.OnnxModel(path)

    def predict(model, batch: int = 64):
        return evaluation.predict(model, run.tokenizer, split, 128, batch)

    def disturbed(model):
        """The same model with noise of relative size 1e-7 on its embeddings: a last digit's."""
        model = copy.deepcopy(model)
        generator = torch.Generator().manual_seed(0)
        model.base_model.embeddings.register_forward_hook(
            lambda _m, _i, out: out * (1 + 1e-7 * torch.randn(out.shape, generator=generator))
        )
        return predict(model)

    own, dynamic = predict(trained), predict(tensor)
    in_onnx = predict(onnx_files["dynamic"])
    cases = [
        ("PyTorch, as trained", own, "itself", own),
        ("PyTorch, ONNX's scheme", dynamic, "PyTorch, as trained", own),
        ("ONNX, as trained", predict(onnx_files["trained"]), "PyTorch, as trained", own),
        ("ONNX, ONNX's scheme", in_onnx, "PyTorch, ONNX's scheme", dynamic),
        ("ONNX, ONNX's scheme", in_onnx, "PyTorch, as trained", own),
        ("PyTorch, as trained, disturbed", disturbed(trained), "PyTorch, as trained", own),
        ("PyTorch, ONNX's scheme, disturbed", disturbed(tensor), "PyTorch, ONNX's scheme", dynamic),
        ("PyTorch, as trained, one by one", predict(trained, 1), "PyTorch, as trained", own),
        ("PyTorch, ONNX's scheme, one by one", predict(tensor, 1), "PyTorch, ONNX's scheme",
         dynamic),
    ]  # fmt: skip
    rows = []
    print(f"\n{name}, {run.data.task.name} {split_name}, {len(split.labels)} rows")
    for what, logits, against, wanted in cases:
        decided = run.data.task.decide(logits)
        score = run.data.task.score(decided, split.labels)
        row = {"recipe": name, "what": what, "against": against, "metrics": score,
               **runtimes.agreement(wanted, logits)}  # fmt: skip
        rows.append(row)
        shown = ", ".join(f"{k} {v:.2f}" for k, v in score.items())
        print(f"{what:<36}{shown:<18}{row['labels']:>7.2f} % of labels as {against:<24}"
              f"logits apart {row['median']:.1e}, at most {row['largest']:.1e}")  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
