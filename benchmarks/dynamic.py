"""What leaving early and dropping tokens save on this machine's clock, beside their operations.

    python benchmarks/dynamic.py [--task reviews] [--glue-dir DIR] [--budget A] [--repeats 5]
                                 [--shape bert-base] [--threads 1] [--out FILE]

First the trained exits of `fastbert` on the rows reported, at batch 1, 8 and 32: as many rows with
exits that never fire; at several speeds with the rows that have left taken out, and with a batch
that waits for its last; beside half the layers and rows padded to one length. Then the same exits
in ONNX Runtime, one session a segment. Then a larger shape with random weights, to which the
layers after which rows left are replayed, and which drops tokens by a schedule.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial

import common
import numpy as np
import torch
from torch import Tensor

import xtclib
from xtclib.bert import encoder_layers, keep_layers, spread
from xtclib.costs import latency
from xtclib.deployment import onnx, runtimes, segments
from xtclib.tasks.base import batched
from xtclib.tasks.rows import widened
from xtclib.techniques import DropTokens, EarlyExit
from xtclib.techniques.dynamic import calibration, dropping

SPEEDS, SIZES, LENGTH = (1.5, 2.0, 3.0), (1, 8, 32), 128
PUBLISHED = (1.25, 2.5, 3.14)  # the speeds of the sources' rows, given to the larger shape
SCHEDULE = (0.95, 0.85, 0.7, 0.55, 0.4, 0.3)  # shares of the tokens, of each pair of 12 layers


class Replay:
    """Leaves after the layers that it is told, row by row, in the place of a judge."""

    def __init__(self, layers: np.ndarray, after: tuple[int, ...]) -> None:
        self.layers, self.after = torch.from_numpy(layers), iter(after)

    def sure(self, logits: Tensor, certainty: Tensor | None = None) -> Tensor:
        return 2.0 * (self.layers <= next(self.after))

    def keep(self, rows: Tensor) -> None:
        self.layers = self.layers[rows]


def through(model, given: list[dict[str, Tensor]]) -> None:
    for batch in given:
        model(**batch)


def replayed(model, given: list, layers: list[np.ndarray], wait: bool) -> None:
    """Batches whose rows leave as told; ``wait``: none before the last of its batch."""
    own = model.exits
    for batch, each in zip(given, layers, strict=True):
        chosen = np.full_like(each, each.max()) if wait else each
        own.judged = partial(Replay, chosen, own.after)
        model(**batch)


def timed(runs: dict[str, Callable], repeats: int) -> dict[str, dict]:
    """Quartiles of each run, and how many times as fast as the whole model it is."""
    with torch.inference_mode():
        found = latency.in_turns(runs, repeats, warm_up=1)
    base = found["whole"]["median"]
    return {n: {**times, "faster": base / times["median"]} for n, times in found.items()}


def exits(args, whole, model, tokenizer, data, length: int) -> list[dict]:
    """Trained exits at several speeds and batches."""
    rows = []
    half = keep_layers(whole, spread(len(encoder_layers(whole)) // 2, len(encoder_layers(whole))))
    for size in SIZES:
        given = batched(data, tokenizer, length, size)
        wide = [widened(batch, length, tokenizer.pad_token_id) for batch in given]
        runs = {"whole": partial(through, whole, given), "half": partial(through, half, given),
                "padded to one length": partial(through, whole, wide)}  # fmt: skip
        promised = {"half": 2.0}
        for name, threshold in (("off", "never"), ("never fire", 0.0)):
            runs[name] = partial(at, model, threshold, given)
        for speed in SPEEDS:
            calibration.set_speed(model, speed)
            threshold = model.config.exits["threshold"]
            layers = [left(model, batch) for batch in given]
            tokens = [batch["attention_mask"].sum(1).numpy() for batch in given]
            run = sum((t * la).sum() for t, la in zip(tokens, layers, strict=True))
            promise = model.exits.depth * sum(t.sum() for t in tokens) / run
            runs[f"{speed:g}"] = partial(at, model, threshold, given)
            runs[f"{speed:g}, waiting"] = partial(waiting, model, threshold, given, layers)
            promised |= {f"{speed:g}": promise, f"{speed:g}, waiting": promise}
        for name, found in timed(runs, args.repeats).items():
            rows.append({"run": name, "batch": size, "promised": promised.get(name, 1.0), **found})
    return rows


def at(model, threshold: float | str, given: list) -> None:
    model.config.exits["threshold"] = threshold
    through(model, given)


def waiting(model, threshold: float | str, given: list, layers: list[np.ndarray]) -> None:
    """Batches that go on until their last row is sure, as without regrouping."""
    model.config.exits["threshold"] = threshold
    before = model.exits.judged
    replayed(model, given, layers, wait=True)
    model.exits.judged = before


def left(model, batch: dict) -> np.ndarray:
    with torch.inference_mode():
        return model(**batch)["layers"].numpy()


def in_onnx(args, whole, model, tokenizer, data, length: int) -> list[dict]:
    """The same exits in ONNX Runtime, beside the whole model as one file."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        one = runtimes.OnnxModel(onnx.export_onnx(whole, f"{folder}/whole.onnx"))
        several = segments.SegmentedModel(segments.export_segments(model, f"{folder}/segments"))
        for size in SIZES:
            given = batched(data, tokenizer, length, size)
            runs = {"whole": partial(through, one, given)}
            for speed in SPEEDS:
                calibration.set_speed(model, speed)
                threshold = model.config.exits["threshold"]
                runs[f"{speed:g}"] = partial(segmented, several, threshold, given)
            runs["never fire"] = partial(segmented, several, 0.0, given)
            rows += [{"run": name, "batch": size, **found}
                     for name, found in timed(runs, args.repeats).items()]  # fmt: skip
    return rows


def segmented(model: segments.SegmentedModel, threshold: float | str, given: list) -> None:
    model.threshold = threshold
    through(model, given)


def larger(args, layers: np.ndarray, depth: int) -> list[dict]:
    """Exit layers of trained exits, replayed at a larger shape, and tokens dropped there."""
    plain, rows = common.random_model(args.shape), []
    deep = len(encoder_layers(plain))
    model = EarlyExit(head="pooler").apply(plain).eval()
    model.config.exits["threshold"] = 0.5
    shares = np.repeat(SCHEDULE, deep // len(SCHEDULE)).tolist()
    drops = DropTokens(by="rank", keep=shares)
    dropped = drops.finalize(drops.apply(plain)).eval()
    for size in (1, 8):
        ids = latency.random_ids(plain.config.vocab_size, size, LENGTH)
        given = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}] * max(8 // size, 1)
        runs = {"whole": partial(through, plain, given)}
        promised = {"tokens dropped": dropping.counted(dropped, given[:1])["speed"]}
        runs["tokens dropped"] = partial(through, dropped, given)
        for speed in PUBLISHED:
            chosen = sample(layers * deep // depth, deep / speed, deep, len(given) * size)
            each = [chosen[i :: len(given)] for i in range(len(given))]
            runs[f"{speed:g}"] = partial(replayed, model, given, each, wait=False)
            promised[f"{speed:g}"] = deep / chosen.mean()
        for name, found in timed(runs, args.repeats).items():
            rows.append({"run": name, "batch": size, "promised": promised.get(name, 1.0), **found})
    return rows


def sample(layers: np.ndarray, mean: float, deep: int, count: int) -> np.ndarray:
    """So many of the layers after which rows left, in their order, scaled to a mean."""
    found = np.quantile(layers, (np.arange(count) + 0.5) / count)
    for _ in range(50):
        found = np.clip(found * mean / found.mean(), 1, deep)
    found = np.round(found).astype(int)
    while abs(found.sum() - mean * count) >= 1:
        step = 1 if found.sum() < mean * count else -1
        movable = np.flatnonzero((found + step >= 1) & (found + step <= deep))
        found[movable[len(movable) // 2]] += step
    return np.random.default_rng(0).permutation(found)


def main() -> None:
    args = common.options(__doc__, task="reviews", glue_dir="", budget="A", repeats=5,
                          shape="bert-base", threads=1, out="")  # fmt: skip
    torch.set_num_threads(args.threads)
    made = xtclib.compress("fastbert", task=args.task, glue_dir=args.glue_dir or None,
                           budget=args.budget, progress=False)  # fmt: skip
    length = made.record.training_budget["max_length"]
    whole, model = made.teacher.model.eval(), made.student.eval()
    given = whole, model, made.tokenizer, made.data, length
    found: dict = {"exits": exits(args, *given)}
    table("exits", found["exits"])
    found["onnx"] = in_onnx(args, *given)
    table("ONNX Runtime, one session a segment", found["onnx"])
    calibration.set_speed(model, 2.0)
    layers = np.concatenate(
        [left(model, batch) for batch in batched(made.data, made.tokenizer, length, 32, 1000)]
    )
    found["larger"] = larger(args, layers, model.exits.depth)
    table(f"{args.shape}, {LENGTH} tokens", found["larger"])
    common.write(args.out, {**found, "threads": args.threads, "shape": args.shape,
                            "repeats": args.repeats, "task": args.task})  # fmt: skip


def table(title: str, rows: list[dict]) -> None:
    print(f"\n{title}\n{'run':>22}{'batch':>7}{'operations':>12}{'clock':>8}")
    for row in rows:
        promised = f"{row['promised']:.2f}" if "promised" in row else ""
        print(f"{row['run']:>22}{row['batch']:>7}{promised:>12}{row['faster']:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
