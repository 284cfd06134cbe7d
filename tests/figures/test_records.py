"""What stands in the figures: axes with units, one shape a recipe, the numbers themselves."""

import math

import pytest
import torch
from made import made

plots = pytest.importorskip("xtclib.figures.records", exc_type=ImportError)
from xtclib import records as results  # noqa: E402
from xtclib.artefact.ledger import Entry  # noqa: E402
from xtclib.figures import deployment, distillation, quantization, style, training  # noqa: E402


def seeds(recipe, scores, size, **other):
    return [made(recipe, score, size, seed=i, **other) for i, score in enumerate(scores)]


TWO = [*seeds("xtc-1bit", (88.0, 90.0, 91.0), 500_000), *seeds("xtc-half", (92.0, 93.0), 5_000_000)]


def axes(figure):
    return [a.title.text for a in (*figure.select_xaxes(), *figure.select_yaxes()) if a.title.text]


def words(figure):
    return [a.text for a in figure.layout.annotations]


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("dark, pages", [(None, "#ffffff #111111"), (0, "#ffffff"), (1, "#111111")])
def test_text_has_contrast_on_its_page(dark, pages):
    ink = style.template(None if dark is None else bool(dark)).layout.font.color
    for page in pages.split():
        low, high = sorted((luminance(ink), luminance(page)))
        assert (high + 0.05) / (low + 0.05) >= (4.1 if dark is None else 7)


def test_a_themed_figure_is_a_copy():
    figure = distillation.layer_map(1, 2, [0, 2])
    before = figure.to_json()
    assert style.themed(figure, True).layout.template.layout.font.color == "#dddddd"
    assert figure.to_json() == before


def test_grouped():
    first, second = results.grouped(TWO)
    assert (first.recipe, first.n, first.low, first.high, first.bytes) == (
        "xtc-1bit", 3, 88.0, 91.0, 500_000
    )  # fmt: skip
    assert first.mean == pytest.approx(269 / 3) and second.mean == 92.5
    assert (first.teacher, first.majority, first.teacher_bytes) == (94.0, 50.0, 10_000_000)


def test_grouped_takes_the_mean_over_tasks_before_the_range_over_seeds():
    records = [made(score=s, task=t, seed=i) for i, pair in enumerate([(80, 90), (70, 80)])
               for s, t in zip(pair, ("sst2", "rte"), strict=True)]  # fmt: skip
    (group,) = results.grouped(records)
    assert group.scores == (85, 75) and group.tasks == ("rte", "sst2")
    with pytest.raises(ValueError, match=r"xtc-1bit, budget A, seed 1 lacks \['sst2'\]"):
        results.grouped([r for r in records if (r.seed, r.task) != (1, "sst2")])
    assert {r.task for r in results.common([*records, made("other", task="rte")])} == {"rte"}


def test_grouped_refuses_a_mix():
    with pytest.raises(ValueError, match="mini, minilm"):
        results.grouped([made(), made(profile="minilm")])
    with pytest.raises(ValueError, match="doubles"):
        results.grouped([made(), made()])


def test_size_accuracy():
    figure = plots.size_accuracy(TWO)
    assert axes(figure) == [
        "file on disk, MB (bars: range of 3 seeds)", "score on sst2, %"
    ]  # fmt: skip
    assert figure.layout.xaxis.type == "log"
    first, second, teacher = figure.data
    assert (first.x[0], teacher.x[0], teacher.y[0]) == (0.5, 10.0, 94.0)
    assert first.error_y.array[0] == pytest.approx(91 - 269 / 3)
    assert first.error_y.arrayminus[0] == pytest.approx(269 / 3 - 88)
    assert len({d.marker.symbol for d in figure.data}) == 3
    assert words(figure) == ["xtc-1bit", "xtc-half", "teacher"]
    assert "20 × smaller" in figure.layout.title.text.replace("<br>", " ")


def test_published_points_are_hollow_and_in_another_panel():
    figure = plots.size_accuracy(TWO, plots.published())
    hollow = [d for d in figure.data if d.yaxis == "y2"]
    assert sum(len(d.x) for d in hollow) == 11
    assert all(d.marker.symbol.endswith("-open") for d in hollow)
    (half,) = [x for d in hollow for x, y in zip(d.x, d.y, strict=True) if y == 81.8]
    assert half == pytest.approx(8 * 2**20 / 1e6)
    assert "published: parameters × bits, MB" in axes(figure)


def test_bars():
    figure = plots.bars(TWO)
    bar, dots = figure.data
    assert list(bar.y) == ["xtc-1bit", "xtc-half"] and bar.x[1] == 92.5
    assert len(dots.x) == 5 and dots.marker.symbol == "circle-open"
    assert {"teacher", "majority", "92.5"} <= set(words(figure))
    assert [s.x0 for s in figure.layout.shapes] == [94.0, 50.0]
    assert axes(figure) == ["score on sst2, % (circles: seeds)"]


def test_budgets():
    records = [r for b, base in zip("ABC", (80, 85, 88), strict=True)
               for r in seeds("xtc-1bit", (base, base + 2), 5, budget=b,
                              training_budget={"steps": 100 * base})]  # fmt: skip
    figure = training.budgets([*records, made("cut-half", 60.0)])
    assert list(figure.data[0].y) == [81, 86, 89] and len(figure.data[1].y) == 1
    assert figure.layout.xaxis.ticktext == ("A<br>300 steps", "B<br>8500 steps", "C<br>8800 steps")
    assert figure.data[0].line.dash != figure.data[1].line.dash
    assert set(words(figure)) == {"xtc-1bit", "cut-half", "teacher"}
    assert "+8.0 points from A to C" in figure.layout.title.text.replace("<br>", " ")


def test_budgets_stand_in_the_order_of_their_length():
    records = [r for steps, base in ((2000, 85), (4000, 88), (500, 80))
               for r in seeds("xtc-1bit", (base,), 5, budget=f"{steps}steps",
                              training_budget={"steps": steps})]  # fmt: skip
    figure = training.budgets(records)
    assert figure.layout.xaxis.ticktext == ("500 steps", "2000 steps", "4000 steps")
    assert list(figure.data[0].y) == [80, 85, 88]
    told = figure.layout.title.text.replace("<br>", " ")
    assert "+8.0 points from 500steps to 4000steps" in told


def test_names_far_from_their_ends_are_joined_to_them():
    records = [r for name, last in (("xtc-1bit", "C"), ("xtc-half", "B"))
               for budget in "ABC"[: "ABC".index(last) + 1]
               for r in seeds(name, (80,), 5, budget=budget,
                              training_budget={"steps": 100 * "ABC".index(budget)})]  # fmt: skip
    figure = training.budgets(records)
    joined = {note.text: (note.x, note.y) for note in figure.layout.annotations if note.showarrow}
    line = next(trace for trace in figure.data if trace.name == "xtc-half")
    assert joined["xtc-half"] == (line.x[-1], line.y[-1])


def test_loss_curves():
    stage = made().stages[0]
    figure = training.loss_curves(made(stages=[stage, stage | {"name": "two"}]))
    names = [d.name for d in figure.data]
    assert names == ["sum", "logits", "hidden states"]  # the third term is 0: no log of it
    assert list(figure.data[0].x) == [1, 150, 300, None, 301, 450, 600]
    assert figure.layout.yaxis.type == "log" and words(figure) == ["two"]
    assert len({(d.line.dash, d.marker.symbol) for d in figure.data}) == 3
    assert axes(figure) == ["optimizer steps", "loss, interval mean"]
    both = training.loss_curves(seeds("xtc-1bit", (1.0, 2.0), 5))
    assert len(both.data) == 6 and sum(d.showlegend for d in both.data) == 3
    with pytest.raises(ValueError, match="no record with losses"):
        training.loss_curves(made(stages=[]))


def test_latency():
    figure = plots.latency(TWO)
    (bar,) = figure.data
    assert list(bar.y) == ["xtc-half", "xtc-1bit", "teacher"] and list(bar.x) == [5, 5, 10]
    assert bar.error_x.array[2] == 2 and bar.error_x.arrayminus[2] == 1
    assert "ms a batch of 8 × 32 tokens" in axes(figure)[0] and "1 thread;" in axes(figure)[0]
    assert list(plots.latency(made().latency).data[0].y) == ["student", "teacher"]
    with pytest.raises(ValueError, match="expected one"):
        plots.latency([made(), made(latency=made().latency | {"threads": 2})])


def test_quantization_curve():
    weights = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    figure = quantization.quantization_curve(weights, ["binary", "ternary-row", "int4", "uint3"])
    assert [len(d.x) for d in figure.data] == [81, 2, 3, 15, 8]
    alpha = float(weights.abs().mean())
    assert list(figure.data[1].x) == pytest.approx([-alpha, alpha])
    assert sum(figure.data[0].y) == pytest.approx(100, abs=0.2)
    assert figure.data[1].y[0].startswith("binary<br>6")
    assert len({d.marker.symbol for d in figure.data[1:]}) == 4
    assert axes(figure) == ["weight, and the values kept", "% of weights"]


def test_error_by_bits():
    figure = quantization.error_by_bits(
        torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    )
    tensor, row = figure.data
    assert list(tensor.x) == list(range(1, 9)) and list(tensor.customdata)[:2] == [
        "binary", "ternary"
    ]  # fmt: skip
    assert tensor.y[0] == pytest.approx(100 * math.sqrt(1 - 2 / math.pi), abs=1)
    assert row.y[7] < tensor.y[7] < 2
    assert axes(figure) == [
        "bits a weight (1 binary, 2 ternary, then int)",
        "relative error, % of ‖w‖",
    ]


def test_layer_map():
    figure = distillation.layer_map(5, 12, [1, 3, 5, 7, 9, 11])
    assert len(figure.data[1].x) == 13 and len(figure.data[2].x) == 6
    assert "its last layer teaches nobody" in style.alt(figure)
    with pytest.raises(ValueError, match="expected 3 states, each 0 to 4"):
        distillation.layer_map(2, 4, [0, 5, 4])


def test_scores_heatmap():
    student, teacher = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, float("-inf")]])
    figure = distillation.scores_heatmap(student, teacher, ["a", "b"])
    assert [d.name for d in figure.data] == ["teacher", "student", "difference"]
    assert list(figure.data[2].z[0]) == [-1.0, -2.0] and figure.data[2].z[1][1] is None
    assert (figure.layout.coloraxis2.cmin, figure.layout.coloraxis2.cmax) == (-3, 3)
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 2\) for 3 tokens"):
        distillation.scores_heatmap(student, teacher, ["a", "b", "c"])


def test_ledger_adds_up():
    names = ["bert.encoder.layer.0.attention.self.query.weight", "bert.encoder.layer.1.output.x",
             "bert.embeddings.word_embeddings.weight", "classifier.bias", "header"]  # fmt: skip
    rows = [Entry(n, (i,), "uint8", 10 * i + 1, i, 8, 1) for i, n in enumerate(names)]
    (tree,) = deployment.ledger(rows).data
    sizes = dict(zip(tree.ids, tree.values, strict=True))
    assert sizes["file"] == 105 and sizes["layers"] == 12 and sizes["layers/layer 2"] == 11
    for key in tree.ids:
        children = [sizes[i] for i, p in zip(tree.ids, tree.parents, strict=True) if p == key]
        assert not children or sum(children) == sizes[key]


@pytest.mark.slow
def test_gallery_of_records(tmp_path):
    figures = pytest.importorskip("figures", exc_type=ImportError)
    longer = [made().stages[0] | {"steps": 900}]
    for record in [
        *TWO,
        made("xtc-1bit", 95.0, 500_000, budget="B", stages=longer),
        made("ptq", 60.0, task="rte"),
    ]:
        record.save(tmp_path)
    found = figures.gallery(tmp_path)
    assert [n for n in found if n.startswith("mini-")] == [
        "mini-benchmark", "mini-size-accuracy", "mini-recipes", "mini-budgets", "mini-latency",
        "mini-loss",
    ]  # fmt: skip
    assert list(found["mini-recipes"].data[0].x) == [92.5, 95.0]  # xtc-1bit at its longest, B
    page = figures.readme(found)
    assert all(f'<img src="{name}.svg"' in page for name in found) and 'alt=""' not in page
    assert not any(name.startswith("mini") for name in figures.gallery(tmp_path / "none"))


def test_a_budget_is_named_where_something_was_trained():
    found = [made("xtc-1bit"), made("xtc-1bit", budget="B"), made("ptq-1bit", stages=[])]
    texts = {a.text for a in plots.size_accuracy(found).layout.annotations}
    assert {"xtc-1bit, A", "xtc-1bit, B", "ptq-1bit"} <= texts
    texts = {a.text for a in plots.size_accuracy([found[1], found[2]]).layout.annotations}
    assert {"xtc-1bit", "ptq-1bit"} <= texts


def test_a_term_of_the_first_stage_alone_ends_with_it():
    """TinyBERT compares layers first and answers after."""
    stages = [
        {"name": "layers", "steps": 2, "losses": [
            {"step": 1, "loss": 4.0, "loss_hidden_states": 4.0},
            {"step": 2, "loss": 2.0, "loss_hidden_states": 2.0}]},
        {"name": "answers", "steps": 2, "losses": [
            {"step": 1, "loss": 1.0, "loss_logits": 1.0},
            {"step": 2, "loss": 0.1, "loss_logits": 0.1}]},
    ]  # fmt: skip
    figure = training.loss_curves(made(stages=stages))
    lines = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert lines["hidden states"] == ([1, 2], [4.0, 2.0])
    assert lines["logits"] == ([3, 4], [1.0, 0.1])
    title = figure.layout.title.text.replace("<br>", " ")
    assert title == "The loss on logits falls furthest, by a factor of 10.0"
