"""What the survival figures show: the right numbers at the right places, legible without colour, stamped when synthetic."""
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fusion_nb import survival_figures
from fusion_nb.predictions import prediction_rows
from fusion_nb.resample import intervals
from fusion_nb.schema import DataError
from fusion_nb.survival_figures import plot_brier_curve, plot_calibration_at, plot_dynamic_auc, plot_kaplan_meier, plot_sweep
from fusion_nb.survival_groups import calibration_at, fold_brier, fold_c, fold_forecasts, km_curves, logrank, risk_groups


@pytest.fixture(scope="module")
def pred():
    rng, place = np.random.default_rng(5), np.arange(150) % 3
    hidden, noise = rng.normal(size=(2, 150))
    died, left = rng.exponential(20 * np.exp(-hidden)), rng.exponential(40, 150)
    cases = pd.DataFrame({"case_id": [f"{i:03d}" for i in range(150)], "group": [f"p{i:03d}" for i in range(150)], "time": np.minimum(died, left),
                          "event": (died <= left).astype(int)})
    parts = [prediction_rows(cases.assign(split=np.where(place == f, "test", np.where(place == (f + 1) % 3, "val", "train"))), 9 * f + risk, model=m, fold=f)
             for f in range(3) for m, risk in (("genes", hidden), ("nothing", noise))]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def curves(pred): return km_curves(risk_groups(pred))


@pytest.fixture(scope="module")
def aucs(pred): return intervals(fold_c(pred, metrics=("harrell_c", "auc_at_20", "auc_at_5.5", "auc_at_10"), n=60))


@pytest.fixture(scope="module")
def forecasts(pred): return fold_forecasts(pred, times=[5, 10, 20])


@pytest.fixture(scope="module")
def briers(forecasts): return intervals(fold_brier(forecasts, n=60))


@pytest.fixture(scope="module")
def sweep():
    rng = np.random.default_rng(0)
    return pd.DataFrame([{"bag_size": k, "seed": s, "loss_form": form, "c_index": .6 + .05 * rng.normal()}
                         for k in (1, 4, 16) for s in range(4) for form in ("ours", "theirs")])


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(figure):
    found = [t.get_text() for ax in figure.axes for t in ax.texts] + [t.get_text() for t in figure.texts]
    return found + [ax.get_title(loc="left") for ax in figure.axes]


def drawn(name, curves, forecasts, aucs, briers, sweep, **options):
    """Every figure of the module by its name."""
    return {"plot_kaplan_meier": lambda: plot_kaplan_meier(curves, model="genes", **options),
            "plot_calibration_at": lambda: plot_calibration_at(calibration_at(forecasts, 10), **options),
            "plot_dynamic_auc": lambda: plot_dynamic_auc(aucs, **options), "plot_brier_curve": lambda: plot_brier_curve(briers, **options),
            "plot_sweep": lambda: plot_sweep(sweep, x="bag_size", y="c_index", by="loss_form", **options)}[name]()


@pytest.mark.parametrize("name", [n for n, _ in inspect.getmembers(survival_figures, inspect.isfunction) if n.startswith("plot_")])
def test_every_figure_is_stamped_drawn_where_asked_and_keeps_its_text_on_the_page(name, curves, forecasts, aucs, briers, sweep):
    given = (curves, forecasts, aucs, briers, sweep)
    before = dict(plt.rcParams)
    plain, stamped = drawn(name, *given), drawn(name, *given, synthetic=True)
    assert "synthetic data" not in texts(plain.figure) and "synthetic data" in texts(stamped.figure)
    figure, ax = plt.subplots()
    assert drawn(name, *given, ax=ax) is ax
    assert {k: v for k, v in plt.rcParams.items() if before[k] != v} == {}
    stamped.figure.canvas.draw()
    page = stamped.figure.bbox
    within = [t.label1 for axis in (stamped.xaxis, stamped.yaxis) for t in axis.get_major_ticks() if min(axis.get_view_interval()) <= t.get_loc() <= max(axis.get_view_interval())]
    boxes = [t.get_window_extent() for t in stamped.texts + within if t.get_text()]
    assert all(b.x0 >= page.x0 - 1 and b.x1 <= page.x1 + 1 and b.y0 >= page.y0 - 1 and b.y1 <= page.y1 + 1 for b in boxes)
    stamp = next(t for t in stamped.figure.texts if t.get_text() == "synthetic data").get_window_extent()
    assert not any(stamp.overlaps(b) for b in boxes if b not in [stamp])  # nor does it hide a number at risk
    lines = [str(line._unscaled_dash_pattern) for line in stamped.lines if len(line.get_xdata()) > 1 and str(line.get_label())[0] != "_"]
    assert len(set(lines)) == len(lines)  # to be told apart in grey print


def test_curves_and_numbers_at_risk(pred, curves):
    ax = plot_kaplan_meier(curves, model="genes", tests=logrank(risk_groups(pred)), end=30)
    mine = curves[(curves["model"] == "genes") & (curves["risk_group"] == 1)]
    high = next(line for line in ax.lines if line.get_label() == "High risk")
    kept = mine[mine["time"] <= 30]
    assert np.array_equal(high.get_ydata()[:-1], kept["survival"]) and high.get_xdata()[-1] <= 30 and high.get_drawstyle() == "steps-post"
    rows = risk_groups(pred).query("model == 'genes' and risk_group == 1")
    at_ten = (rows["time"] >= 10).sum()
    y = sorted({t.xyann[1] for t in ax.texts if t.get_text().isdigit()})[0]  # the last line is that of the high risk
    written = {t.xy[0]: t.get_text() for t in ax.texts if t.get_text().isdigit() and t.xyann[1] == y}
    assert written[10.0] == str(at_ten) and written[0.0] == str(len(rows))
    assert any("150 cases of 150 patients; bands: 95% pointwise; ticks: censored\nLog-rank test: P < 0.001" in t for t in texts(ax.figure))


def test_names_of_groups(pred):
    for n, last in ((3, "High risk"), (4, "Risk group 4 of 4")):
        ax = plot_kaplan_meier(km_curves(risk_groups(pred, n_groups=n)), model="genes")
        assert len(ax.get_legend().get_texts()) == n and ax.get_legend().get_texts()[-1].get_text() == last
    alone = km_curves(risk_groups(pred).query("model == 'genes'").assign(risk_group=0))
    ax = plot_kaplan_meier(alone)
    assert ax.get_legend() is None and "All" in texts(ax.figure)


def test_slides_taken_as_independent_are_said_to_be(pred):
    twice = pd.concat([pred.assign(case_id=pred["case_id"] + k) for k in "ab"], ignore_index=True)
    ax = plot_kaplan_meier(km_curves(risk_groups(twice, level="case")), model="genes")
    assert any("300 cases of 150 patients, taken as independent; bands" in t for t in texts(ax.figure))
    ax = plot_calibration_at(calibration_at(fold_forecasts(twice, times=[5, 10], level="case"), 10))
    assert any("300 cases of 150 patients, taken as independent\nBars" in t for t in texts(ax.figure))


def test_calibration(forecasts):
    points = calibration_at(forecasts, 10)
    ax = plot_calibration_at(points, models=["nothing", "genes"], unit="weeks")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["Nothing", "Genes"] and ax.get_title("left") == "Calibration at 10 weeks"
    line = next(line for line in ax.lines if line.get_label() == "Genes")
    rows = points[points["model"] == "genes"]
    assert np.array_equal(line.get_xdata(), rows["predicted"]) and np.array_equal(line.get_ydata(), rows["observed"])
    unfollowed = points.assign(observed=points["observed"].where(points["bin"] > 0))
    assert any("2 groups were not followed so long" in t for t in texts(plot_calibration_at(unfollowed).figure))


def test_over_time_is_in_the_order_of_the_times(aucs, briers):
    ax = plot_dynamic_auc(aucs)
    line = next(line for line in ax.lines if line.get_label() == "Genes")
    rows = aucs[aucs["model"] == "genes"].set_index("metric")["estimate"]
    assert line.get_xdata().tolist() == [5.5, 10, 20]
    assert line.get_ydata().tolist() == [rows[f"auc_at_{t}"] for t in ("5.5", "10", "20")]
    ax = plot_brier_curve(briers, models=["genes", "kaplan_meier"])
    labels = [t.get_text() for t in ax.get_legend().get_texts()]
    assert labels[1].endswith("]  Kaplan-Meier") and labels[0].startswith(f"{briers.loc[0, 'estimate']:.3f} [")
    assert len(ax.collections) == 2 and not plot_brier_curve(briers, shaded=[]).collections


def test_sweep_shows_every_seed_the_mean_and_the_spread(sweep):
    ax = plot_sweep(sweep, x="bag_size", y="c_index", by="loss_form", chance=.5)
    ours = next(line for line in ax.lines if line.get_label() == "Ours")
    grouped = sweep.query("loss_form == 'ours'").groupby("bag_size")["c_index"]
    assert np.allclose(ours.get_ydata(), grouped.mean()) and ours.get_xdata().tolist() == [1, 4, 16]
    dots = [line for line in ax.lines if line.get_linestyle() == "None"]
    assert sum(len(line.get_xdata()) for line in dots) == len(sweep)
    band = ax.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].max(), (grouped.mean() + grouped.std()).max())
    assert any("4 seeds each" in t for t in texts(ax.figure)) and ax.get_title("left") == "C index by bag size"
    assert any("2 to 4 seeds each" in t for t in texts(plot_sweep(sweep.iloc[4:], x="bag_size", y="c_index", by="loss_form").figure))
    assert plot_sweep(sweep.assign(bag_size=0), x="bag_size", y="c_index").get_xscale() == "linear"


@pytest.mark.parametrize("wrong, message", [
    (lambda c, a, s: plot_kaplan_meier(c), "the model whose groups to draw. Got none of genes, nothing"),
    (lambda c, a, s: plot_kaplan_meier(c, model="gens"), "Did you mean 'genes'"),
    (lambda c, a, s: plot_kaplan_meier(c.iloc[:0]), "at least one curve"),
    (lambda c, a, s: plot_kaplan_meier(c.drop(columns="at_risk")), "at_risk"),
    (lambda c, a, s: plot_dynamic_auc(a[a["metric"] == "harrell_c"]), "metrics auc_at_<time>. Got harrell_c"),
    (lambda c, a, s: plot_dynamic_auc(a.iloc[:0]), "Got an empty table"),
    (lambda c, a, s: plot_dynamic_auc(a, models=["gens"]), "Did you mean 'genes'"),
    (lambda c, a, s: plot_brier_curve(a), "metrics brier_at_<time>"),
    (lambda c, a, s: plot_calibration_at(a), "predicted"),
    (lambda c, a, s: plot_sweep(s, x="bag", y="c_index"), "bag"),
    (lambda c, a, s: plot_sweep(s.iloc[:0], x="bag_size", y="c_index"), "at least one run. Got an empty table"),
    (lambda c, a, s: plot_sweep(s.assign(c_index="high"), x="bag_size", y="c_index"), "finite numbers in the column 'c_index' of the sweep. Got 'high' in 24 rows"),
])
def test_bad_input(wrong, message, curves, aucs, sweep):
    with pytest.raises(DataError, match=message): wrong(curves, aucs, sweep)
