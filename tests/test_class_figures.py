"""What the figures of several classes show: the right numbers at the right places, legible without colour, stamped when synthetic."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import norm
from sklearn.metrics import auc as area
from sklearn.metrics import confusion_matrix, roc_auc_score, roc_curve

from fusion_nb import class_figures
from fusion_nb.audit import audit_predictions
from fusion_nb.class_figures import (class_roc_bands, confusion_table, plot_class_balance, plot_class_roc, plot_confusion, plot_flow,
                                     plot_metric_bars, plot_pairing_audit)
from fusion_nb.figures import roc_bands
from fusion_nb.predictions import Scores, prediction_rows
from fusion_nb.resample import bootstrap_metrics, intervals
from fusion_nb.schema import DataError

CLASSES, MODELS = ("mitosis", "tumor", "non_tumor"), ("image_only", "table_only", "learned_concat")
METRICS = ("macro_auc", "auc:mitosis", "auc:tumor", "auc:non_tumor", "accuracy", "brier")


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat([0, 1, 2], [15, 120, 45]))
    cases = pd.DataFrame({"case_id": np.arange(180), "group": np.arange(180) % 60, "fold": 0, "label": label})
    logits = rng.normal(size=(180, 3, 3)) + np.eye(3)[label][:, None] * np.array([0.7, 1.0, 2.0])[:, None]
    return Scores(cases, MODELS, softmax(logits, axis=2), CLASSES)


@pytest.fixture(scope="module")
def bands(scores):
    return class_roc_bands(scores, n=60, points=201)


@pytest.fixture(scope="module")
def table(scores):
    return intervals(bootstrap_metrics(scores, METRICS, n=60))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


FLOW = pd.DataFrame({"step": ["all", "breast cancer", "one left"], "patients": [100, 40, 1], "admissions": [275, 70, 1]})
AUDIT = pd.DataFrame({"policy": ["alone", "alone", "alone", "random", "label_matched", "alone"],
                      "model": ["image_only", "table_only", "conditional independence", "late_fusion", "late_fusion", "image_only"],
                      "metric": ["macro_auc"] * 5 + ["auc:tumor"], "estimate": [0.85, 0.8, 0.91, 0.76, 0.92, 0.7], "low": [0.8, 0.75, 0.88, 0.7, 0.9, 0.6],
                      "high": [0.9, 0.85, 0.93, 0.8, 0.94, 0.8], "n": 200, "n_groups": 100.0})
COUNTS = pd.DataFrame({"mitosis": [2, 0, 3], "tumor": [900, 500, 800]}, index=["Case_1", "Case_2", "Case_3"])


def texts(figure):
    found = [t.get_text() for ax in figure.axes for t in ax.texts] + [t.get_text() for t in figure.texts]
    return found + [ax.get_title(loc=loc) for ax in figure.axes for loc in ("left", "center")] + [figure.get_suptitle()]


def lines(ax): return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


# ---- confusion

def wilson(k, n, z=norm.isf(0.025)):
    "Wilson (1927) by hand."
    p, middle = k / n, (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


@pytest.mark.parametrize("model", MODELS)
def test_confusion_is_scikit_learns_with_wilsons_limits(scores, model):
    found = confusion_table(scores, model)
    expected = confusion_matrix(scores.label, scores.scores[:, MODELS.index(model)].argmax(axis=1))
    assert (found["count"].to_numpy().reshape(3, 3) == expected).all() and found["truth"].iloc[3] == "tumor" and found["called"].iloc[5] == "non_tumor"
    for row in found.itertuples(): assert np.allclose([row.low, row.high], wilson(row.count, row.n), atol=1e-12)


def test_confusion_of_two_classes_at_a_threshold_of_each_model():
    cases = pd.DataFrame({"case_id": range(6), "group": None, "fold": 0, "label": [0, 0, 0, 1, 1, 1]})
    scores = Scores(cases, ("a", "b"), np.array([[0.1, 0.4, 0.6, 0.4, 0.7, 0.9]] * 2).T).at({"a": 0.5, "b": 0.3})
    assert confusion_table(scores, "a")["count"].tolist() == [2, 1, 1, 2] and confusion_table(scores, "b")["count"].tolist() == [1, 2, 0, 3]
    ax = plot_confusion(scores, "a", names=("alive", "dead"))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["Alive", "Dead"] and not any("patients" in t for t in texts(ax.figure))


def test_a_class_without_a_case_is_refused(scores):
    some = Scores(scores.cases[scores.label > 0].reset_index(drop=True), MODELS, scores.scores[scores.label > 0], CLASSES)
    with pytest.raises(DataError, match="cases of every class. Got 165 cases, none of them of class 0"): confusion_table(some, "image_only")


def test_confusion_shows_shares_counts_limits_and_rows(scores):
    ax, found = plot_confusion(scores, "learned_concat"), confusion_table(scores, "learned_concat")
    assert np.allclose(ax.images[0].get_array(), found["share"].to_numpy().reshape(3, 3))
    shown = {tuple(t.get_position()): t.get_text() for t in ax.texts}
    for i, row in found.iterrows():
        here = [v for (x, y), v in shown.items() if round(x) == i % 3 and round(y) == i // 3]
        assert f"{100 * row['share']:.1f}%" in here and f"{row['count']:,}\n[{100 * row['low']:.1f}, {100 * row['high']:.1f}]" in here
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Mitosis\nn = 15", "Tumor\nn = 120", "Non tumor\nn = 45"]
    assert any("180 cases of 60 patients" in t and "95% Wilson" in t for t in texts(ax.figure)) and ax.get_xlabel() == "Called" and ax.get_ylabel() == "Truth"


def test_text_stands_out_from_its_cell(scores):
    def luminance(color): return np.asarray(color[:3]) @ [0.2126, 0.7152, 0.0722]
    ax = plot_confusion(scores, "learned_concat")
    shade = ax.images[0].to_rgba(ax.images[0].get_array())
    for t in [t for t in ax.texts if t.get_transform() == ax.transData]:
        x, y = (round(v) for v in t.get_position())
        assert abs(luminance(plt.matplotlib.colors.to_rgb(t.get_color())) - luminance(shade[y, x])) > 0.35


# ---- ROC by class

def test_curves_are_scikit_learns_one_against_the_rest(scores, bands):
    for m, model in enumerate(MODELS):
        for c, name in enumerate(CLASSES):
            fpr, tpr, _ = roc_curve(scores.label == c, scores.scores[:, m, c], drop_intermediate=False)
            curve = bands[(bands["model"] == model) & (bands["class"] == name)]
            assert np.allclose(np.interp(curve["false_positive_rate"], np.round(fpr, 12), tpr), curve["sensitivity"], atol=1e-12)
    assert len(bands) == 3 * 4 * 201 and bands["n"].eq(180).all() and bands["n_groups"].eq(60).all()


def test_the_mean_curve_has_the_macro_auc(scores):
    fine = class_roc_bands(scores, n=2, points=20_001)
    for m, model in enumerate(MODELS):
        curve = fine[(fine["model"] == model) & (fine["class"] == "macro")]
        assert abs(area(curve["false_positive_rate"], curve["sensitivity"]) - roc_auc_score(scores.label, scores.scores[:, m], multi_class="ovr")) < 5e-4


def test_bands_of_a_class_are_those_of_two_classes_up_to_the_strata(scores):
    """Resamples of three strata are not those of two, but as many of them give nearly the same limits."""
    ours = class_roc_bands(scores, n=600, points=21)
    two = Scores(scores.cases.assign(label=(scores.label == 1).astype(int)), MODELS, scores.scores[:, :, 1])
    theirs = roc_bands(two, n=600, points=21)
    rows = ours[ours["class"] == "tumor"].reset_index(drop=True)
    assert np.allclose(rows["sensitivity"], theirs["sensitivity"]) and np.abs(rows["low"] - theirs["low"]).max() < 0.06
    assert np.abs((rows["high"] - rows["low"]) - (theirs["high"] - theirs["low"])).mean() < 0.015


def test_bands_are_repeatable_hold_the_curve_and_do_not_depend_on_memory(scores, bands, monkeypatch):
    pd.testing.assert_frame_equal(bands, class_roc_bands(scores, n=60, points=201))
    assert not bands["low"].equals(class_roc_bands(scores, n=60, points=201, seed=1)["low"])
    monkeypatch.setattr(class_figures, "_COUNTS_AT_ONCE", 180 * 9)  # in seven pieces
    pd.testing.assert_frame_equal(bands, class_roc_bands(scores, n=60, points=201))
    inside = (bands["low"] <= bands["sensitivity"] + 1e-9) & (bands["sensitivity"] <= bands["high"] + 1e-9)
    assert inside.mean() > 0.95


def test_a_panel_per_class_with_the_numbers_of_the_table(bands, table):
    axes = plot_class_roc(bands, intervals=table)
    assert [ax.get_title() for ax in axes] == ["Mitosis", "Tumor", "Non tumor", "Mean of the classes"]
    for ax, metric in zip(axes, ("auc:mitosis", "auc:tumor", "auc:non_tumor", "macro_auc")):
        rows = table[table["metric"] == metric].set_index("model")
        for text, model in zip(ax.get_legend().get_texts(), MODELS):
            assert text.get_text().startswith(f"{rows.at[model, 'estimate']:.3f} [{rows.at[model, 'low']:.3f}, {rows.at[model, 'high']:.3f}]")
    drawn = list(lines(axes[0]).values())
    expected = bands[bands["class"] == "mitosis"]
    for line, model in zip(drawn, MODELS): assert np.array_equal(line.get_ydata(), expected.loc[expected["model"] == model, "sensitivity"])
    assert len({str(line._dash_pattern) for line in drawn}) == 3, "they differ without colour"
    assert not axes[0].collections, "three bands in a panel cannot be told apart"


def test_a_panel_per_model_has_a_band_for_every_class(bands):
    axes = plot_class_roc(bands, by="model", models=["image_only", "learned_concat"])
    assert [ax.get_title() for ax in axes] == ["Image only", "Learned concat"] and all(len(ax.collections) == 4 for ax in axes)
    assert list(lines(axes[0])) == ["Mitosis", "Tumor", "Non tumor", "Macro"] and lines(axes[0])["Macro"].get_color() == "#000000"
    vertices = axes[1].collections[0].get_paths()[0].vertices
    rows = bands[(bands["model"] == "learned_concat") & (bands["class"] == "mitosis")]
    assert np.isclose(vertices[:, 1].max(), rows["high"].max()) and np.isclose(vertices[:, 1].min(), rows["low"].min())
    assert any("180 cases of 60 patients; band: 95% pointwise" in t for t in texts(axes[0].figure))


def test_two_models_have_bands_in_every_class(bands):
    axes = plot_class_roc(bands, models=["table_only", "learned_concat"])
    assert all(len(ax.collections) == 2 for ax in axes)
    every = lines(plot_class_roc(bands)[0])
    assert lines(axes[0])["Learned concat"].get_color() == every["Learned concat"].get_color(), "a model keeps its colour"


# ---- bars

def test_bars_and_their_lines_are_the_numbers_of_the_table(table):
    metrics = ["accuracy", "macro_auc", "brier"]
    ax = plot_metric_bars(table, metrics=metrics)
    rows = table.set_index(["model", "metric"])
    heights = np.array([p.get_height() for p in ax.patches]).reshape(3, 3)
    assert np.allclose(heights, [[rows.at[(m, k), "estimate"] for k in metrics] for m in MODELS])
    ends = np.concatenate([[s[:, 1] for s in c.get_segments()] for c in ax.collections])
    assert np.allclose(ends, [[rows.at[(m, k), v] for v in ("low", "high")] for m in MODELS for k in metrics])
    assert len({p.get_hatch() for p in ax.patches}) == 3 and ax.get_ylim()[0] == 0
    labels = [t.get_text().replace("\n", " ") for t in ax.get_xticklabels()]
    assert labels[0] == "Accuracy" and "lower is better" in labels[2]
    shown = [t.get_text() for t in ax.texts]
    assert f"{rows.at[('table_only', 'macro_auc'), 'estimate']:.3f}" in shown
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["Image only", "Table only", "Learned concat"]


# ---- flow

def test_flow_says_what_is_left_and_what_was_lost():
    shown = [t.get_text() for t in plot_flow(FLOW).texts]
    assert "all\n100 patients, 275 admissions" in shown and "breast cancer\n40 patients, 70 admissions" in shown
    assert "left out: 60 patients, 205 admissions" in shown and "one left\n1 patient, 1 admission" in shown and "left out: 39 patients, 69 admissions" in shown
    assert plot_flow(FLOW, title="EHR cohort").get_title(loc="left") == "EHR cohort"
    assert "none left out" in [t.get_text() for t in plot_flow(FLOW.iloc[[0, 0]]).texts]


def test_boxes_of_a_long_flow_do_not_touch():
    steps = ["a step with quite a long description that has to be wrapped, " * k for k in (1, 4, 2, 3)]
    ax = plot_flow(pd.DataFrame({"step": steps, "patients": [5, 4, 3, 2]}))
    ax.figure.canvas.draw()
    boxes = [t.get_bbox_patch().get_window_extent() for t in ax.texts if t.get_bbox_patch()]
    assert len(boxes) == 4 and all(above.y0 > below.y1 + 10 for above, below in zip(boxes, boxes[1:]))


# ---- audit

def test_audit_shows_every_row_and_the_prediction():
    ax = plot_pairing_audit(AUDIT)
    points = [line for line in ax.get_lines() if line.get_marker() not in ("None", None, "")]
    assert [float(line.get_xdata()[0]) for line in points] == AUDIT["estimate"][:5].tolist(), "one metric only"
    bars = [line for line in ax.get_lines() if len(line.get_xdata()) == 2 and line.get_linewidth() == 1.5]
    assert [list(line.get_xdata()) for line in bars] == AUDIT[["low", "high"]][:5].to_numpy().tolist()
    diamond = points[2]
    assert diamond.get_marker() == "D" and diamond.get_markerfacecolor() == "white"
    dotted = [line for line in ax.get_lines() if list(line.get_xdata()) == [0.91, 0.91]]
    assert len(dotted) == 1, "the prediction is drawn through all policies"
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Alone", "Random", "Label matched"]
    y = [line.get_ydata()[0] for line in points]
    assert y == sorted(y) and len(set(y)) == 5 and y[3] - y[2] > y[2] - y[1], "no row hides another; policies stand apart"
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"Image only", "Table only", "Conditional independence", "Late fusion"}
    assert "mean of the classes, higher is better" in ax.get_xlabel() and any("200 cases of 100 patients" in t for t in texts(ax.figure))
    assert len([line for line in plot_pairing_audit(AUDIT, metric="auc:tumor").get_lines() if line.get_marker() == "o"]) == 1


def test_no_line_through_all_where_each_policy_has_its_own_prediction():
    both = pd.concat([AUDIT[:5], AUDIT.iloc[[2]].assign(policy="random", estimate=0.9)])
    ax = plot_pairing_audit(both)
    assert not [line for line in ax.get_lines() if list(line.get_xdata()) in ([0.91, 0.91], [0.9, 0.9])]
    assert len([line for line in ax.get_lines() if line.get_marker() == "D"]) == 2 and len(ax.get_yticks()) == 3


def test_audit_of_predictions_can_be_drawn(scores):
    cases = scores.cases.assign(case_id=scores.cases["case_id"].astype(str), group=scores.cases["group"].astype(str), split="test")
    pred = pd.concat([prediction_rows(cases, pd.DataFrame(scores.scores[:, m], columns=list(CLASSES)), model=name) for m, name in enumerate(MODELS[:2])])
    audit = audit_predictions(pred, pairings=5, n=20)
    ax = plot_pairing_audit(audit)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Alone", "Random", "Label matched"] and "Conditional independence" in {t.get_text() for t in ax.get_legend().get_texts()}


# ---- balance

def test_balance_counts_classes_and_cases():
    total = pd.concat([COUNTS, COUNTS.sum().to_frame("total").T]).assign(images=1)
    ax = plot_class_balance(total)
    assert [p.get_width() for p in ax.patches] == [5, 2200] and ax.get_xscale() == "log"
    dots = [sorted(line.get_xdata()) for line in ax.get_lines()]
    assert dots == [[2, 3], [500, 800, 900]], "a case without the class has no dot"
    shown = [t.get_text() for t in ax.texts]
    assert "5 (0.23%), in 2 of 3 cases" in shown and "2,200 (99.8%), in 3 of 3 cases" in shown and any(t.startswith("2,205 in 3 cases") for t in texts(ax.figure))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Mitosis", "Tumor"]
    assert any("in 3 of 3 folds" in t for t in texts(plot_class_balance(COUNTS, parts="folds").figure))


# ---- all

@pytest.mark.parametrize("draw", [
    lambda s, b, t, **k: plot_confusion(s, "image_only", **k), lambda s, b, t, **k: plot_class_roc(b, **k)[0], lambda s, b, t, **k: plot_metric_bars(t, **k),
    lambda s, b, t, **k: plot_flow(FLOW, **k), lambda s, b, t, **k: plot_pairing_audit(AUDIT, **k), lambda s, b, t, **k: plot_class_balance(COUNTS, **k)])
def test_synthetic_figures_are_stamped_and_others_are_not(scores, bands, table, draw):
    assert "synthetic data" in texts(draw(scores, bands, table, synthetic=True).figure)
    assert "synthetic data" not in texts(draw(scores, bands, table).figure)


@pytest.mark.parametrize("draw", [
    lambda s, t, ax: plot_confusion(s, "image_only", ax=ax), lambda s, t, ax: plot_metric_bars(t, ax=ax), lambda s, t, ax: plot_flow(FLOW, ax=ax),
    lambda s, t, ax: plot_pairing_audit(AUDIT, ax=ax), lambda s, t, ax: plot_class_balance(COUNTS, ax=ax)])
def test_axes_of_ones_own(scores, table, draw):
    ax, before = plt.subplots()[1], dict(plt.rcParams)
    assert draw(scores, table, ax) is ax and plt.rcParams == before


@pytest.mark.parametrize("call, words", [
    (lambda s, b, t: confusion_table(s, "image_onyl"), "Did you mean 'image_only'"), (lambda s, b, t: confusion_table(s, "image_only", level=95), "between 0 and 1.*level=95"),
    (lambda s, b, t: class_roc_bands(s, n=1), "at least 2 resamples"),
    (lambda s, b, t: class_roc_bands(Scores(s.cases.assign(label=1 * (s.label == 1)), MODELS, s.scores[:, :, 1])), "three or more classes. Got binary scores"),
    (lambda s, b, t: plot_class_roc(b, by="classes"), "Did you mean 'class'"), (lambda s, b, t: plot_class_roc(b.iloc[:0]), "an empty table"),
    (lambda s, b, t: plot_class_roc(b.drop(columns="class")), "the column 'class'"), (lambda s, b, t: plot_class_roc(b, models=["image"]), "a known model"),
    (lambda s, b, t: plot_metric_bars(t, metrics=["acuracy"]), "Did you mean 'accuracy'"), (lambda s, b, t: plot_metric_bars(t.iloc[:0]), "an empty table"),
    (lambda s, b, t: plot_metric_bars(t.assign(estimate=-0.2)), "metrics between 0 and 1 for bars. Got -0.2"),
    (lambda s, b, t: plot_flow(FLOW.iloc[::-1]), "40 patients, 70 admissions after 1 patient, 1 admission at 'breast cancer'"),
    (lambda s, b, t: plot_flow(FLOW.astype({"patients": float})), "whole counts"), (lambda s, b, t: plot_flow(FLOW[["step"]]), "no counts"),
    (lambda s, b, t: plot_flow(FLOW.drop(columns="step")), "the column 'step'"), (lambda s, b, t: plot_flow(FLOW.iloc[:0]), "0 steps"),
    (lambda s, b, t: plot_pairing_audit(AUDIT.iloc[:0]), "an empty audit"), (lambda s, b, t: plot_pairing_audit(AUDIT, metric="auc"), "a known metric"),
    (lambda s, b, t: plot_pairing_audit(AUDIT.drop(columns="low")), "the column 'low'"), (lambda s, b, t: plot_class_balance(COUNTS.iloc[:0]), "0 rows"),
    (lambda s, b, t: plot_class_balance(-COUNTS), "counts of 0 or more"), (lambda s, b, t: plot_class_balance(COUNTS * 0), "not all of them 0"), (lambda s, b, t: plot_class_balance(COUNTS.astype(str)), "object|str")])
def test_bad_input(scores, bands, table, call, words):
    with pytest.raises(DataError, match=words): call(scores, bands, table)


def test_survival_has_no_confusion():
    cases = pd.DataFrame({"case_id": range(4), "group": None, "fold": 0, "time": [1.0, 2, 3, 4], "event": [1, 0, 1, 1]})
    with pytest.raises(DataError, match="survival scores"): confusion_table(Scores(cases, ("a",), np.arange(4.0)[:, None]), "a")
