"""What the int8 kernel brings: fp32, fake quantization and packed models, timed in turns.

    python benchmarks/integer_path.py [--model bert-base] [--shapes 1x128,8x128] [--repeats 10]
                                      [--out FILE.json]

Random weights of a catalogue shape, quantized by a recipe. The packed model runs twice: on the int8
kernel and, kept from it, in floating point. Both must give the logits of the fake-quantized form
that the packed one unpacks to, bit for bit, or it ends with exit status 1. Prints medians,
quartiles and ratios to fp32. Not a timed test.
"""

from __future__ import annotations

import copy
import sys

import common
import torch

from xtclib import artefact, recipes, techniques
from xtclib.costs import latency
from xtclib.techniques.quantization import PackedLinear


def main() -> None:
    given = {"model": "bert-base", "recipe": "xtc-1bit", "shapes": "1x128,8x128", "repeats": 10}
    args = common.options(__doc__, **given, out="")
    chosen = recipes.load(args.recipe).techniques
    model = common.random_model(args.model)
    fake = techniques.apply_all(copy.deepcopy(model), chosen).eval()
    packed = artefact.finalize(copy.deepcopy(fake), chosen).eval()
    floating = copy.deepcopy(packed)
    for module in floating.modules():
        if isinstance(module, PackedLinear):
            module.integers = False
    models = {"fp32": model, "fake quantization": fake, "packed, floating point": floating,
              "packed, int8": packed}  # fmt: skip
    trains = artefact.trainable(copy.deepcopy(packed))
    rows, all_same = [], True
    for batch, length in args.shapes:
        ids = latency.random_ids(model.config.vocab_size, batch, length)
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
    about = {"model": args.model, "recipe": args.recipe, "repeats": args.repeats}
    common.write(args.out, about | {"same_bits": all_same, "rows": rows})
    sys.exit(not all_same)


if __name__ == "__main__":
    main()
