"""The picture of a search: every measured trial once, by what became of it."""

from types import SimpleNamespace

import pytest
from made import made

plots = pytest.importorskip("xtclib.figures.search", exc_type=ImportError)
from xtclib.study.search import Found  # noqa: E402

# Score and bytes: two on the front, one beaten, one poor, one refused (which has no record).
TRIALS = [(90.0, 5000), (80.0, 1000), (79.0, 2000), (51.0, 500)]


@pytest.fixture
def found():
    records, trials = {}, []
    for number, (score, size) in enumerate(TRIALS):
        record = made(f"mine-t{number}", score, size)
        record.measures["search"] = {"chosen": {"budget.steps": number}}
        records[number] = record
        short = {"beats the majority class": 60.0 - score}
        trials.append(SimpleNamespace(number=number, values=[score, size], constraints=short))
    trials.append(SimpleNamespace(number=4, values=None, constraints={"can be run": 100.0}))
    study = SimpleNamespace(trials=trials, best_trials=trials[:2])
    return Found(SimpleNamespace(objectives=("score", "bytes")), study, records, {4: "refused"})


def test_each_trial_is_drawn_by_what_became_of_it(found):
    figure = plots.trials(found)
    drawn = {t.name: [*zip(t.x, t.y, strict=True)] for t in figure.data if t.name}
    assert drawn["beaten by none"] == [(0.005, 90.0), (0.001, 80.0)]
    assert drawn["beaten"] == [(0.002, 79.0)] and drawn["as the majority class"] == [(0.0005, 51.0)]
    assert [*zip(figure.data[0].x, figure.data[0].y, strict=True)] == [(0.001, 80.0), (0.005, 90.0)]
    title = figure.layout.title.text.replace("<br>", " ")
    assert title == "2 of 4 trials are beaten by none; t0 scores highest, 90.0 in 0.00500 MB"
    assert {a.text for a in figure.layout.annotations} == {"t0", "t1", "teacher"}
    assert "budget.steps: 2" in str(figure.to_json())
    assert figure.layout.xaxis.title.text == "file on disk, MB"


def test_against_time_and_where_there_is_nothing(found):
    figure = plots.trials(found, "milliseconds")
    assert figure.layout.xaxis.title.text == "ms a batch"
    assert [x for t in figure.data for x in t.x if t.name == "beaten"] == [5.0]
    with pytest.raises(ValueError, match="received a search without a measured trial"):
        plots.trials(Found(found.design, found.study, {}, {}))
    found.study.best_trials = []
    assert plots.trials(found).layout.title.text.startswith("None of 4 trials beats")
