import json

import pytest

from xtclib.cache import ROOT
from xtclib.figures import heads

FOUND = {"fp32": (100, 100, 99, 100), "1 bit": (80, 70, 40, 3)}
COUNTS = {"PER": 90, "LOC": 40, "ORG": 20, "PROD": 5}
TAGGER = [
    {"model": name, "found": dict(zip(COUNTS, found, strict=True)), "counts": COUNTS}
    for name, found in FOUND.items()
]
ENCODER = [
    {"model": "8 bits", "cosine": 99.0, "spearman": 98.0, "top-10": 95.0, "top-1": 90.0},
    {"model": "1 bit", "cosine": 80.0, "spearman": 70.0, "top-10": 50.0, "top-1": 40.0},
]


def test_the_tagger_is_shown_by_kind_and_the_title_says_which_goes_first():
    figure = heads.spans_found(TAGGER)
    assert figure.layout.title.text.startswith("What is rare goes first: products")
    assert [trace.name for trace in figure.data][:2] == ["persons (90)", "places (40)"]
    assert list(figure.data[3].y) == [100, 3] and list(figure.data[0].x) == ["fp32", "1 bit"]
    other = [row | {"found": row["found"] | {"PROD": 100, "ORG": 0}} for row in TAGGER]
    assert heads.spans_found(other).layout.title.text.startswith("companies are lost")


@pytest.mark.parametrize("cosine, title", [(80.0, "Neighbours change"), (10.0, "What an encoder")])
def test_the_encoders_title_is_what_it_shows(cosine, title):
    figure = heads.vectors_kept([ENCODER[0], ENCODER[1] | {"cosine": cosine}])
    assert figure.layout.title.text.startswith(title) and len(figure.data) == 4
    assert list(figure.data[3].y) == [90.0, 40.0]


def test_the_page_says_what_was_measured():
    page = " ".join((ROOT / "OWN_DATA.md").read_text(encoding="utf-8").split())
    measured = ROOT / "data" / "results" / "deployment" / "heads.json"
    rows = json.loads(measured.read_text(encoding="utf-8"))
    tagger, encoder = ({row["model"]: row for row in rows[k]} for k in ("tagger", "encoder"))
    found = tagger["3 bits"]["found"]
    assert f"{found['PER']:.1f} % of the persons" in page
    assert f"{found['PROD']:.1f} % of the products" in page
    assert found["name seen"] > found["name new"]
    four, last = encoder["4 bits"], encoder["1 bit, 10000 steps"]
    assert f"mean cosine is {four['cosine'] / 100:.2f}" in page and 50 < four["top-1"] < 55
    short, layers = (encoder[f"1 bit, {how}300 steps"] for how in ("", "by layers too, "))
    assert f"a Spearman of {short['spearman'] / 100:.2f}" in page
    assert f"(`xtc-1bit`) has {layers['spearman'] / 100:.2f}" in page
    assert f"to {last['spearman'] / 100:.2f} in 3.68 MB" in page
    assert f"it is {last['mrpc pairs'] / 100:.2f}; read" in page
    read = json.loads(measured.with_name("heads-news.json").read_text(encoding="utf-8"))
    news = {row["model"]: row for row in read["news"]}["1 bit, 10000 steps"]
    assert f"it is {news['mrpc pairs'] / 100:.2f}, and of the texts" in page
    assert 49 < news["top-1"] < 51 and f"{news['top-10']:.0f} % of the nearest ten" in page
    assert news["mrpc pairs"] - last["mrpc pairs"] > 3
