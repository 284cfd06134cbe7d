"""What loading a packed model takes: seconds, and peak memory against what it then occupies.

    python benchmarks/load_memory.py [--layers 12] [--repeats 3] [--out FILE.json]

BERT-base's shape at one bit, random weights. Each repeat is a fresh process, which first loads and
runs a tiny packed model, so that the libraries' own memory is not counted. *Occupies*: bytes of the
model's tensors, packed as loaded, and with the int8 weights of its first run. *Peak*: the process's
highest resident memory less that before (Linux only). Not a timed test.
"""

from __future__ import annotations

import gc
import multiprocessing
import re
import statistics
import tempfile
import time
from pathlib import Path

import common
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, PreTrainedModel

from xtclib import artefact
from xtclib.techniques.quantization import PackedLinear


def status(key: str) -> float:
    """A line of this process's status, in MB of 10⁶ bytes."""
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 / 1e6


def occupied(model) -> float:
    """MB of a model's parameters and buffers, and of the weights it unpacked."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, PackedLinear) and module._unpacked is not None:
            tensors += module._unpacked[:2]
    return sum(t.numel() * t.element_size() for t in tensors) / 1e6


def measure(folder: str, tiny: str) -> dict[str, float]:
    """Loads and runs the model of a folder in this process."""
    ids = torch.arange(5, 21).view(1, -1)

    def run(path: str):
        start = time.perf_counter()
        model = AutoModelForSequenceClassification.from_pretrained(path)
        seconds, packed, loaded = time.perf_counter() - start, occupied(model), status("VmHWM")
        with torch.inference_mode():
            model(ids)
        return {"seconds": seconds, "packed": packed, "loading": loaded,
                "unpacked": occupied(model), "running": status("VmHWM")}  # fmt: skip

    run(tiny)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    found = run(folder)
    return found | {"loading": found["loading"] - before, "running": found["running"] - before}


def save(model: PreTrainedModel, folder: Path) -> dict[str, float]:
    """Writes a model at one bit; how long that took and how large it is."""
    packed = common.one_bit(model)
    start = time.perf_counter()
    packed.save_pretrained(folder)
    seconds = time.perf_counter() - start
    return {"saving": seconds, "file": (folder / artefact.WEIGHTS).stat().st_size / 1e6}


def main() -> None:
    args = common.options(__doc__, layers=12, repeats=3, out="")
    model = common.random_model("bert-base", args.layers)
    layers = f"{model.config.num_hidden_layers} layers"
    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny = common.random_model(BertConfig(**small, intermediate_size=64, vocab_size=99))
    with tempfile.TemporaryDirectory() as folder:
        save(tiny, Path(folder, "tiny"))
        saved = save(model, Path(folder, "model"))
        jobs = [(f"{folder}/model", f"{folder}/tiny")] * args.repeats
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as fresh:
            runs = fresh.starmap(measure, jobs, chunksize=1)
    found = saved | {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    print(f"{layers}, {found['file']:.2f} MB: saved in {found['saving']:.2f} s, "
          f"loaded in {found['seconds']:.2f} s (medians of {args.repeats} processes)")  # fmt: skip
    for name, own, peak in (("packed", "packed", "loading"), ("unpacked", "unpacked", "running")):
        print(f"{name:<10}occupies {found[own]:>7.1f} MB, peak {found[peak]:>7.1f} MB: "
              f"{found[peak] / found[own]:.2f} ×")  # fmt: skip
    about = {"model": f"bert-base, {layers}", "student": "1 bit"}
    numbers = {key: round(value, 3) for key, value in found.items()}
    common.write(args.out, about | {"megabytes and seconds": numbers, "repeats": args.repeats})


if __name__ == "__main__":
    main()
