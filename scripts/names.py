"""Generates a tagged set, for trying token classification: python scripts/names.py build/names

Sentences of a company's mail, with people, places, companies and products. Names are made of
syllables, so that half of those in the test part were never seen; a product is twenty times rarer
than a person, and some names are a person's in one sentence and a place's in another: only the
words around them tell.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from random import Random

FIRST = "Ada Boris Carla Dimitri Elena Farid Greta Hugo Irina Jonas Katya Liam Mona Nadia".split()
STARTS = "Bal Cor Dren Fal Gor Hal Kel Lor Mar Nor Pel Quin Ros Sel Tav Ul Ver Wen Yor Zan".split()
ENDS = "bridge croft dale den field ford gate ham holt by mere more ridge stead ton wick".split()
MADE = "ax ex ix ora ium ola ico ando elle oid".split()
FIRM = "Ltd Group Partners Holdings Labs".split()
HOW_OFTEN = {"PER": 40, "LOC": 20, "ORG": 10, "PROD": 2}
# What is in braces is a name of that kind; what is around it tells which.
WAYS = {
    "PER": [
        "{PER} called this morning and wants the report by noon .",
        "Please ask {PER} whether the figures are final .",
        "I met {PER} and her brother {PER} at the station .",
        "As {PER} said yesterday , nobody read the contract .",
        "Thanks to {PER} , the printer works again .",
        "{PER} from accounts is ill , so {PER} will take the minutes .",
    ],
    "LOC": [
        "We leave for {LOC} on the early train .",
        "The warehouse near {LOC} floods every spring .",
        "{PER} moved from {LOC} to {LOC} last year .",
        "It has rained in {LOC} since Tuesday .",
        "The road between {LOC} and the harbour is closed .",
    ],
    "ORG": [
        "The lawyers of {ORG} sent another letter .",
        "{ORG} raised its prices again , says {PER} .",
        "Our offer to {ORG} expires on Friday .",
        "{PER} left {ORG} after nine years .",
        "Shares of {ORG} fell after the meeting in {LOC} .",
    ],
    "PROD": [
        "The {PROD} overheats when it runs all night .",
        "{PER} returned the {PROD} because its lid was cracked .",
        "We sold two units of the {PROD} in {LOC} .",
    ],
}


def name(kind: str, random: Random, often: bool) -> str:
    """A name of a kind; ``often``: one of the few that come again and again."""
    size = 4 if often else len(STARTS)
    last = STARTS[random.randrange(size)] + ENDS[random.randrange(size if often else len(ENDS))]
    if kind == "PER":
        return f"{random.choice(FIRST)} {last}" if random.random() < 0.6 else last
    if kind == "ORG":
        return f"{last} {random.choice(FIRM)}" if random.random() < 0.6 else last
    if kind == "PROD":
        return f"{random.choice(STARTS)}{random.choice(MADE)} {random.randrange(100, 1000)}"
    return last


def sentence(random: Random) -> list[tuple[str, str]]:
    """Words with their tags."""
    kind = random.choices(list(WAYS), list(HOW_OFTEN.values()))[0]
    found = []
    for word in random.choice(WAYS[kind]).split():
        if word.startswith("{"):
            parts = name(word[1:-1], random, random.random() < 0.5).split()
            found += [(p, f"{'I' if i else 'B'}-{word[1:-1]}") for i, p in enumerate(parts)]
        else:
            found.append((word, "O"))
    return found


def write(out: Path, train: int = 2000, test: int = 1000) -> None:
    """The two files of the set, the same at every call."""
    out.mkdir(parents=True, exist_ok=True)
    for seed, (part, count) in enumerate({"train": train, "test": test}.items()):
        random = Random(seed)
        rows = [sentence(random) for _ in range(count)]
        text = "\n".join("".join(f"{word}\t{tag}\n" for word, tag in row) for row in rows)
        (out / f"{part}.conll").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    write(parser.parse_args().out)
