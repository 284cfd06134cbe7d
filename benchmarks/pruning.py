"""What pruning brings: milliseconds, bytes, operations.

    python benchmarks/pruning.py [--model bert-base] [--batch 8] [--length 128] [--repeats 10]
                                 [--out FILE.json]

Random weights of a catalogue shape, fp32 against fp32 in PyTorch, taken in turns. *Encoder*: the
bytes of its tensors in the file against the unpruned encoder's, both in fp16, so that only what was
removed counts. *File*: the whole, read off the disk, against the unpruned model's in fp32. Where
weights, heads or neurons go, embeddings, pooler and classifier are not pruned. No timed test.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import common

from xtclib import artefact
from xtclib.artefact import ledger
from xtclib.costs import breakdown, latency
from xtclib.techniques import PruneHeads, PruneNeurons, PruneWidth, Sparsify, apply_all

CUTS = {
    "nothing removed": [],
    "half the heads": [PruneHeads()],
    "half the neurons": [PruneNeurons()],
    "half of both": [PruneHeads(), PruneNeurons()],
    "half of both, uneven": [PruneHeads(scope="model"), PruneNeurons(scope="model")],
    "half the width": [PruneWidth()],
    "50 % zeros": [Sparsify(0.5)],
    "2:4 zeros": [Sparsify(pattern="2:4")],
    "90 % zeros": [Sparsify(0.9)],
}


def main() -> None:
    args = common.options(__doc__, model="bert-base", batch=8, length=128, repeats=10, out="")
    model = common.random_model(args.model)
    models, encoder, files, operations = {}, {}, {}, {}
    for name, cuts in CUTS.items():
        models[name] = artefact.finalize(apply_all(copy.deepcopy(model), cuts), cuts).eval()
        if cuts:
            with tempfile.TemporaryDirectory() as folder:
                models[name].save_pretrained(Path(folder))
                entries = ledger.byte_ledger(folder)
        else:
            entries = ledger.plan(model.config, [])  # in fp16 like the others
        files[name] = sum(e.bytes for e in entries)
        encoder[name] = sum(e.bytes for e in entries if ".encoder." in e.tensor)
        operations[name] = breakdown.flops(models[name].config, 1, args.length)
    found = latency.of_models(models, args.batch, args.length, args.repeats)
    print(f"{args.model}, batch {args.batch}, length {args.length}, {found['threads']} threads, "
          f"median of {args.repeats}, fp32")  # fmt: skip
    first = next(iter(models))
    whole = 4 * breakdown.parameters(model)
    times, rows = found["milliseconds"], []
    for name in models:
        row = {
            "what": name, **times[name],
            "time": round(times[name]["median"] / times[first]["median"], 4),
            "operations": round(operations[name] / operations[first], 4),
            "encoder": round(encoder[name] / encoder[first], 4),
            "bytes": files[name], "file": round(files[name] / whole, 4),
        }  # fmt: skip
        rows.append(row)
        print(
            f"{name:<22}{row['median']:>9.1f} ms ({row['low']:.1f} to {row['high']:.1f})"
            f"{row['time']:>7.2f} ×{row['operations']:>9.2f} × operations"
            f"{row['encoder']:>7.2f} × encoder{row['bytes'] / 1e6:>9.1f} MB"
            f"{row['file']:>7.3f} × fp32"
        )
    about = {"model": args.model, "batch": args.batch, "length": args.length}
    common.write(args.out, about | {"repeats": args.repeats, "rows": rows})


if __name__ == "__main__":
    main()
