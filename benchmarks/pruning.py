"""What pruning brings: milliseconds, bytes, operations.

    python benchmarks/pruning.py [--model bert-base] [--batch 8] [--length 128] [--repeats 10]

Random weights of a catalogue shape, fp32 against fp32 in PyTorch, taken in turns. *Encoder*: the
bytes of its tensors in the file against the unpruned encoder's, both in fp16, so that only what was
removed counts. *File*: the whole, read off the disk, against the unpruned model's in fp32. Where
weights, heads or neurons go, embeddings, pooler and classifier are not pruned. No timed test.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification

from xtclib import architectures, artefact, breakdown, latency, ledger
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bert-base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(architectures.config_of(args.model))
    models, encoder, files, operations = {}, {}, {}, {}
    for name, cuts in CUTS.items():
        models[name] = artefact.finalize(apply_all(copy.deepcopy(model.eval()), cuts), cuts).eval()
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
    times = found["milliseconds"]
    for name in models:
        print(
            f"{name:<22}{times[name]['median']:>9.1f} ms ({times[name]['low']:.1f} to "
            f"{times[name]['high']:.1f}){times[name]['median'] / times[first]['median']:>7.2f} ×"
            f"{operations[name] / operations[first]:>9.2f} × operations"
            f"{encoder[name] / encoder[first]:>7.2f} × encoder{files[name] / 1e6:>9.1f} MB"
            f"{files[name] / whole:>7.3f} × fp32"
        )


if __name__ == "__main__":
    main()
