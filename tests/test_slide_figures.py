"""Attention inside a region and ranked genes against loops and bags whose truth is known, figures that show what they were given, bad input."""
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy.stats import bootstrap, mannwhitneyu, spearmanr

from fusion_nb.figures import save_figure
from fusion_nb.schema import DataError
from fusion_nb.slide_figures import (attention_inside, inside_region, plot_attention_inside, plot_attention_map, plot_grid, plot_outliers,
                                     plot_ranked_genes, plot_top_patches, rank_genes)

PATCH = 10


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def bags(n=30, seed=0, pull=0.0):
    """Attention over bags of different size and the share of each patch in the region; `pull`: how much a patch inside is preferred."""
    rng, tables, shares = np.random.default_rng(seed), [], []
    for row in range(n):
        size = rng.integers(20, 60)
        inside = (rng.random(size) < rng.uniform(0.15, 0.6)).astype(float)
        inside[:2] = 0, 1
        score = pull * inside + rng.normal(size=size)
        tables.append(pd.DataFrame({"row": row, "patch": range(size), "slide": f"s{row}", "x": np.arange(size) % 8 * PATCH, "y": np.arange(size) // 8 * PATCH,
                                    "weight": np.exp(score) / np.exp(score).sum()}))
        shares.append(inside)
    return pd.concat(tables, ignore_index=True), np.concatenate(shares)


def estimates(*args, **options): return attention_inside(*args, **{"n": 50, **options}).set_index("measure")["estimate"]


# ---- attention inside a region

def test_all_attention_inside():
    attention, inside = bags()
    attention["weight"] = inside * attention["weight"]
    e = estimates(attention, inside)
    assert np.isclose(e["attention"], 1) and e["pointing"] == 1 and np.isclose(e["ranked"], 1) and np.isclose(e["difference"], 1 - e["area"])


def test_all_attention_beside():
    attention, inside = bags()
    attention["weight"] = (1 - inside) * attention["weight"]
    e = estimates(attention, inside)
    assert e["attention"] == e["pointing"] == e["ranked"] == 0 and np.isclose(e["difference"], -e["area"])


def test_even_attention_is_chance():
    attention, inside = bags()
    e = estimates(attention.assign(weight=0.7), inside)
    area = pd.Series(inside).groupby(attention["row"]).mean().mean()
    assert np.allclose(e[["attention", "area", "pointing"]], area) and np.isclose(e["ranked"], 0.5) and np.isclose(e["ratio"], 1)


def test_against_a_loop():
    attention, inside = bags(pull=1)
    found = []
    for row in attention["row"].unique():
        w, i = (v[(attention["row"] == row).to_numpy()] for v in (attention["weight"].to_numpy(), inside))
        u = mannwhitneyu(w[i == 1], w[i == 0]).statistic / (sum(i == 1) * sum(i == 0))
        found.append((sum(w[i == 1]), np.mean(i), i[np.argmax(w)], u))
    assert np.allclose(estimates(attention, inside)[["attention", "area", "pointing", "ranked"]], np.mean(found, axis=0))


def test_intervals_are_those_of_the_mean():
    attention, inside = bags(150, pull=1)
    found = attention_inside(attention, inside, n=2000).set_index("measure").loc["difference"]
    each = (attention["weight"] * inside).groupby(attention["row"]).sum() - pd.Series(inside).groupby(attention["row"]).mean()
    other = bootstrap((each,), np.mean, method="percentile", n_resamples=2000, rng=1).confidence_interval
    assert np.allclose([found["low"], found["high"]], [other.low, other.high], atol=0.004) and np.isclose(found["estimate"], each.mean())


def test_the_interval_covers_chance_as_often_as_it_says():
    covered = [(lambda f: f["low"] <= 0 <= f["high"])(attention_inside(*bags(40, seed=s), n=200, seed=s).set_index("measure").loc["difference"]) for s in range(60)]
    assert 50 <= sum(covered) <= 60


def test_patients_are_drawn_whole():
    attention, inside = bags(20)
    copies = pd.concat([attention.assign(row=attention["row"] + 20 * k) for k in range(4)], ignore_index=True)
    width = {g is None: attention_inside(copies, np.tile(inside, 4), g, n=1000).eval("high - low")[0] for g in (None, np.arange(80) % 20)}
    assert 1.7 < width[False] / width[True] < 2.3  # four copies of a case say no more than one


def test_groups_are_looked_up_by_row():
    attention, inside = bags(20)
    some, kept = attention["row"].isin([3, 7, 11, 19]), np.arange(20) // 2
    assert attention_inside(attention[some].reset_index(drop=True), inside[some], kept, n=50)["n_groups"].iloc[0] == 4
    assert attention_inside(attention, inside, kept, n=50)["n_groups"].iloc[0] == 10


def test_cases_without_the_region_are_left_out_and_counted():
    attention, inside = bags()
    inside[attention["row"] == 4] = 0
    inside[attention["row"] == 9] = 1
    found, kept = attention_inside(attention, inside, n=50), ~attention["row"].isin([4, 9])
    assert (found["n_left_out"] == 2).all() and (found["n"] == 28).all()
    pd.testing.assert_frame_equal(found.drop(columns="n_left_out"), attention_inside(attention[kept], inside[kept], n=50).drop(columns="n_left_out"))


def test_another_model_is_compared_case_by_case():
    (trained, inside), (random, _) = bags(pull=1.5), bags(seed=1)
    random = trained.assign(weight=np.random.default_rng(1).random(len(trained)))
    found = attention_inside(trained, inside, against=random, n=300).set_index("measure")
    assert np.isclose(found.at["against", "estimate"], estimates(random, inside)["attention"]) and found.at["against_difference", "low"] > 0
    same = attention_inside(trained, inside, against=trained, n=50).set_index("measure").loc["against_difference", ["estimate", "low", "high"]]
    assert (same.astype(float) == 0).all()
    assert "against" not in set(attention_inside(trained, inside, n=50)["measure"])


@pytest.mark.parametrize("change, message", [
    (dict(inside=np.ones(3)), "a share from 0 to 1 for each of"), (dict(inside=lambda a: np.full(len(a), 1.5)), "a share from 0 to 1"),
    (dict(inside=lambda a: np.full(len(a), np.nan)), "a share from 0 to 1"), (dict(inside=lambda a: np.zeros(len(a))), "none among 30"), (dict(groups=np.zeros(30)), "30 cases of 1"), (dict(groups=[None, *range(29)]), "1 missing"),
    (dict(against=lambda a: a.iloc[1:]), "the same patches in the same order"), (dict(attention=lambda a: a.drop(columns="weight")), "'weight' in the table of the attention")])
def test_bad_attention(change, message):
    attention, inside = bags()
    given = {"attention": attention, "inside": inside, **{k: v(attention) if callable(v) else v for k, v in change.items()}}
    with pytest.raises(DataError, match=message): attention_inside(**given, n=20)


def test_region_of_patches_against_pixels():
    rng = np.random.default_rng(0)
    masks = {"a": rng.random((80, 100)) < 0.3, "b": rng.random((60, 60)) < 0.7}
    table = pd.DataFrame({"slide": ["a", "b", "a", "a"], "x": [0, 20, 90, 33], "y": [0, 50, 70, 21]})
    expected = [masks[s][y:y + 10, x:x + 10].mean() for s, x, y in table.to_numpy()]
    assert np.allclose(inside_region(table, masks, patch=10), expected)
    coarse = {s: np.kron(m, np.ones((4, 4), bool)) for s, m in masks.items()}  # the same at four times the size
    assert np.allclose(inside_region(table.assign(x=4 * table["x"], y=4 * table["y"]), coarse, patch=40), expected)
    assert np.allclose(inside_region(table.assign(x=4 * table["x"], y=4 * table["y"]), masks, patch=40, scale=4), expected)
    assert inside_region(table.iloc[:1].assign(x=85), {"a": np.ones((80, 90), bool)}, patch=10).tolist() == [1]  # of a patch at the edge counts what lies on the slide


def test_regions_that_do_not_fit():
    table = pd.DataFrame({"slide": ["a"], "x": [500], "y": [0]})
    with pytest.raises(DataError, match="the region of the slide 'a'"): inside_region(table, {"b": np.ones((9, 9))}, patch=3)
    with pytest.raises(DataError, match="on a slide of 90 x 90 pixels.*x=500.*Give `scale`"): inside_region(table, {"a": np.ones((90, 90))}, patch=3)
    with pytest.raises(DataError, match="above 0"): inside_region(table, {"a": np.ones((90, 90))}, patch=0)


# ---- ranked genes

def attributions(n=60, genes=30, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, genes)) * np.linspace(3, 0.1, genes), [f"G{i}" for i in range(genes)]


def test_means_and_intervals_against_scipy():
    values, names = attributions()
    found = rank_genes(values, names, n=4000).set_index("gene")
    for g in (0, 10, 29):
        other = bootstrap((np.abs(values[:, g]),), np.mean, method="percentile", n_resamples=4000, rng=g).confidence_interval
        row = found.loc[f"G{g}"]
        assert np.isclose(row["mean"], np.abs(values[:, g]).mean()) and np.allclose([row["low"], row["high"]], [other.low, other.high], rtol=0.03)
    assert found["rank"].tolist() == sorted(found["rank"]) and np.isclose(found["share"].sum(), 1)


def test_patients_and_not_samples_are_drawn():
    values, names = attributions(20)
    width = {g is None: rank_genes(np.tile(values, (4, 1)), names, g, n=1000).eval("high - low").mean() for g in (None, np.arange(80) % 20)}
    assert 1.7 < width[False] / width[True] < 2.3


def test_ranks_tell_a_leader_from_equals():
    rng = np.random.default_rng(0)
    values = np.c_[5 + rng.normal(size=80), rng.normal(size=(80, 20))]
    found = rank_genes(values, [f"G{i}" for i in range(21)], n=500)
    assert found["gene"][0] == "G0" and found.loc[0, ["rank", "rank_low", "rank_high"]].tolist() == [1, 1, 1]
    assert (found["rank_high"] - found["rank_low"])[1:].min() > 5  # none of the equals is told from the others


def test_ties_share_their_mean_rank():
    found = rank_genes(np.tile([1.0, -1, 0, 0, 2], (6, 1)), list("abcde"), n=20).set_index("gene")
    assert found["rank"].to_dict() == {"e": 1, "a": 2.5, "b": 2.5, "c": 4.5, "d": 4.5}
    assert (rank_genes(np.zeros((6, 2)), ["a", "b"], n=20)["rank"] == 1.5).all()


def test_directions_are_rank_correlations():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(size=(50, 4)), np.array([1, -2, 0, 0.5])
    found = rank_genes(values * weights + [0, 0, 0, 1] * rng.normal(size=(50, 1)), list("abcd"), values=values, n=20).set_index("gene")
    assert found.at["a", "direction"] == 1 and found.at["b", "direction"] == -1 and np.isnan(found.at["c", "direction"])
    assert rank_genes(values, list("abcd"), n=20)["direction"].isna().all()
    noisy = values * weights + rng.normal(size=(50, 4))
    found = rank_genes(noisy, list("abcd"), values=values, n=20).set_index("gene").loc[list("abcd"), "direction"]
    assert np.allclose(found, [spearmanr(values[:, g], noisy[:, g]).statistic for g in range(4)])


def test_cases_without_expression_are_left_out_and_counted():
    values, names = attributions()
    gaps = values.copy()
    gaps[[3, 8]] = np.nan
    found, kept = rank_genes(gaps, names, np.arange(60), values=gaps, n=50), np.delete(np.arange(60), [3, 8])
    assert (found["n_missing"] == 2).all() and (found["n"] == 58).all()
    pd.testing.assert_frame_equal(found.drop(columns="n_missing"), rank_genes(values[kept], names, kept, values=values[kept], n=50).drop(columns="n_missing"))


def test_the_seed_decides():
    a, b, c = (rank_genes(*attributions(), n=100, seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(a, b)
    assert not np.allclose(a["low"], c["low"])


@pytest.mark.parametrize("change, message", [
    (dict(attributions=np.ones(5)), r"cases by genes \(n, G\)"), (dict(names=["a"] * 29), "a name for each of 30 genes"),
    (dict(names=["a"] * 30), "'a' twice, 29 such names"), (dict(values=np.ones((60, 2))), r"values of shape \(60, 30\)"),
    (dict(groups=np.zeros(60)), "60 cases of 1"), (dict(groups=np.arange(59)), "a patient for each of 60"), (dict(gap=(4, 7)), "nan in row 4 for the gene 'G7'")])
def test_bad_attributions(change, message):
    values, names = attributions()
    if gap := change.pop("gap", None): values[gap] = np.nan
    with pytest.raises(DataError, match=message): rank_genes(**{"attributions": values, "names": names, **change}, n=20)


def test_all_genes_of_a_cohort_in_seconds():
    values = np.random.default_rng(0).normal(size=(300, 12_778)).astype(np.float32)
    start = time.process_time()
    found = rank_genes(values, list(range(12_778)), n=200)
    assert len(found) == 12_778 and time.process_time() - start < 12


# ---- figures

def one_case(seed=0): return bags(1, seed)[0]


def thumbnail(height=100, width=90): return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def test_map_shows_multiples_of_the_even_share():
    case = one_case()
    left, right = plot_attention_map(thumbnail(), case, patch=PATCH, scale=1)
    heat = right.images[1].get_array().filled(np.nan)
    for _, p in case.iterrows(): assert np.allclose(heat[p["y"]:p["y"] + PATCH, p["x"]:p["x"] + PATCH], p["weight"] * len(case))
    assert np.isfinite(heat).sum() == len(case) * PATCH ** 2 and len(left.images) == 1 and (left.images[0].get_array() == thumbnail()).all()


def test_map_of_one_of_several_slides():
    case = one_case()
    case.loc[10:, "slide"] = "other"
    right = plot_attention_map(thumbnail(), case, patch=PATCH, scale=1, slide="other")[1]
    heat = right.images[1].get_array().filled(np.nan)
    assert np.isclose(np.nansum(heat) / PATCH ** 2, case["weight"][10:].sum() * len(case))  # of the whole case's even share
    assert f"{len(case) - 10} patches of the case" in right.figure.get_supxlabel()
    with pytest.raises(DataError, match="There is: s0, other"): plot_attention_map(thumbnail(), case, patch=PATCH, scale=1)
    with pytest.raises(DataError, match="'third'"): plot_attention_map(thumbnail(), case, patch=PATCH, scale=1, slide="third")


def test_map_says_how_far_the_attention_is_spread():
    case = one_case().iloc[:16]
    def note(weight, **options): return plot_attention_map(thumbnail(), case.assign(weight=weight), patch=PATCH, scale=1, **options)[0].figure.get_supxlabel()
    assert "in effect on 16; highest 1.0 times" in note(1 / 16) and "in effect on 1; highest 16.0 times" in note(np.eye(16)[3])
    assert "Outline: known region" in note(1 / 16, region=np.tri(100, 90, dtype=bool))


def test_nearly_even_attention_does_not_look_like_a_choice():
    case = one_case().iloc[:16]
    def limits(weight): return plot_attention_map(thumbnail(), case.assign(weight=weight), patch=PATCH, scale=1)[1].images[1].get_clim()
    assert np.allclose(limits(np.linspace(0.9, 1.1, 16) / 16), (2 / 3, 1.5))
    wide = np.linspace(0, 2, 16) / 16
    assert np.allclose(limits(wide), np.percentile(16 * wide, (1, 99)))


def test_one_extreme_patient_cannot_hide_behind_a_first_rank():
    values, names = attributions()
    values[7, 29] = 1000  # the least of the genes, in one patient
    found = rank_genes(values, names, n=300).set_index("gene").loc["G29"]
    assert found["rank"] == 1 and found["rank_low"] == 1 and found["rank_high"] == 30


def test_grid_outlines_every_patch():
    coords = np.array([[0, 0], [40, 0], [360, 440]])
    ax = plot_grid(thumbnail(120, 100), coords, patch=40, scale=4, note="dropped: 12")
    corners = np.array([s[[0, 2]].ravel() for s in ax.collections[0].get_segments()])
    assert np.allclose(corners, np.array([[0, 0, 10, 10], [10, 0, 20, 10], [90, 110, 100, 120]]) - 0.5)
    assert "3 patches of 40 pixels" in ax.texts[0].get_text() and "dropped: 12" in ax.texts[0].get_text() and "400 by 480" in ax.get_xlabel()


def test_top_patches_stand_in_blocks():
    top = pd.DataFrame({"end": ["highest"] * 5 + ["lowest"] * 2, "times": [9, 8, 7, 6, 5, 0.01, 0.02]})
    patches = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3)).astype(np.uint8)
    axes = plot_top_patches(patches, top, across=3)
    assert all((ax.images[0].get_array() == p).all() for ax, p in zip(axes, patches)) and axes[5].get_title() == "0.01\N{MULTIPLICATION SIGN}"
    assert [ax.get_subplotspec().rowspan.start for ax in axes] == [0, 0, 0, 1, 1, 2, 2]


def test_ranked_genes_show_their_marks():
    values, names = attributions()
    ranked = rank_genes(values, names, values=values, n=50)
    ax = plot_ranked_genes(ranked, top=6, marked=["G2"])
    labels = ax.get_yticklabels()
    assert [t.get_text() for t in labels] == ranked["gene"][:6].tolist() and [t.get_fontweight() for t in labels].count("bold") == 1
    marks = np.concatenate([c.get_offsets() for c in ax.collections if hasattr(c, "get_sizes")])
    assert np.allclose(np.sort(marks[:, 0]), np.sort(ranked["mean"][:6])) and "6 of 30 genes; 60 cases" in ax.texts[-1].get_text()


def test_attention_inside_draws_the_other_model_where_there_is_one():
    attention, inside = bags(pull=1)
    found = attention_inside(attention, inside, against=attention, n=20)
    assert len(plot_attention_inside(found).get_yticklabels()) == 5 and len(plot_attention_inside(found.iloc[:-2]).get_yticklabels()) == 4


def test_outliers_before_and_after():
    found = pd.DataFrame({"patient": list("abcdef"), "distance": [1, 5, 1.2, np.nan, 9, 1.1], "threshold": 2.0})
    found["outlier"] = found["distance"] > 2
    before, after = plot_outliers(found, names=1)
    assert "6 patients, 2 beyond" in before.get_title(loc="left") and "4 patients, 0 beyond" in after.get_title(loc="left")
    assert [t.get_text() for t in before.texts] == ["e"] and "not drawn: 1" in before.figure.get_supxlabel()
    again = plot_outliers(found, found.iloc[[0, 2, 5]].assign(threshold=1.15, outlier=[False, True, False]))[1]
    assert "3 patients, 1 beyond" in again.get_title(loc="left")


def test_names_of_outlying_patients_do_not_lie_over_each_other():
    distance = np.array([1.0] * 20 + [2.2, 2.25, 3.0, 3.01, 3.02, 4.1])
    found = pd.DataFrame({"patient": [f"TCGA-A0-{i:04d}" for i in range(26)], "distance": distance, "threshold": 1.8, "outlier": distance > 1.8})
    before, after = plot_outliers(found, found.assign(threshold=2.0), names=6)
    before.figure.canvas.draw()
    for ax in (before, after):
        boxes = [t.get_window_extent() for t in ax.texts]
        assert [t.get_text()[-2:] for t in ax.texts] == ["25", "24", "21"] and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


CASE = one_case()


@pytest.mark.parametrize("draw, message", [
    (lambda: plot_attention_map(thumbnail()[..., 0], CASE, patch=PATCH, scale=1), r"uint8 \(H, W, 3\)"),
    (lambda: plot_attention_map(thumbnail() / 255, CASE, patch=PATCH, scale=1), "float64"),
    (lambda: plot_attention_map(thumbnail(20, 20), CASE, patch=PATCH, scale=1), "on a slide of 20 x 20 pixels"),
    (lambda: plot_attention_map(thumbnail(), bags(2)[0], patch=PATCH, scale=1), "2 cases"),
    (lambda: plot_attention_map(thumbnail(), CASE, patch=PATCH, scale=1, region=np.ones((3, 3))), "a region of the thumbnail's 100 x 90"),
    (lambda: plot_attention_map(thumbnail(), pd.DataFrame({"a": [1]}), patch=PATCH, scale=1), "table of the attention"),
    (lambda: plot_grid(thumbnail(), np.empty((0, 2)), patch=PATCH, scale=1), "at least one patch"),
    (lambda: plot_top_patches(np.zeros((2, 4, 4, 3), np.uint8), pd.DataFrame({"end": ["highest"], "times": [1]})), "each of 1 rows"),
    (lambda: plot_top_patches(np.zeros((1, 4, 4, 3), np.uint8), pd.DataFrame({"end": ["highest"]})), "'times' in the table of the top patches"),
    (lambda: plot_ranked_genes(pd.DataFrame({"gene": ["a"]})), "table of the genes"),
    (lambda: plot_attention_inside(pd.DataFrame({"a": [1]})), "attention inside"),
    (lambda: plot_outliers(pd.DataFrame({"a": [1]})), "outlying patients"),
    (lambda: plot_outliers(pd.DataFrame(columns=["patient", "distance", "threshold", "outlier"])), "at least one patient")])
def test_bad_figures(draw, message):
    with pytest.raises(DataError, match=message): draw()


@pytest.mark.parametrize("draw", [
    lambda: plot_attention_map(thumbnail(), CASE, patch=PATCH, scale=1, synthetic=True)[0], lambda: plot_grid(thumbnail(), CASE[["x", "y"]], patch=PATCH, scale=1, synthetic=True),
    lambda: plot_ranked_genes(rank_genes(*attributions(), n=20), synthetic=True), lambda: plot_attention_inside(attention_inside(*bags(), n=20), synthetic=True),
    lambda: plot_top_patches(np.zeros((1, 4, 4, 3), np.uint8), pd.DataFrame({"end": ["highest"], "times": [1]}), synthetic=True)[0],
    lambda: plot_outliers(pd.DataFrame({"patient": ["a"], "distance": [1.0], "threshold": 2.0, "outlier": False}), synthetic=True)[0]])
def test_figures_are_stamped_and_the_same_each_time(draw, tmp_path):
    one, two = (save_figure(draw(), tmp_path / name, "figure", formats=("svg",))[0].read_text() for name in "ab")
    assert one == two and "synthetic data" in one
