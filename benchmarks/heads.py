"""What a tagger and a sentence encoder lose first, as their weights lose bits.

    python benchmarks/heads.py [--steps 30,100,300] [--longest 10000] [--glue-dir DIR]
                               [--parts tagger,encoder,news] [--out FILE]

A MiniLM that learned the generated names (`scripts/names.py`) and the plain MiniLM as an encoder of
reviews, tweets and editorials. Both are rounded to 8, 4, 3 and 2 bits without training; then to one
bit, trained for some steps: the tagger by `xtc-1bit`, the encoder by `logits-1bit`, for longer too,
and once by `xtc-1bit`. Of the tagger: the share of spans found, by kind, and by whether the name
stands in the training rows. Of the encoder, on texts kept apart: the mean cosine to the teacher's
vectors, the rank correlation of all pairs' cosines, and the nearest others that stay so; with a
GLUE folder also that correlation over MRPC's test pairs, sentences of news that it never read. The
part `news` trains the longest once more, on MRPC's and CoLA's training sentences too, of which none
is one of the test pairs'; it needs the GLUE folder, and a file of its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import common
import numpy as np
from scipy.stats import spearmanr
from seqeval.metrics.sequence_labeling import get_entities

from xtclib.cache import ROOT
from xtclib.study import profiles
from xtclib.study.compress import compress
from xtclib.tasks import Split, Vectors, evaluation, find_task, reviews, tags, vectors
from xtclib.techniques import Quantize

sys.path.insert(0, str(ROOT / "scripts"))
from names import write  # noqa: E402 - it lies in another folder

BITS = {8: "int8-row", 4: "int4-row", 3: "int3-row", 2: "int2-row"}


def found_by_kind(task, data, answers) -> dict[str, dict]:
    """Percent of the test spans that were found, by kind, and of names seen in training or not."""
    split, train = data.evaluation["test"], data.train
    known = {name for words, row in zip(train.first, train.labels, strict=True)
             for name in names(task, words, row)}  # fmt: skip
    counts: dict[str, list[bool]] = {}
    for words, row, answer in zip(split.first, split.labels, answers, strict=True):
        told = set(get_entities(task.named(answer)))
        for span in get_entities(task.named(row)):
            name = " ".join(words[span[1] : span[2] + 1])
            for group in (span[0], "name seen" if name in known else "name new"):
                counts.setdefault(group, []).append(span in told)
    return {"found": {group: 100 * float(np.mean(hits)) for group, hits in sorted(counts.items())},
            "counts": {group: len(hits) for group, hits in sorted(counts.items())}}  # fmt: skip


def names(task, words, row) -> list[str]:
    """The names in a sentence."""
    return [" ".join(words[a : b + 1]) for _, a, b in get_entities(task.named(row))]


def rounded(model, scheme: str):
    """A model with its weights and word vectors at these bits, untrained."""
    technique = Quantize(scheme, scheme, None)
    return technique.finalize(technique.apply(model)).eval()


def measure(task, runs: dict[str, tuple[str, str]], show) -> list[dict]:
    """Rows of a task: how it was compressed, and what ``show`` makes of the answers.

    ``runs``: recipe and budget of what is trained, by what it is called.
    """
    chosen = profiles.profile("reviews")
    data = profiles.data_for(task, chosen)
    teacher = profiles.teacher_for(task, chosen, data, progress=False)
    length = chosen.teacher.max_length
    models = {"fp32": teacher.model}
    models |= {f"{bits} bits": rounded(teacher.model, scheme) for bits, scheme in BITS.items()}
    for name, (recipe, budget) in runs.items():
        run = compress(recipe, task, chosen, budget, teacher=teacher, progress=False)
        models[name] = run.student
    rows = []
    for name, model in models.items():
        for split, found in evaluation.evaluate(model, teacher.tokenizer, data, length).items():
            rows.append({"model": name, "split": split, **found})
        rows[-1] |= show(data, model, teacher.tokenizer, length)
        print(rows[-1], flush=True)
    return rows


def mrpc_pairs(folder: str):
    """How alike models find MRPC's test pairs, in the order of the first one to be asked."""
    data = next(iter(find_task("mrpc").load(folder).evaluation.values()))
    texts, known = [*data.first, *data.second], []

    def order(_, model, tokenizer, length):
        rows = Split(texts, None, [0] * len(texts))
        found = np.stack(evaluation.answers(model, tokenizer, Vectors(), rows, length))
        cosines = (found[: len(data)] * found[len(data) :]).sum(-1)
        known.append(cosines)
        return {"mrpc pairs": 100 * float(spearmanr(cosines, known[0]).statistic)}

    return order


def news(folder: str) -> list[str]:
    """The training sentences of MRPC and CoLA, but for those that MRPC's test pairs hold."""
    mrpc, cola = (find_task(name).load(folder) for name in ("mrpc", "cola"))
    test = next(iter(mrpc.evaluation.values()))
    held = {*test.first, *test.second}
    texts = [*mrpc.train.first, *mrpc.train.second, *cola.train.first]
    return [text for text in texts if text not in held]


def main() -> None:
    args = common.options(__doc__, steps="30,100,300", longest=10000, glue_dir="",
                          parts="tagger,encoder", out="")  # fmt: skip
    steps, parts = args.steps.split(","), args.parts.split(",")
    found = {}
    runs = {f"1 bit, {count} steps": ("xtc-1bit", f"{count}steps") for count in steps}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "names"))
        text, more = Path(folder, "reviews.txt"), Path(folder, "news.txt")
        sentences = [*reviews.rated()[0], *reviews.unlabelled()]
        text.write_text("\n".join(sentences), encoding="utf-8")

        def by_kind(data, model, tokenizer, length):
            split = data.evaluation["test"]
            answers = evaluation.answers(model, tokenizer, data.task, split, length)
            return found_by_kind(data.task, data, answers)

        if "tagger" in parts:
            found["tagger"] = measure(tags(Path(folder, "names")), runs, by_kind)
        longest = {f"1 bit, {args.longest} steps": ("logits-1bit", f"{args.longest}steps")}
        runs = {f"1 bit, by layers too, {steps[-1]} steps": ("xtc-1bit", f"{steps[-1]}steps")}
        runs |= {f"1 bit, {count} steps": ("logits-1bit", f"{count}steps") for count in steps}
        compared = mrpc_pairs if args.glue_dir else lambda _: lambda *_: {}
        if "encoder" in parts:
            found["encoder"] = measure(vectors(text), runs | longest, compared(args.glue_dir))
        if "news" in parts:
            more.write_text("\n".join([*sentences, *news(args.glue_dir)]), encoding="utf-8")
            found["news"] = measure(vectors(more), longest, compared(args.glue_dir))
    common.write(args.out, found | {"seed": 0})


if __name__ == "__main__":
    main()
