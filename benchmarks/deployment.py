"""Size and latency of one model in every runtime, taken in turns; the table notebook 06 shows.

    python benchmarks/deployment.py [--model bert-base] [--layers 12] [--shapes 1x128,8x128]
                                    [--repeats 10] [--only NAME,NAME] [--out FILE.json]
    python benchmarks/deployment.py --teacher FOLDER --artefact FOLDER …

Random weights of a catalogue shape at one bit, or a teacher and its artefact. ``ONNX int8`` is ONNX
Runtime's own dynamic quantization of the fp32 file. Prints sizes, medians, quartiles and ratios to
PyTorch's fp32; ``--out`` writes them with versions, machine and commit. Not a timed test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification

from xtclib import artefact, files, records
from xtclib.costs import architectures
from xtclib.deployment import runtimes
from xtclib.techniques import LayerReduction, Quantize, Storage, apply_all


def random_models(name: str, layers: int):
    """A model of a catalogue shape and its one-bit form, random weights."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(architectures.config_of(name)).eval()
    if layers and layers != model.config.num_hidden_layers:
        model = LayerReduction(layers=layers).apply(model).eval()
    chosen = [Quantize(), Storage(pooler="int8-row", positions="int8-row")]
    return model, artefact.finalize(apply_all(model, chosen), chosen).eval()


def shapes(text: str) -> list[tuple[int, int]]:
    return [tuple(int(n) for n in shape.split("x")) for shape in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-base")
    parser.add_argument("--layers", type=int, default=0, help="so many of the model's layers")
    parser.add_argument("--teacher", help="a folder, with --artefact; instead of --model")
    parser.add_argument("--artefact")
    parser.add_argument("--shapes", type=shapes, default="1x128", help="batch x length, …")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--only", default="", help="runtimes to time, with commas between")
    parser.add_argument("--out", help="a JSON file")
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    if bool(args.artefact) != bool(args.teacher):
        parser.error("--teacher and --artefact go together: two folders")
    if args.artefact:
        packed, _ = artefact.load(args.artefact)
        fp32, _ = artefact.load(args.teacher)
        name = f"{Path(args.artefact).name}, {fp32.config.num_hidden_layers} layers"
    else:
        fp32, packed = random_models(args.model, args.layers)
        name = f"{args.model}, {fp32.config.num_hidden_layers} layers"
    ready = runtimes.runtimes(
        fp32, packed, args.only.split(",") if args.only else runtimes.RUNTIMES
    )
    rows = runtimes.latencies(ready, args.shapes, fp32.config.vocab_size, args.repeats)
    schemes = packed.config.quantization_config.techniques
    print(f"{name}, {torch.get_num_threads()} threads, median of {args.repeats}")
    sizes = {r.name: r.bytes for r in ready}
    for row in rows:
        print(
            f"{row['batch']:>3} × {row['length']:<5}{row['runtime']:<22}"
            f"{sizes[row['runtime']] / 1e6:>9.2f} MB{row['median']:>10.1f} ms  "
            f"({row['low']:.1f} to {row['high']:.1f}){row['ratio']:>7.2f} × {ready[0].name}"
        )
    if args.out:
        found = {
            "model": name, "student": schemes, "sizes": sizes, "rows": rows,
            "repeats": args.repeats,
            **records.circumstances("onnxruntime"),
        }  # fmt: skip
        files.write_json(args.out, found)


if __name__ == "__main__":
    main()
