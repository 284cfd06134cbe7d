"""How fast packed models run: PyTorch and ONNX Runtime, fp32 and int8, timed in turns.

    python benchmarks/onnx_latency.py [--model bert-base] [--layers 12] [--batch 1] [--length 128]
                                      [--repeats 20] [--only NAME,NAME]

Random weights of a catalogue shape at one bit. ``ONNX int8`` is ONNX Runtime's own dynamic
quantization of the fp32 file. Prints the files' sizes, medians, quartiles and ratios to PyTorch's
fp32. Not a timed test.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from onnxruntime.quantization import quantize_dynamic
from transformers import AutoModelForSequenceClassification

from xtclib import architectures, artefact, latency, onnx_export
from xtclib.techniques import LayerReduction, Quantize, Storage, apply_all


def onnx_files(folder: Path, fp32, packed) -> dict[str, Path]:
    """The four files that are compared; ``fp32`` and ``packed`` are the models."""
    paths = {
        name: folder / f"{name}.onnx"
        for name in ("ONNX fp32", "ONNX int8", "ONNX packed", "ONNX packed, trained scheme")
    }
    about = {"xtc": '{"labels": [], "max_length": 512, "activations": "none"}'}
    fp32_file, int8_file, *ours = paths.values()
    fp32_file.write_bytes(onnx_export.to_onnx(copy.deepcopy(fp32), about))
    quantize_dynamic(fp32_file, int8_file)
    for path, activations in zip(ours, onnx_export.ACTIVATIONS, strict=True):
        onnx_export.export_onnx(packed, path, activations)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-base")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", default="", help="names to time, with commas between")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = architectures.config_of(args.model)
    fp32 = AutoModelForSequenceClassification.from_config(config).eval()
    if args.layers != config.num_hidden_layers:
        fp32 = LayerReduction(layers=args.layers).apply(fp32).eval()
    chosen = [
        Quantize("binary", "binary-row", "int8-token"),
        Storage(pooler="int8-row", positions="int8-row"),
    ]
    packed = artefact.finalize(apply_all(fp32, chosen), chosen).eval()
    ids = torch.randint(5, config.vocab_size, (args.batch, args.length))
    with tempfile.TemporaryDirectory() as folder:
        models: dict[str, Callable] = {"PyTorch fp32": fp32, "PyTorch packed": packed}
        sizes = {}
        for name, path in onnx_files(Path(folder), fp32, packed).items():
            models[name] = onnx_export.OnnxModel(path)
            sizes[name] = path.stat().st_size / 1e6
    if args.only:
        models = {n: m for n, m in models.items() if n in ["PyTorch fp32", *args.only.split(",")]}
    with torch.inference_mode():
        runs = {name: (lambda model=model: model(ids)) for name, model in models.items()}
        times = latency.in_turns(runs, args.repeats, pause=0.1)
    print(
        f"{args.model}, {args.layers} layers, 1 bit, batch {args.batch}, length {args.length}, "
        f"{torch.get_num_threads()} threads, median of {args.repeats}"
    )
    for name, time in times.items():
        size = f"{sizes[name]:>9.2f} MB" if name in sizes else " " * 12
        print(
            f"{name:<30}{size}{time['median']:>9.1f} ms  ({time['low']:.1f} to {time['high']:.1f})"
            f"{time['median'] / times['PyTorch fp32']['median']:>7.2f} × PyTorch fp32"
        )


if __name__ == "__main__":
    main()
