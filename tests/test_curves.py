"""What the curves show: scikit-learn's numbers at the right places, bands of the resamples, labels, stamps, refusals."""
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_curve

from fusion_nb.curves import (_histogram, decision_bands, plot_decision_curve, plot_precision_recall, plot_rates, plot_reliability,
                              plot_resamples, precision_recall_bands, reliability_bins)
from fusion_nb.figures import plot_intervals, plot_roc, roc_bands, save_figure
from fusion_nb.predictions import Scores
from fusion_nb.resample import Resamples, bootstrap_counts, bootstrap_metrics, intervals
from fusion_nb.schema import DataError

REPO = Path(__file__).resolve().parent.parent
MODELS = ("image_only", "table_only", "learned_concat")
METRICS = ("auc", "average_precision", "specificity_at_95_sensitivity", "ece", "calibration_slope", "brier")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def made(n=150, positives=60, decimals=2, group=True):
    """Three models; rounded scores tie."""
    rng = np.random.default_rng(0)
    label = rng.permutation(np.repeat([0, 1], [n - positives, positives]))
    cases = pd.DataFrame({"case_id": np.arange(n), "group": np.arange(n) // 2 if group else None, "fold": 0, "label": label})
    return Scores(cases, MODELS, np.round(expit(rng.normal(size=(n, 3)) + np.outer(label - 0.5, [0.5, 1.0, 2.0])), decimals))


@pytest.fixture(scope="module")
def scores():
    return made()


@pytest.fixture(scope="module")
def resamples(scores):
    return bootstrap_metrics(scores, METRICS, n=200, seed=0)


RATES = pd.DataFrame([{"method": m, "setting": s, "rate": r, "low": r - 0.01, "high": min(1, r + 0.01), "n": 1000}
                      for m, rates in {"percentile": (0.95, 0.93), "delong": (0.97, 0.80)}.items() for s, r in zip(("n = 50", "n = 200"), rates)])


def texts(figure):
    found = [t.get_text() for ax in figure.axes for t in ax.texts] + [t.get_text() for t in figure.texts]
    return found + [ax.get_title(loc=loc) for ax in figure.axes for loc in ("left", "center")]


def lines(ax): return {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}


def repeated(scores, counts):
    """The rows of one resample, copied out."""
    rows = np.repeat(np.arange(len(scores)), counts)
    return scores.label[rows], scores.scores[rows]


# ---- precision and recall

def sklearn_precision(label, score, recalls):
    """Precision of scikit-learn's staircase: that of the highest threshold with at least this recall."""
    precision, recall, thresholds = precision_recall_curve(label, score)
    precision, recall = precision[:len(thresholds)], recall[:len(thresholds)]  # without the point that no threshold reaches
    return [precision[recall >= max(r, 1e-9) - 1e-9][-1] for r in recalls]


@pytest.mark.parametrize("case", [made(), made(decimals=6), made(decimals=1), made(n=10, positives=1), made(n=10, positives=9), made(decimals=0)])
def test_precision_is_scikit_learns(case):
    bands = precision_recall_bands(case, n=20)
    for model, score in zip(MODELS, case.scores.T):
        curve = bands[bands["model"] == model]
        assert np.allclose(curve["precision"], sklearn_precision(case.label, score, curve["recall"]), atol=1e-12, rtol=0)
    assert bands["prevalence"].eq(case.label.mean()).all()


@pytest.mark.parametrize("case", [made(), made(decimals=6), made(decimals=0), made(n=12, positives=1)])
def test_mean_over_the_staircase_is_the_average_precision(case):
    positives = int(case.label.sum())
    steps = precision_recall_bands(case, n=5, points=positives + 1).query("recall > 0").groupby("model", sort=False)["precision"].mean()
    assert np.allclose(steps, [average_precision_score(case.label, s) for s in case.scores.T], atol=1e-12, rtol=0)


def test_bands_are_quantiles_of_the_rows_drawn(scores):
    bands, grid = precision_recall_bands(scores, n=30, seed=3, points=21, level=0.8), np.linspace(0, 1, 21)
    counts = bootstrap_counts(scores.label, scores.group, n=30, seed=3, stratified=False)
    for m, model in enumerate(MODELS):
        drawn = [sklearn_precision(label, score[:, m], grid) for label, score in (repeated(scores, c) for c in counts)]
        low, high = np.quantile(drawn, [0.1, 0.9], axis=0)
        curve = bands[bands["model"] == model]
        assert np.allclose(curve["low"], low, atol=1e-12, rtol=0) and np.allclose(curve["high"], high, atol=1e-12, rtol=0)
    assert bands["level"].eq(0.8).all() and bands["n"].eq(150).all() and bands["n_groups"].eq(75).all() and bands["n_undefined"].eq(0).all()


@pytest.mark.parametrize("make, y", [(roc_bands, "sensitivity"), (precision_recall_bands, "precision"), (decision_bands, "net_benefit")])
def test_bands_contain_their_curve_and_hang_on_the_seed_alone(scores, make, y):
    bands = make(scores, n=200)
    # the first step of precision is the share of positives among the few top cases: resamples scatter widely around it
    body = bands[bands.get("recall", pd.Series(1.0, bands.index)) > 0.05]
    inside = (body["low"] <= body[y] + 1e-9) & (body[y] <= body["high"] + 1e-9)
    assert inside.mean() > 0.95 and (bands["low"] <= bands["high"]).all()
    pd.testing.assert_frame_equal(bands, make(scores, n=200))
    assert not bands["low"].equals(make(scores, n=200, seed=1)["low"])
    narrow = make(scores, n=200, level=0.5)
    assert (narrow["low"] >= bands["low"]).all() and (narrow["high"] <= bands["high"]).all()


@pytest.mark.parametrize("make", [roc_bands, precision_recall_bands, decision_bands])
def test_many_resamples_in_pieces_are_those_of_one_piece(scores, make, monkeypatch):
    whole = make(scores, n=50)
    monkeypatch.setattr("fusion_nb.figures._COUNTS_AT_ONCE", 1)  # pieces of 16
    pd.testing.assert_frame_equal(whole, make(scores, n=50))


def test_undefined_resamples_are_counted_and_told():
    """Two patients with a positive each; a resample that draws the first twice has no negative."""
    cases = pd.DataFrame({"case_id": list("abc"), "group": [1, 2, 2], "fold": 0, "label": [1, 1, 0]})
    bands = roc_bands(Scores(cases, ("a",), np.array([[0.9], [0.4], [0.6]])), n=64)
    undefined = bands["n_undefined"].iloc[0]
    assert 5 < undefined < 27  # about a quarter
    assert any(f"up to {undefined} resamples undefined" in t for t in texts(plot_roc(bands).figure))
    assert precision_recall_bands(Scores(cases, ("a",), np.array([[0.9], [0.4], [0.6]])), n=64)["n_undefined"].eq(0).all()


def test_precision_recall_shows_staircase_prevalence_and_numbers(scores, resamples):
    bands, table = precision_recall_bands(scores, n=20), intervals(resamples)
    ax = plot_precision_recall(bands, intervals=table, models=["learned_concat", "image_only"])
    curve = bands[bands["model"] == "learned_concat"]
    drawn = ax.get_lines()[0]
    assert drawn.get_drawstyle() == "steps-pre" and np.array_equal(drawn.get_xydata(), curve[["recall", "precision"]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Recall (sensitivity)", "Precision")
    row = table.query("metric == 'average_precision' and model == 'learned_concat'").iloc[0]
    named = list(lines(ax))
    assert named[0] == f"{row['estimate']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  Learned concat"
    assert named[2] == "Chance: prevalence 40%" and set(lines(ax)[named[2]].get_ydata()) == {0.4}
    assert any("150 cases of 75 patients; band: 95% pointwise" in t for t in texts(ax.figure))
    assert "80% pointwise" in " ".join(texts(plot_precision_recall(precision_recall_bands(scores, n=5, level=0.8), shaded=["image_only"]).figure))


# ---- reliability

@pytest.mark.parametrize("equal_mass", [False, True])
def test_reliability_points_are_scikit_learns(equal_mass):
    case = made(n=200, decimals=6)
    points = reliability_bins(case, equal_mass=equal_mass)
    for model, score in zip(MODELS, case.scores.T):
        rows = points[points["model"] == model]
        observed, predicted = calibration_curve(case.label, score, n_bins=10, strategy="quantile" if equal_mass else "uniform")
        assert np.allclose(rows["observed"], observed, atol=1e-12, rtol=0) and np.allclose(rows["predicted"], predicted, atol=1e-12, rtol=0)
        assert rows["n_bin"].sum() == 200 and rows["n"].eq(200).all()
        assert ((rows["observed_low"] < rows["observed"] + 1e-12) & (rows["observed"] < rows["observed_high"] + 1e-12)).all()


def test_reliability_diagram_shows_points_bars_scores_and_numbers(scores, resamples):
    points, table = reliability_bins(scores), intervals(resamples)
    ax = plot_reliability(points, scores=scores, intervals=table, models=["learned_concat", "image_only"])
    rows = points[points["model"] == "learned_concat"]
    text, line = next(iter(lines(ax).items()))
    assert np.array_equal(line.get_xydata(), rows[["predicted", "observed"]])
    assert np.allclose([s[:, 1] for s in ax.collections[0].get_segments()], rows[["observed_low", "observed_high"]])
    of = table.query("model == 'learned_concat'").set_index("metric")
    slope = of.loc["calibration_slope"]
    assert text == f"{of.at['ece', 'estimate']:.3f}, {slope['estimate']:.3f} [{slope['low']:.3f}, {slope['high']:.3f}]  Learned concat"
    assert ax.get_legend().get_title().get_text() == "ECE, slope [95% interval]"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted probability", "Observed share of positives")
    strip = ax.patches[0].get_data()  # the histogram: of all scores, on the scale of the strip
    heights = np.histogram(scores.scores[:, 2], bins=25, range=(0, 1))[0]
    assert np.allclose((strip.values - strip.baseline) / (strip.values - strip.baseline).max(), heights / heights.max())
    assert any("take cases as independent" in t for t in texts(ax.figure))
    plain = plot_reliability(points)
    assert not plain.patches and list(lines(plain)) == ["Image only", "Table only", "Learned concat"]


def test_one_case_per_patient_needs_no_excuse(scores):
    single = Scores(scores.cases.assign(group=scores.cases["case_id"]), scores.models, scores.scores)
    assert not any("independent" in t for t in texts(plot_reliability(reliability_bins(single)).figure))


def test_calibration_of_a_model_whose_slope_does_not_exist_is_said(scores, resamples):
    table = intervals(resamples)
    table.loc[table["metric"] == "calibration_slope", ["low", "high"]] = np.nan
    assert all("not defined" in text for text in list(lines(plot_reliability(reliability_bins(scores), intervals=table))))


# ---- decision curve

def test_net_benefit_is_that_of_scikit_learns_confusion_matrix(scores):
    grid = np.array([0.05, 0.3, 0.5, 0.77, 0.99])
    bands = decision_bands(scores, thresholds=grid, n=20, seed=2)
    counts = bootstrap_counts(scores.label, scores.group, n=20, seed=2, stratified=False)

    def net_benefit(label, score):
        tables = [confusion_matrix(label, score >= t, labels=[0, 1]) for t in grid]
        return [(c[1, 1] - c[0, 1] * t / (1 - t)) / len(label) for c, t in zip(tables, grid)]

    for m, model in enumerate(MODELS):
        curve = bands[bands["model"] == model]
        assert np.allclose(curve["net_benefit"], net_benefit(scores.label, scores.scores[:, m]), atol=1e-12, rtol=0)
        drawn = [net_benefit(label, score[:, m]) for label, score in (repeated(scores, c) for c in counts)]
        assert np.allclose(curve[["low", "high"]].T, np.quantile(drawn, [0.025, 0.975], axis=0), atol=1e-12, rtol=0)
        assert np.allclose(curve["treat_all"], 0.4 - 0.6 * grid / (1 - grid)) and curve["treat_none"].eq(0).all()


def test_decision_curve_shows_both_policies_and_keeps_them_in_view(scores):
    bands = decision_bands(scores, n=20)
    ax = plot_decision_curve(bands)
    assert list(lines(ax)) == ["Image only", "Table only", "Learned concat", "Treat all", "Treat none"]
    assert np.array_equal(lines(ax)["Learned concat"].get_ydata(), bands.loc[bands["model"] == "learned_concat", "net_benefit"])
    low, high = ax.get_ylim()
    assert -0.1 < low < 0 and 0.4 < high < 0.5  # a little below 0, a little above the prevalence
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Threshold: act from this probability on", "Net benefit")


# ---- resamples

def test_hills_show_every_resample_with_limits_and_estimate(scores, resamples):
    ax = plot_resamples(resamples, metric="specificity_at_95_sensitivity")
    table = intervals(resamples).query("metric == 'specificity_at_95_sensitivity'")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["Image only", "Table only", "Learned concat"]
    dots = [line for line in ax.get_lines() if line.get_marker() == "o"]
    assert np.allclose([d.get_xdata()[0] for d in dots], 100 * table["estimate"])
    bars = [c.get_segments()[0][:, 0] for c in ax.collections[1::2]]
    assert np.allclose(bars, 100 * table[["low", "high"]])
    assert ax.get_xlabel() == "Specificity at 95% sensitivity (%), higher is better"
    assert "1 is perfect" in plot_resamples(resamples, metric="calibration_slope").get_xlabel()
    assert "lower is better" in plot_resamples(resamples, metric="brier").get_xlabel()


@pytest.mark.parametrize("values", [np.random.default_rng(0).normal(size=500), np.random.default_rng(0).integers(60, 90, 5000) / 90, np.array([0.5, 0.7])])
def test_histogram_holds_every_resample_and_whole_steps(values):
    heights, edges = _histogram(values)
    assert heights.sum() == len(values) and edges[0] < values.min() and edges[-1] > values.max() and len(heights) <= 61
    if len(values) == 5000:  # of a lattice: as many of its values in every bin
        steps = np.diff(edges) * 90
        assert np.allclose(steps, np.round(steps)) and np.ptp(steps) < 1e-6


def test_pair_draws_the_paired_difference(resamples):
    ax = plot_resamples(resamples, pair=("learned_concat", "image_only"))
    values, estimate = resamples.of("auc")
    difference = values[:, 2] - values[:, 0]
    assert np.allclose(ax.collections[1].get_segments()[0][:, 0], np.quantile(difference, [0.025, 0.975]))
    assert np.isclose([line for line in ax.get_lines() if line.get_marker() == "o"][0].get_xdata()[0], estimate[2] - estimate[0])
    assert any(set(line.get_xdata()) == {0} for line in ax.get_lines())  # the line of no difference
    assert ax.get_xlabel() == "Difference of AUC; right of 0: the first is better"
    assert any(f"{100 * np.mean(difference <= 0):.3g}% of the resamples at or below 0" in t for t in texts(ax.figure))
    assert "left of 0" in plot_resamples(resamples, metric="brier", pair=("learned_concat", "image_only")).get_xlabel()
    assert "better" not in plot_resamples(resamples, metric="calibration_slope", pair=("learned_concat", "image_only")).get_xlabel()


def test_undefined_and_constant_resamples_are_drawn_without_a_hill():
    values = np.stack([np.full(9, np.nan), np.full(9, 0.5), np.r_[np.nan, np.linspace(0.4, 0.6, 8)]], axis=1)[:, :, None]
    odd = Resamples(values, np.array([[np.nan], [0.5], [0.5]]), MODELS, ("auc",), n_cases=9, n_groups=np.nan, method="by hand")
    ax = plot_resamples(odd)
    shown = texts(ax.figure)
    assert "not defined" in shown and any("9 cases, their patients unknown; 9 resamples, up to 9 undefined" in t for t in shown)
    assert len(ax.patches) == 2  # one hill: its face and its outline
    ax.figure.canvas.draw()


def test_intervals_of_unknown_patients_say_so(scores):
    rows = intervals(bootstrap_metrics(Scores(scores.cases.assign(group=None), MODELS, scores.scores), n=20))
    assert rows["n_groups"].isna().all()
    assert any("150 cases, their patients unknown" in t for t in texts(plot_intervals(rows).figure))


# ---- coverage and size

def test_rates_are_hollow_outside_the_band_and_arrows_off_the_scale():
    axes = plot_rates(RATES)
    assert [ax.get_title() for ax in axes] == ["Percentile", "Delong"]
    marks = [[line for line in ax.get_lines() if line.get_marker() not in ("None", None)] for ax in axes]
    assert [[m.get_marker() for m in of] for of in marks] == [["o", "o"], ["o", "<"]]
    assert [[m.get_markerfacecolor() == "white" for m in of] for of in marks] == [[False, True], [True, True]]
    assert np.allclose([m.get_xdata()[0] for m in marks[0]], [95, 93])
    assert "80.0" in [t.get_text() for t in axes[1].texts]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["n = 50", "n = 200"]
    assert "of 1,000 simulated samples" in axes[0].figure.legends[0].get_title().get_text()


def test_rates_that_are_not_defined_are_said_and_panels_are_even():
    several = pd.concat([RATES.assign(method=f"{m}{i}", rate=np.nan) for i in range(3) for m in ("a", "b")][:5])
    axes = plot_rates(several.drop_duplicates(["method", "setting"]), what="size", synthetic=True)
    assert len(axes) == 5 and [t.get_text() for t in axes[0].texts] == ["not defined"] * 2
    columns = {round(ax.get_position().x0, 2) for ax in axes}
    axes[0].figure.canvas.draw()
    assert len(columns) == 3  # three and two, not four and one
    assert "Rejections" in axes[0].figure.legends[0].get_title().get_text()


# ---- all of them

@pytest.fixture(scope="module")
def drawn(scores, resamples):
    bands, points, benefit = precision_recall_bands(scores, n=5), reliability_bins(scores), decision_bands(scores, n=5)
    return [lambda **k: plot_precision_recall(bands, **k), lambda **k: plot_reliability(points, scores=scores, **k),
            lambda **k: plot_decision_curve(benefit, **k), lambda **k: plot_resamples(resamples, **k)]


def test_every_figure_is_stamped_only_when_synthetic_and_draws_where_it_is_told(drawn):
    before = dict(plt.rcParams)
    for draw in [*drawn, lambda **k: plot_rates(RATES, **k)[0]]:
        assert texts(draw(synthetic=True).figure).count("synthetic data") == 1
        assert "synthetic data" not in texts(draw().figure)
    for draw in drawn:
        ax = plt.figure().add_subplot()
        assert draw(ax=ax) is ax
    assert dict(plt.rcParams) == before


def test_models_differ_without_colour(drawn):
    for draw in drawn[:3]:
        ax = draw()
        of_models = [line for text, line in lines(ax).items() if text in ("Image only", "Table only", "Learned concat")]
        assert len({str(line._dash_pattern) for line in of_models}) == 3
        assert len({line.get_color() for line in of_models}) == 3


def test_figures_are_saved_as_png_and_svg_and_twice_the_same(drawn, tmp_path):
    for i, draw in enumerate([*drawn, lambda: plot_rates(RATES)]):
        first, second = (save_figure(draw(), tmp_path / f, str(i)) for f in "ab")
        assert [p.suffix for p in first] == [".png", ".svg"] and all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second))


def test_works_without_a_screen_and_without_torch(tmp_path):
    program = ("import sys, numpy as np\nfrom fusion_nb.curves import *\nfrom fusion_nb.figures import save_figure\n"
               "from fusion_nb.resample import Resamples\n"
               "r = Resamples(np.random.default_rng(0).random((99, 1, 1)), np.array([[.5]]), ('a',), ('auc',), n_cases=9, n_groups=9, method='')\n"
               "save_figure(plot_resamples(r), sys.argv[1], 'a')\nassert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, cwd=REPO,
                          env={"PATH": "", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(p.name for p in tmp_path.glob("a.*")) == ["a.png", "a.svg"]


def test_bad_input_is_refused_before_a_page_is_drawn(scores, resamples):
    bands, points, benefit, table = precision_recall_bands(scores, n=5), reliability_bins(scores), decision_bands(scores, n=5), intervals(resamples)
    logits = Scores(scores.cases, scores.models, 9 * scores.scores)
    survival = Scores(scores.cases.drop(columns="label").assign(time=1.0, event=1), MODELS, scores.scores)
    one_class = Scores(scores.cases.assign(label=0), MODELS, scores.scores)
    other = Scores(scores.cases, ("image", "table", "fused"), scores.scores)
    plt.close("all")
    for draw, says in ((lambda: precision_recall_bands(survival), "two classes"),
                       (lambda: reliability_bins(survival), "two classes"),
                       (lambda: decision_bands(survival), "two classes"),
                       (lambda: precision_recall_bands(one_class), "both classes"),
                       (lambda: precision_recall_bands(scores, n=1), "at least 2 resamples"),
                       (lambda: precision_recall_bands(scores, n=9, level=95), "level between 0 and 1"),
                       (lambda: reliability_bins(logits), "probabilities from 0 to 1"),
                       (lambda: decision_bands(logits), "probabilities from 0 to 1"),
                       (lambda: decision_bands(scores, thresholds=[0.2, 1.0]), "between 0 and 1"),
                       (lambda: plot_precision_recall(bands, models=["image"]), "Did you mean 'image_only'"),
                       (lambda: plot_precision_recall(bands, shaded=["nobody"]), "known model"),
                       (lambda: plot_precision_recall(bands.iloc[:0]), "at least one curve"),
                       (lambda: plot_precision_recall(bands.drop(columns="prevalence")), "'prevalence'"),
                       (lambda: plot_precision_recall(bands, intervals=table.query("metric == 'auc'")), "known metric"),
                       (lambda: plot_precision_recall(bands, intervals=table.query("model == 'table_only'")), "known model"),
                       (lambda: plot_reliability(points.iloc[:0]), "at least one reliability point"),
                       (lambda: plot_reliability(points, models=["learned_conca"]), "Did you mean 'learned_concat'"),
                       (lambda: plot_reliability(points, scores=other), "known model among the scores"),
                       (lambda: plot_reliability(points.drop(columns="observed_low")), "'observed_low'"),
                       (lambda: plot_decision_curve(benefit, models=["image"]), "Did you mean 'image_only'"),
                       (lambda: plot_decision_curve(benefit.iloc[:0]), "at least one curve"),
                       (lambda: plot_decision_curve(bands), "'treat_all'"),
                       (lambda: plot_resamples(resamples, metric="AUC"), "Did you mean 'auc'"),
                       (lambda: plot_resamples(resamples, models=["image"]), "Did you mean 'image_only'"),
                       (lambda: plot_resamples(resamples, models=[]), "at least one model"),
                       (lambda: plot_resamples(resamples, pair=("image_only", "image_only")), "two models"),
                       (lambda: plot_resamples(resamples, level=95), "level between 0 and 1"),
                       (lambda: plot_rates(RATES.iloc[:0]), "at least one rate"),
                       (lambda: plot_rates(RATES.assign(rate=95)), "from 0 to 1"),
                       (lambda: plot_rates(RATES, what="sizes"), "Did you mean 'size'"),
                       (lambda: plot_rates(RATES.drop(columns="low")), "'low'"),
                       (lambda: plot_rates(pd.concat([RATES, RATES])), "one row per method")):
        with pytest.raises(DataError, match=says): draw()
        assert not plt.get_fignums(), f"a page was drawn before {says!r}"
