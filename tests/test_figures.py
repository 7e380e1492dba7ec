"""What the figures show: the right numbers at the right places, legible without colour, stamped when synthetic."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_curve

from fusion_nb.compare import compare_models
from fusion_nb.figures import (plot_differences, plot_examples, plot_importance, plot_intervals, plot_roc, plot_training, roc_bands,
                               save_figure)
from fusion_nb.predictions import Scores
from fusion_nb.resample import bootstrap_metrics, intervals
from fusion_nb.schema import Cohort, DataError, Variable

MODELS = ("image_only", "table_only", "learned_concat")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1], [90, 60])
    cases = pd.DataFrame({"case_id": np.arange(150), "group": np.arange(150) // 2, "fold": 0, "label": label})
    noise = 1 / (1 + np.exp(-rng.normal(size=(150, 3)) - np.outer(label, [0.5, 1.0, 2.0])))
    return Scores(cases, MODELS, noise)


@pytest.fixture(scope="module")
def resamples(scores):
    return bootstrap_metrics(scores, ["auc", "specificity_at_95_sensitivity", "brier"], n=100, seed=0)


def texts(figure):
    found = [t.get_text() for ax in figure.axes for t in ax.texts] + [t.get_text() for t in figure.texts]
    return found + [ax.get_title(loc=loc) for ax in figure.axes for loc in ("left", "center")]


def cohort(folder, synthetic=True):
    for i in range(4): Image.fromarray(np.full((20, 30), 60 * i, np.uint8)).save(folder / f"{i}.png")
    table = pd.DataFrame({"case_id": list("abcd"), "group": list("abcd"), "label": [1, 0, 1, 0], "image": [str(folder / f"{i}.png") for i in range(4)],
                          "age": [61.0, 47.0, np.nan, 33.0], "signs": [("lump", "pain"), (), None, ("none",)]})
    return Cohort("four", table, (Variable("age", "continuous"), Variable("signs", "multi")), ("benign", "malignant"), "Made up.", synthetic=synthetic)


EXAMPLES = pd.DataFrame({"kind": ["TP", "FP", "FN", "TN"], "case_id": list("abcd"), "score": [0.9, 0.6, 0.2, 0.1], "threshold": 0.5})
HISTORY = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": [0.7, 0.5, 0.3], "val_loss": [0.7, 0.6, 0.8], "val_auc": [0.5, 0.8, 0.7], "lr": 1e-3})
SUMMARY = pd.DataFrame({"variable": ["age", "signs"], "median": [4.0, 1.0], "low": [3.0, -1.0], "high": [5.0, 2.0], "rank": [1.0, 2.0], "n_repeats": 30, "over": "shuffles"})


def test_roc_curve_goes_through_scikit_learns_points(scores):
    bands = roc_bands(scores, n=50)
    for model, score in zip(MODELS, scores.scores.T):
        fpr, tpr, _ = roc_curve(scores.label, score, drop_intermediate=False)
        curve = bands[bands["model"] == model]
        assert np.allclose(np.interp(curve["false_positive_rate"], np.round(fpr, 12), tpr), curve["sensitivity"], atol=1e-12)
    assert (bands["low"] <= bands["high"]).all() and bands["n"].eq(150).all() and bands["n_groups"].eq(75).all()
    pd.testing.assert_frame_equal(bands, roc_bands(scores, n=50))
    assert not bands["low"].equals(roc_bands(scores, n=50, seed=1)["low"])


def test_band_covers_the_curve_nearly_everywhere(scores):
    bands = roc_bands(scores, n=200)
    inside = (bands["low"] <= bands["sensitivity"] + 1e-9) & (bands["sensitivity"] <= bands["high"] + 1e-9)
    assert inside.mean() > 0.95


def test_unknown_patients_are_not_counted(scores):
    rows = Scores(scores.cases.assign(group=None), scores.models, scores.scores)
    bands = roc_bands(rows, n=5)
    assert bands["n_groups"].isna().all()
    assert any("patients unknown" in t for t in texts(plot_roc(bands).figure))


def test_legend_tells_the_numbers_of_the_table(scores, resamples):
    table = intervals(resamples)
    ax = plot_roc(roc_bands(scores, n=5), intervals=table)
    for text, row in zip(ax.get_legend().get_texts(), table.query("metric == 'auc'").itertuples()):
        assert text.get_text().startswith(f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]")


def test_curves_differ_without_colour_and_colours_stay(scores):
    bands = roc_bands(scores, n=5)
    def lines(ax): return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    every, some = lines(plot_roc(bands)), lines(plot_roc(bands, models=["learned_concat", "table_only"]))
    assert len({str(line._dash_pattern) for line in every.values()}) == 3
    assert list(some) == ["Learned concat", "Table only"]
    assert all(some[m].get_color() == every[m].get_color() for m in some)


def test_forest_shows_estimate_interval_and_size(resamples):
    table = intervals(resamples)
    ax = plot_intervals(table, metric="specificity_at_95_sensitivity")
    rows = table.query("metric == 'specificity_at_95_sensitivity'")
    assert np.allclose(ax.collections[1].get_offsets()[:, 0], 100 * rows["estimate"])
    assert np.allclose([s[:, 0] for s in ax.collections[0].get_segments()], 100 * rows[["low", "high"]])
    shown = " ".join(texts(ax.figure))
    assert "150 cases of 75 patients" in shown and f"{100 * rows['estimate'].iloc[0]:.1f} [" in shown
    assert "(%)" in ax.get_xlabel() and "higher is better" in ax.get_xlabel()
    assert "lower is better" in plot_intervals(table, metric="brier").get_xlabel()


def test_differences_against_a_reference_are_turned(resamples):
    table = compare_models(resamples)
    ax = plot_differences(table, reference="image_only")
    estimates = dict(zip(MODELS, resamples.of("auc")[1]))
    shown = dict(zip((t.get_text() for t in ax.get_yticklabels()), ax.collections[1].get_offsets()[:, 0]))
    assert np.isclose(shown["Learned concat"], estimates["learned_concat"] - estimates["image_only"])
    turned = table.query("model_a == 'image_only' and model_b == 'learned_concat'").iloc[0]
    segments = dict(zip(shown, ax.collections[0].get_segments()))
    assert np.allclose(segments["Learned concat"][:, 0], [-turned["high"], -turned["low"]])


def test_only_significant_differences_are_filled(resamples):
    table = compare_models(resamples).assign(p_holm=[0.01, 0.2, 0.04])
    faces = plot_differences(table).collections[1].get_facecolors()
    assert [tuple(f[:3]) == (1, 1, 1) for f in faces] == [False, True, False]


def test_importance_sorts_by_rank_product_and_marks_every_model():
    other = SUMMARY.assign(median=[0.5, 9.0], rank=[2.0, 1.0])
    third = SUMMARY.assign(rank=[2.0, 1.0])
    ax = plot_importance({"one": SUMMARY, "two": other, "three": third})
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Signs", "Age"]
    markers = [line.get_marker() for line in ax.get_lines() if line.get_label() in ("One", "Two", "Three")]
    assert len(set(markers)) == 3
    assert any("not a sampling interval" in t for t in texts(ax.figure))
    patients = texts(plot_importance(SUMMARY.assign(over="resamples of the patients"), note="9 cases").figure)
    assert any("resamples of the patients; bars: 95% of them\n9 cases" in t for t in patients)


def test_training_marks_the_best_epoch_of_each_run():
    history = pd.concat([HISTORY.assign(model=m, run=r) for m in MODELS[:2] for r in (0, 1)])
    axes = plot_training(history)
    assert len(axes) == 2 and [ax.get_title() for ax in axes] == ["Image only", "Table only"]
    best = [line for line in axes[0].get_lines() if line.get_marker() == "o"]
    assert [(b.get_xdata()[0], b.get_ydata()[0]) for b in best] == [(2, 0.6)] * 2  # epoch 2 by AUC, at its loss
    dot = [line for line in plot_training(HISTORY, what="auc")[0].get_lines() if line.get_marker() == "o"][0]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (2, 0.8)


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 9])
def test_training_has_a_panel_per_model(n):
    axes = plot_training(pd.concat([HISTORY.assign(model=f"m{i}") for i in range(n)]))
    assert len(axes) == n == len(axes[0].figure.axes)


def test_examples_show_image_score_and_row(tmp_path):
    axes = plot_examples(EXAMPLES, cohort(tmp_path), size=32)
    assert all(len(ax.images) == 1 for ax in axes)
    shown = texts(axes[0].figure)
    for text in ("61", "lump, pain", "not recorded", "malignant, score 0.90", "benign, score 0.60", "synthetic data"): assert text in shown
    assert "synthetic data" not in texts(plot_examples(EXAMPLES, cohort(tmp_path, synthetic=False), size=32)[0].figure)


def test_a_missing_outcome_is_said(tmp_path):
    axes = plot_examples(EXAMPLES.query("kind != 'FN'"), cohort(tmp_path), size=32)
    assert [len(ax.images) for ax in axes] == [1, 1, 0, 1] and "none" in [t.get_text() for t in axes[2].texts]


def test_every_figure_is_stamped_only_when_synthetic(scores, resamples):
    drawn = [lambda **k: plot_roc(roc_bands(scores, n=5), **k), lambda **k: plot_intervals(intervals(resamples), **k),
             lambda **k: plot_differences(compare_models(resamples), **k), lambda **k: plot_importance(SUMMARY, **k),
             lambda **k: plot_training(HISTORY, **k)[0]]
    for draw in drawn:
        assert texts(draw(synthetic=True).figure).count("synthetic data") == 1
        assert "synthetic data" not in texts(draw().figure)


def test_drawing_leaves_the_callers_settings_and_axes(resamples):
    before = dict(plt.rcParams)
    _, (left, right) = plt.subplots(1, 2)
    assert plot_intervals(intervals(resamples), ax=left, synthetic=True) is left
    plot_intervals(intervals(resamples), ax=right, synthetic=True)
    assert texts(left.figure).count("synthetic data") == 1
    assert dict(plt.rcParams) == before


def test_saved_files_are_the_same_twice(tmp_path, resamples):
    kinds = ("png", "svg", "pdf")
    first, second = (save_figure(plot_intervals(intervals(resamples)), tmp_path / f, "auc", formats=kinds) for f in "ab")
    assert [p.name for p in first] == ["auc.png", "auc.svg", "auc.pdf"]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second))
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["auc.pdf", "auc.png", "auc.svg"]


def test_bad_input_is_refused(tmp_path, scores, resamples):
    table, comparison, bands = intervals(resamples), compare_models(resamples), roc_bands(scores, n=5)
    four = cohort(tmp_path)
    for draw, says in ((lambda: plot_intervals(table.iloc[:0]), "at least one row"),
                       (lambda: plot_intervals(table, metric="f1"), "known metric"),
                       (lambda: plot_intervals(table.drop(columns="low")), "'low'"),
                       (lambda: plot_differences(comparison, reference="image"), "Did you mean 'image_only'"),
                       (lambda: plot_differences(comparison.drop(columns="p_holm")), "'p_holm'"),
                       (lambda: plot_roc(bands, shaded=["nobody"]), "known model"),
                       (lambda: plot_roc(bands, intervals=table.query("model != 'table_only'")), "known model"),
                       (lambda: plot_roc(bands.iloc[:0]), "at least one"),
                       (lambda: plot_importance({}), "at least one model"),
                       (lambda: plot_importance(SUMMARY.drop(columns="median")), "'median'"),
                       (lambda: plot_training(HISTORY.iloc[:0]), "at least one epoch"),
                       (lambda: plot_training(HISTORY, what="accuracy"), "training curve"),
                       (lambda: plot_training(HISTORY.assign(val_auc=np.nan)), "validation AUC"),
                       (lambda: plot_examples(EXAMPLES, four, variables=["Age"]), "Did you mean 'age'"),
                       (lambda: plot_examples(EXAMPLES.assign(case_id="z"), four), "known case"),
                       (lambda: save_figure(plot_intervals(table), tmp_path, "x", formats=("gif",)), "'gif'")):
        with pytest.raises(DataError, match=says): draw()
    (tmp_path / "2.png").unlink()
    with pytest.raises(DataError, match="2.png"): plot_examples(EXAMPLES, four)
