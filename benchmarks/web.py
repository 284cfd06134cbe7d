"""An exported page in headless Chromium against ONNX Runtime on one thread, on the same file.

    python benchmarks/web.py --folder ARTEFACT [--lengths 8,24,64] [--repeats 30] [--rows 200]
                             [--loads 3] [--out FILE.json]

Writes the page of an artefact, serves it here, and prints: what comes over the wire; the time from
opening the page to its first answer, in fresh profiles; milliseconds of a text of so many tokens,
tokenizer and all, in turns with native, once what the browser compiles in the background is warm;
how far answers to the first rows of the reviews' test differ. Needs the extras `onnx` and
`browser`, and a Chromium.
"""

from __future__ import annotations

import functools
import gzip
import http.server
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import common
import numpy as np
import torch
from playwright.sync_api import sync_playwright

from xtclib import artefact
from xtclib.deployment import runtimes, web
from xtclib.tasks import reviews

FIRST = "xtc.classify(['a warm and funny film']).then(() => performance.now())"
ASK = "(text) => xtc.classify([text]).then(([answer]) => answer)"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """As `python -m http.server`, without its log."""

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    given = {"lengths": "8,24,64", "repeats": 30, "rows": 200, "loads": 3}
    args = common.options(__doc__, folder=None, **given, out="")
    with tempfile.TemporaryDirectory() as place:
        out = web.export_folder(Path(args.folder), Path(place, "out"))
        server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Quiet, directory=str(out))
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        found = measure(out, url, args, native(out, args.folder))
    common.write(args.out, found, "onnxruntime", "playwright")


def native(out: Path, folder: str) -> Callable[[str], np.ndarray]:
    """A text's logits in ONNX Runtime on one thread, from the same file."""
    path = out / "model.onnx"
    if not path.is_file():
        path = out.parent / "model.onnx"
        path.write_bytes(gzip.decompress((out / "model.onnx.gz").read_bytes()))
    model = runtimes.OnnxModel(path, threads=1)
    _, tokenizer = artefact.load(folder)
    longest = min(tokenizer.model_max_length, model.max_length or 512)

    def run(text: str) -> np.ndarray:
        read = tokenizer([text], truncation=True, max_length=longest, return_tensors="pt")
        return model(read["input_ids"], read["attention_mask"]).logits[0].numpy()

    return run


def measure(out: Path, url: str, args, run: Callable[[str], np.ndarray]) -> dict:
    torch.set_num_threads(1)
    found: dict = {}
    with sync_playwright() as playing:
        browser = playing.chromium.launch(executable_path=common.chromium(), args=["--no-sandbox"])
        firsts = []
        for _ in range(args.loads):
            context = browser.new_context()
            page = context.new_page()
            page.goto(url)
            firsts.append(round(page.evaluate(FIRST)))
            context.close()
        page = browser.new_page()
        page.goto(url)
        found["bytes"] = page.evaluate("xtc.ready.then(({ bytes }) => bytes)")
        print("  ".join(f"{part} {size / 1e6:.2f} MB" for part, size in found["bytes"].items()))
        found["first_answer"] = sorted(firsts)
        print(f"first answer after {', '.join(f'{ms} ms' for ms in sorted(firsts))}")
        for _ in range(200):  # until the browser has compiled well what runs often
            page.evaluate(ASK, "a " * 22)
        found["rows"] = times(page, args, run)
        if args.rows and reviews.fetched():
            found["agreement"] = agreement(page, args.rows, run)
        browser.close()
    return found


def times(page, args, run: Callable[[str], np.ndarray]) -> list[dict]:
    rows = []
    print(f"\n{'tokens':>6}{'native':>12}{'Chromium':>12}{'ratio':>8}   (lowest of each)")
    for length in map(int, args.lengths.split(",")):
        text, both = "a " * (length - 2), {"native": [], "chromium": []}
        for _ in range(args.repeats):
            start = time.perf_counter()
            run(text)
            both["native"].append(1000 * (time.perf_counter() - start))
            both["chromium"].append(page.evaluate(ASK, text)["milliseconds"])
        row = {"tokens": length, **{name: statistics.median(ms) for name, ms in both.items()},
               "lowest": {name: min(ms) for name, ms in both.items()}}  # fmt: skip
        rows.append(row)
        native, chromium = row["native"], row["chromium"]
        low = row["lowest"]
        print(f"{length:>6}{native:>9.1f} ms{chromium:>9.1f} ms{chromium / native:>8.1f}   "
              f"({low['native']:.1f} and {low['chromium']:.1f} ms)")  # fmt: skip
    return rows


def agreement(page, count: int, run: Callable[[str], np.ndarray]) -> dict[str, float]:
    texts = next(iter(reviews.REVIEWS.load().evaluation.values())).first[:count]
    wanted = np.stack([run(text) for text in texts])
    answers = page.evaluate("(texts) => xtc.classify(texts)", list(texts))
    close = runtimes.agreement(wanted, np.array([answer["logits"] for answer in answers]))
    print(f"\n{len(texts)} reviews: {close['labels']:.1f} % of labels alike, logits apart "
          f"{close['median']:.1e}, at most {close['largest']:.1e}")  # fmt: skip
    return {"rows": len(texts), **close}


if __name__ == "__main__":
    main()
