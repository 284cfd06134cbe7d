"""What thin matrices and passages read before save on this machine's clock, beside operations.

    python benchmarks/decomposition.py [--shape bert-base] [--threads 2] [--repeats 10] [--out FILE]

Random weights. First the encoder's matrices as products of two, at 25, 50 and 75 % of their values,
batch 1 and 8 of 128 tokens. Then DeFormer: 9 of 12 layers read question (32 tokens) and passage
(288) apart, in turns with the whole model on 320 tokens, batch 1 and 32: with the passages in a
cache on disk, without, and in 8 bits; the peak memory of each in a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import common
import torch
from transformers import PreTrainedTokenizerFast

from xtclib import artefact
from xtclib.cache import ROOT
from xtclib.costs import architectures, breakdown, latency
from xtclib.techniques import DeFormer, Factorize, Quantize, apply_all
from xtclib.techniques.deformer.passages import PassageCache

SHARES, QUESTION, PASSAGE, LENGTH, LAYERS = (0.75, 0.5, 0.25), 32, 288, 128, 0.75


def thin(shape: str, repeats: int) -> list[dict]:
    """Milliseconds and operations of each share, beside the whole model's."""
    whole = common.random_model(shape)
    models = {"whole": whole}
    for share in SHARES:
        technique = [Factorize(share=share)]
        models[f"{share:.0%}"] = technique[0].finalize(technique[0].apply(whole)).eval()
    flops = {name: breakdown.break_down(model, 1, LENGTH).flops() for name, model in models.items()}
    rows = []
    for batch in (1, 8):
        times = latency.of_models(models, batch, LENGTH, repeats)["milliseconds"]
        for name in list(models)[1:]:
            ratio = times["whole"]["median"] / times[name]["median"]
            rows.append({"share": name, "batch": batch, "length": LENGTH, "faster": ratio,
                         "operations": flops[name] / flops["whole"], "times": times[name],
                         "whole": times["whole"]})  # fmt: skip
    return rows


def apart(shape: str, kind: str):
    """The model that reads texts apart, in fp32 or with 8-bit weights and inputs."""
    techniques = [DeFormer(LAYERS)]
    techniques += [Quantize("int8-row", "int8-row", "int8-token")] if kind == "int8" else []
    return artefact.finalize(apply_all(common.random_model(shape), techniques), techniques).eval()


def texts(tokenizer, count: int) -> tuple[list[str], list[str]]:
    """Questions and passages whose tokens, with those around them, are QUESTION and PASSAGE."""
    words = [w for w in tokenizer.get_vocab() if w.isalpha()]
    words = [w for w in words if len(tokenizer.tokenize(w)) == 1][:997]

    def text(start, length):
        return " ".join(words[(start * 31 + i * 7) % len(words)] for i in range(length))

    return ([text(i, QUESTION - 2) for i in range(count)],
            [text(i + 500, PASSAGE - 1) for i in range(count)])  # fmt: skip


def runs(shape: str, batch: int, folder: str) -> dict:
    """What is timed: the whole model, and those that read apart, with a cache and without."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "data" / "mini" / "backbone")
    first, second = texts(tokenizer, batch)
    pairs = tokenizer(first, second, return_tensors="pt", return_token_type_ids=True)
    assert pairs["input_ids"].shape == (batch, QUESTION + PASSAGE)
    found = {"whole": partial(common.random_model(shape), **pairs)}
    for kind in ("fp32", "int8"):
        model = apart(shape, kind)
        cache = PassageCache(Path(folder, f"{kind}-{batch}"), model, tokenizer)
        ids = cache.add(second)
        found[f"{kind}, cached"] = partial(cache.logits, first, ids)
        found[f"{kind}, uncached"] = partial(model, **pairs)
        found[f"{kind} bytes"] = cache.bytes / len(cache)
    return found


def deformer(shape: str, repeats: int, threads: int) -> list[dict]:
    """Milliseconds and peak memory of each run, beside the whole model's."""
    rows: list[dict] = []
    depth = architectures.config_of(shape).num_hidden_layers
    flops = breakdown.deformer(shape, QUESTION + PASSAGE, QUESTION, round(LAYERS * depth)).flops()
    operations = flops / breakdown.break_down(shape, 1, QUESTION + PASSAGE).flops()
    for batch in (1, 32):
        with tempfile.TemporaryDirectory() as folder:
            made = runs(shape, batch, folder)
            sizes = {name[:4]: made.pop(name) for name in list(made) if name.endswith("bytes")}
            with torch.inference_mode():
                times = latency.in_turns(made, repeats, warm_up=1)
        rows += [{"run": name, "batch": batch, "times": found, "operations": operations,
                  "faster": times["whole"]["median"] / found["median"],
                  "bytes a passage": sizes.get(name[:4])}
                 for name, found in times.items()]  # fmt: skip
    print("timed; memory, a process each", flush=True)
    return [row | peak(shape, row["batch"], row["run"], threads) for row in rows]


def peak(shape: str, batch: int, name: str, threads: int) -> dict[str, float]:
    """Peak memory in MB of one run in a process of its own, and how much the run itself added."""
    command = [sys.executable, __file__, "--shape", shape, "--batch", str(batch), "--run", name,
               "--threads", str(threads)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def alone(shape: str, batch: int, name: str) -> None:
    """One run, and the process's memory before and after it."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "data" / "mini" / "backbone")
    first, second = texts(tokenizer, batch)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        if name == "whole" or name.endswith("uncached"):
            model = common.random_model(shape) if name == "whole" else apart(shape, name[:4])
            pairs = tokenizer(first, second, return_tensors="pt", return_token_type_ids=True)
            run = partial(model, **pairs)
        else:
            cache = PassageCache(folder, apart(shape, name[:4]), tokenizer)
            run = partial(cache.logits, first, cache.add(second, batch_size=1))
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = resident("VmRSS")
        run()
    after = resident("VmHWM")
    print(json.dumps({"peak MB": after, "added MB": after - before}))


def resident(name: str) -> float:
    """This process's memory in MB, now (``VmRSS``) or at its peak (``VmHWM``): Linux tells it."""
    said = Path("/proc/self/status").read_text()
    return float(said.partition(f"{name}:")[2].split()[0]) * 1024 / 1e6


def main() -> None:
    args = common.options(
        __doc__, shape="bert-base", threads=2, repeats=10, out="", run="", batch=1
    )
    torch.set_num_threads(args.threads)
    if args.run:
        return alone(args.shape, args.batch, args.run)
    found = {"thin": thin(args.shape, args.repeats)}
    print(f"{'share':>8}{'batch':>7}{'operations':>12}{'faster':>9}")
    for row in found["thin"]:
        print(f"{row['share']:>8}{row['batch']:>7}{row['operations']:>12.2f}{row['faster']:>9.2f}")
    found["deformer"] = deformer(args.shape, args.repeats, args.threads)
    print(f"{'run':>16}{'batch':>7}{'faster':>9}{'peak MB':>9}{'added MB':>10}{'KB/passage':>12}")
    for row in found["deformer"]:
        size = (row["bytes a passage"] or 0) / 1e3
        print(f"{row['run']:>16}{row['batch']:>7}{row['faster']:>9.2f}{row['peak MB']:>9.0f}"
              f"{row['added MB']:>10.0f}{size:>12.0f}")  # fmt: skip
    common.write(args.out, {**found, "threads": args.threads, "shape": args.shape,
                            "repeats": args.repeats})  # fmt: skip


if __name__ == "__main__":
    main()
