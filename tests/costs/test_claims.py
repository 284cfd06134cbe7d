"""Published costs: which come out, how nearly, and which do not."""

import pytest

from xtclib.costs.claims import Claim, backbone_parameters, claim_table, claims, deformer_fits
from xtclib.costs.published import select, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found():
    return {claim.what: claim for claim in claims()}


# What came out, in percent of the printed value; printed values are the sources' own.
WITHIN = {
    "BERT-base: parameters": (109, 0.44),
    "BERT-base: operations": (22.5, -0.67),
    "BERT-base-6L-PKD: parameters": (66.5, 0.68),
    "BERT-base-6L-PKD: operations": (11.3, -1.11),
    "BERT-base-3L-PKD: parameters": (45.3, 0.86),
    "BERT-base-3L-PKD: operations": (5.7, -1.96),
    "PKD, 6 layers: compression factor": (1.64, -0.29),
    "PKD, 3 layers: compression factor": (2.40, -0.16),
    "BERT-base at 320 tokens: operations": (58.4, -0.03),
    "BERT-large at 320 tokens: operations": (204.1, -0.05),
    "Decomp-BERT-large, 20 + 4 layers": (47.7, -0.03),
    "BERT-base in fp32": (417.2, 0.11),
    "XTC-BERT*, 12 layers, 1 bit: reduction": (32, 0),
    "XTC-BERT*, 12 layers, 2 bit: reduction": (16, 0),
    "XTC-BERT*, 6 layers, 1 bit: reduction": (52, 0.63),
    "Quantization, row 2, with embeddings": (15, 1.48),
    "Quantization, row 2, without embeddings": (12.5, 0),
    "Param. Sharing, row 21, with embeddings": (10.7, -0.27),
    "Param. Sharing, row 21, without embeddings": (8.8, 1.88),
}


@pytest.mark.parametrize("what", WITHIN)
def test_comes_out_within_two_percent(found, what):
    printed, difference = WITHIN[what]
    assert found[what].printed == printed
    assert 100 * found[what].difference == pytest.approx(difference, abs=0.01)
    assert found[what].verdict == "within 2 %"


@pytest.mark.parametrize("width, plain, factor", [(192, 17.05, 5.74), (96, 58.42, 19.41),
                                                  (48, 181.58, 61.94)])  # fmt: skip
def test_small_vocabularies_count_the_student_three_times(found, width, plain, factor):
    claim = found[f"{width} wide: compression factor"]
    assert (claim.printed, claim.verdict) == (factor, "explained")
    assert claim.plain == pytest.approx(plain, abs=0.01)
    assert abs(claim.difference) < 0.016


def test_what_is_not_explained_is_said(found):
    assert {what for what, claim in found.items() if claim.verdict == "not explained"} == {
        "MobileBERT: parameters",
        "MobileBERT: operations",
        "OpenAI GPT: parameters",
        "Quantization, row 3, without embeddings",
        "Multiple KD combined, row 15, without embeddings",
        "Multiple KD combined, row 16, without embeddings",
    }


def test_what_needs_another_printed_number_is_only_consistent(found):
    given = {what for what, claim in found.items() if claim.given}
    assert {found[what].verdict for what in given} == {"consistent"} and len(given) == 10
    assert "Quantization with KD, row 25, without embeddings" in given
    assert found["Quantization, row 2, with embeddings"].verdict == "within 2 %"


def test_printed_values_come_from_the_tables(found):
    cell = select(table("mobilebert"), system="MobileBERT", metric="operations")[0]
    assert found["MobileBERT: operations"].printed == cell["value"] == 5.7
    assert all(claim.where and claim.how for claim in found.values())


def test_deformers_split_is_not_unique():
    assert deformer_fits(47.7) == ((19, 11), (20, 27), (21, 42), (22, 55), (23, 67))
    assert deformer_fits(1.0) == ()


def test_backbones_leave_the_classifier_out():
    assert backbone_parameters("bert-base") == 109_482_240
    assert backbone_parameters("distilbert") == 66_362_880


def test_the_table_says_difference_and_verdict():
    claim = Claim("a model", 10.0, 12.0, "M", "how", "where", plain=30.0)
    head, how, line = claim_table([claim]).splitlines()
    assert line.split() == "a model 10 12 +20.0% not explained".split()
    assert how == "· how (plain reading: 30.0)" and head.split()[0] == "printed"
    assert max(map(len, claim_table().splitlines())) < 96  # a page's width
    close = Claim("a model", 10.0, 10.1, "M", "how", "where")
    assert close.verdict == "within 2 %" and close.difference == pytest.approx(0.01)
