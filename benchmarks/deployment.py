"""Size and latency of one model in every runtime, taken in turns; the table notebook 06 shows.

    python benchmarks/deployment.py [--model bert-base] [--layers 12] [--shapes 1x128,8x128]
                                    [--repeats 10] [--only NAME,NAME] [--out FILE.json]
    python benchmarks/deployment.py --teacher FOLDER --artefact FOLDER …

Random weights of a catalogue shape at one bit (``--layers``: so many of its layers), or a teacher
and its artefact. ``ONNX int8`` is ONNX Runtime's own dynamic quantization of the fp32 file. Prints
sizes, medians, quartiles and ratios to the first runtime, PyTorch's fp32. Not a timed test.
"""

from __future__ import annotations

import sys
from pathlib import Path

import common
import torch

from xtclib import artefact
from xtclib.deployment import runtimes


def main() -> None:
    given = {"model": "bert-base", "layers": 0, "teacher": "", "artefact": ""}
    args = common.options(__doc__, **given, shapes="1x128", repeats=10, only="", out="")
    if bool(args.artefact) != bool(args.teacher):
        sys.exit("--teacher and --artefact go together: two folders")
    if args.artefact:
        packed, _ = artefact.load(args.artefact)
        fp32, _ = artefact.load(args.teacher)
    else:
        fp32 = common.random_model(args.model, args.layers)
        packed = common.one_bit(fp32)
    name = f"{Path(args.artefact).name or args.model}, {fp32.config.num_hidden_layers} layers"
    only = args.only.split(",") if args.only else runtimes.RUNTIMES
    ready = runtimes.runtimes(fp32, packed, only)
    rows = runtimes.latencies(ready, args.shapes, fp32.config.vocab_size, args.repeats)
    print(f"{name}, {torch.get_num_threads()} threads, median of {args.repeats}")
    sizes = {r.name: r.bytes for r in ready}
    for row in rows:
        print(
            f"{row['batch']:>3} × {row['length']:<5}{row['runtime']:<22}"
            f"{sizes[row['runtime']] / 1e6:>9.2f} MB{row['median']:>10.1f} ms  "
            f"({row['low']:.1f} to {row['high']:.1f}){row['ratio']:>7.2f} × {ready[0].name}"
        )
    schemes = packed.config.quantization_config.techniques
    found = {"model": name, "student": schemes, "sizes": sizes, "rows": rows}
    common.write(args.out, found | {"repeats": args.repeats}, "onnxruntime")


if __name__ == "__main__":
    main()
