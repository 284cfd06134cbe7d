"""What the int8 kernel brings: fp32, fake quantization and packed models, timed in turns.

    python benchmarks/integer_path.py [--model bert-base] [--shapes 1x128,8x128] [--repeats 10]
                                      [--out FILE.json]

Random weights of a catalogue shape, quantized by a recipe. The packed model runs twice: on the int8
kernel and, kept from it, in floating point. Both must give the logits of the fake-quantized form
that the packed one unpacks to, bit for bit, or it ends with exit status 1. Prints medians,
quartiles and ratios to fp32; ``--out`` writes them. Not a timed test.
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
from transformers import AutoModelForSequenceClassification

from xtclib import artefact, files, recipes, records, techniques
from xtclib.costs import architectures, latency
from xtclib.techniques.quantization import PackedLinear


def shapes(text: str) -> list[tuple[int, int]]:
    return [tuple(int(n) for n in shape.split("x")) for shape in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-base")
    parser.add_argument("--recipe", default="xtc-1bit")
    parser.add_argument("--shapes", type=shapes, default="1x128,8x128", help="batch x length, …")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", help="a JSON file")
    args = parser.parse_args()
    torch.manual_seed(0)
    config = architectures.config_of(args.model)
    chosen = recipes.load(args.recipe).techniques
    model = AutoModelForSequenceClassification.from_config(config).eval()
    fake = techniques.apply_all(copy.deepcopy(model), chosen).eval()
    packed = artefact.finalize(copy.deepcopy(fake), chosen).eval()
    floating = copy.deepcopy(packed)
    for module in floating.modules():
        if isinstance(module, PackedLinear):
            module.integers = False
    models = {
        "fp32": model,
        "fake quantization": fake,
        "packed, floating point": floating,
        "packed, int8": packed,
    }
    trains = artefact.unpack(copy.deepcopy(packed))
    rows, all_same = [], True
    for batch, length in args.shapes:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, config.vocab_size, (batch, length), generator=generator)
        with torch.inference_mode():
            wanted = packed(ids).logits
            same = all(torch.equal(wanted, other(ids).logits) for other in (floating, trains))
        all_same &= same
        found = latency.of_models(models, batch, length, args.repeats)
        print(
            f"{args.model}, {args.recipe}, {batch} × {length}, {found['threads']} threads, median "
            f"of {args.repeats}; int8, floating point and fake quantization give "
            f"{'the same bits' if same else 'DIFFERENT logits'}"
        )
        base = found["milliseconds"]["fp32"]["median"]
        for name, time in found["milliseconds"].items():
            ratio = round(time["median"] / base, 4)
            rows.append({"model": name, "batch": batch, "length": length, **time, "ratio": ratio})
            print(
                f"{name:<24}{time['median']:>9.1f} ms  ({time['low']:.1f} to {time['high']:.1f})"
                f"{ratio:>8.2f} × fp32"
            )
    if args.out:
        about = {"model": args.model, "recipe": args.recipe, "repeats": args.repeats}
        files.write_json(
            args.out, {**about, "same_bits": all_same, "rows": rows, **records.circumstances()}
        )
    sys.exit(not all_same)


if __name__ == "__main__":
    main()
