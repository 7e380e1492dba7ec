"""Heat in lesions against loops and planted maps, files with hostile names, figures that show what they were given, and the real masks."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import shap
from PIL import Image

from fusion_nb.data.breast_lesions import read_breast_lesions
from fusion_nb.data.images import decode_image
from fusion_nb.explain_figures import (heat_inside, plot_beeswarm, plot_heat_inside, plot_heatmaps, plot_modality_share, plot_sanity,
                                       plot_shap_bars, plot_waterfall, read_masks, save_heatmaps)
from fusion_nb.figures import save_figure
from fusion_nb.schema import DataError


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


def discs(n=30, side=32, seed=0):
    """bool (n, H, W): a disc in each."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:side, :side]
    y, x, r = rng.integers(8, side - 8, n), rng.integers(8, side - 8, n), rng.integers(3, 8, n)
    return np.hypot(yy - y[:, None, None], xx - x[:, None, None]) < r[:, None, None]


def noise(n=30, side=32, seed=1): return np.random.default_rng(seed).random((n, side, side)).astype(np.float32)


def estimates(*args, **options): return heat_inside(*args, **{"n": 50, **options}).set_index("measure")["estimate"]


# ---- heat inside

def test_heat_on_the_lesion_alone():
    masks = discs()
    e = estimates(masks * noise(), masks)
    assert np.isclose(e["heat_inside"], 1) and np.isclose(e["pointing"], 1) and np.isclose(e["difference"], 1 - masks.mean())


def test_heat_beside_the_lesion():
    masks = discs()
    e = estimates(~masks * noise(), masks)
    assert e["heat_inside"] == 0 and e["pointing"] == 0 and np.isclose(e["difference"], -masks.mean())


def test_even_heat_is_the_area():
    masks = discs()
    e = estimates(np.full(masks.shape, 0.3), masks)
    assert np.allclose(e[["heat_inside", "pointing", "area"]], masks.mean()) and np.isclose(e["ratio"], 1) and np.isclose(e["difference"], 0)


def test_heat_in_the_middle_beats_the_area_and_not_the_other_masks():
    yy, xx = np.mgrid[:32, :32]
    middle = np.broadcast_to(np.exp(-np.hypot(yy - 16, xx - 16) / 6), (60, 32, 32))  # the same map for everybody: it has seen no image
    found = heat_inside(middle, discs(60), n=400).set_index("measure")
    assert found.at["difference", "low"] > 0
    assert found.at["difference_shuffled", "low"] < 0 < found.at["difference_shuffled", "high"]
    assert found.at["pointing_difference", "low"] < 0 < found.at["pointing_difference", "high"]


def test_every_measure_against_loops():
    heat, masks, group = noise(12, 10), discs(12, 20)[:, ::2, ::2], np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 5, 6, 7])
    masks[:, 0, 0] = True  # none empty at this size
    heat[:, 3, 3] = heat[:, 4, 4] = heat.max()  # two places share the maximum
    inside = lambda spread, i, j: sum(spread[i][y, x] for y in range(10) for x in range(10) if masks[j][y, x]) / spread[i].sum()
    peak = np.array([h == h.max() for h in heat]).astype(float)
    own, own_peak = ([inside(s, i, i) for i in range(12)] for s in (heat, peak))
    others, others_peak = ([np.mean([inside(s, i, j) for j in range(12) if group[j] != group[i]]) for i in range(12)] for s in (heat, peak))
    area, e = masks.mean(), estimates(heat, masks, group)
    expected = {"heat_inside": np.mean(own), "area": area, "difference": np.mean(own) - area, "ratio": np.mean(own) / area,
                "heat_inside_shuffled": np.mean(others), "difference_shuffled": np.mean(own) - np.mean(others), "pointing": np.mean(own_peak),
                "pointing_shuffled": np.mean(others_peak), "pointing_difference": np.mean(own_peak) - np.mean(others_peak)}
    assert list(e.index) == list(expected) and np.allclose(e, list(expected.values()), atol=1e-6)


def test_intervals_are_those_of_the_mean():
    heat, masks = noise(200) ** 3, discs(200)
    found = heat_inside(heat, masks, n=2000).set_index("measure").loc["heat_inside"]
    own = (heat * masks).sum(axis=(1, 2)) / heat.sum(axis=(1, 2))
    half = 1.96 * own.std() / len(own) ** .5
    assert np.isclose((found["high"] - found["low"]) / 2, half, rtol=0.06) and found["low"] < own.mean() < found["high"]


def test_intervals_draw_patients_whole():
    heat, masks, patient = np.repeat(noise(40), 4, axis=0), np.repeat(discs(40), 4, axis=0), np.repeat(np.arange(40), 4)
    width = lambda groups: heat_inside(heat, masks, groups, n=1000).eval("high - low")[0]
    assert 1.7 < width(patient) / width(None) < 2.3  # four copies of a case say no more than one
    once = heat_inside(heat[::4], masks[::4], n=1000)
    assert np.allclose(once["estimate"], heat_inside(heat, masks, patient, n=10)["estimate"], atol=1e-6)


def test_maps_without_heat_are_left_out_and_counted():
    heat, masks = noise(), discs()
    heat[[2, 7]] = 0
    found, kept = heat_inside(heat, masks, n=50), np.delete(np.arange(30), [2, 7])
    assert (found["n_empty"] == 2).all() and (found["n"] == 28).all() and (found["n_groups"] == 28).all()
    pd.testing.assert_frame_equal(found.drop(columns="n_empty"), heat_inside(heat[kept], masks[kept], n=50).drop(columns="n_empty"))


def test_the_seed_decides():
    a, b, c = (heat_inside(noise(), discs(), n=100, seed=s) for s in (1, 1, 2))
    pd.testing.assert_frame_equal(a, b)
    assert not np.allclose(a["low"], c["low"])


@pytest.mark.parametrize("change, message", [
    (dict(heatmaps=-noise()), "not below 0"),
    (dict(heatmaps=np.full((30, 32, 32), np.nan)), "finite heat"),
    (dict(heatmaps=noise()[0]), r"heatmaps \(n, H, W\)"),
    (dict(heatmaps=0 * noise()), "at least two patients"),
    (dict(masks=discs()[:29]), "for each of 30 heatmaps"),
    (dict(masks=discs(side=30)), "32 x 32 pixels"),
    (dict(masks=0 * discs()), "30 masks without a pixel"),
    (dict(groups=np.zeros(30)), "at least two patients"),
    (dict(groups=np.arange(29)), "29 of them"),
    (dict(groups=[None, *range(29)]), "1 missing"),
])
def test_bad_maps(change, message):
    with pytest.raises(DataError, match=message): heat_inside(**{"heatmaps": noise(), "masks": discs(), **change}, n=20)


def test_masks_of_files(tmp_path):
    wide = np.zeros((20, 40), np.uint8)
    wide[5:15, 10:20] = 255
    for name, picture in (("a.png", wide), ("empty.png", 0 * wide)): Image.fromarray(picture).save(tmp_path / name)
    mask = read_masks([tmp_path / "a.png"], size=40)[0]  # padded above and below, as the image is
    assert mask.dtype == bool and mask.sum() == 100 and mask[15:25, 10:20].all()
    with pytest.raises(DataError, match="in 1 of 2, the first empty.png"): read_masks([tmp_path / "a.png", tmp_path / "empty.png"], size=40)


# ---- files

HOSTILE = ["../../up", "/etc/abs", "a/b", "..", "", "CON", "x" * 300, "名前", "a\0b", "c:\\d", "~", "-rf"]


def saved(folder, names, classes=("one", "two"), **options):
    n = len(names)
    cases = pd.DataFrame({"case_id": names, "label": np.arange(n) % len(classes)})
    images = np.random.default_rng(0).integers(0, 256, (n, 3, 16, 16)).astype(np.uint8)
    return save_heatmaps(images, noise(n, 16), cases, folder, classes=classes, **options)


def test_hostile_names_stay_in_the_folder(tmp_path):
    folder = tmp_path / "deep" / "maps"
    index = saved(folder, HOSTILE, classes=("../..", "/etc x"), per_class=99)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(files) == len(index) == len(HOSTILE) and all(p.is_relative_to(folder) for p in files)
    assert {p.parent.name for p in files} == {"unnamed", "etc_x"} and all(len(p.name) < 100 for p in files)
    assert sorted(p.relative_to(folder).as_posix() for p in files) == sorted(index["file"])


def test_a_class_named_like_a_device(tmp_path):
    assert saved(tmp_path, ["a", "b"], classes=("nul", "com1"))["file"].str.startswith(("nul_/", "com1_/")).all()


def test_a_fixed_number_per_class(tmp_path):
    index = saved(tmp_path, [f"case{i}" for i in range(20)], per_class=4)
    assert index.groupby("class")["case_id"].apply(list).to_dict() == {"one": ["case0", "case2", "case4", "case6"], "two": ["case1", "case3", "case5", "case7"]}
    assert len(list(tmp_path.rglob("*.png"))) == 8
    first = (tmp_path / index["file"][0]).read_bytes()
    saved(tmp_path, [f"case{i}" for i in range(20)], per_class=4)  # again: the same files
    assert (tmp_path / index["file"][0]).read_bytes() == first and len(list(tmp_path.rglob("*"))) == 10
    assert len(saved(tmp_path / "all", ["a", "b", "c"], per_class=99)) == 3


def test_what_a_picture_holds(tmp_path):
    images, heat = np.full((2, 1, 16, 16), 100, np.uint8), np.zeros((2, 16, 16))
    heat[0, 4, 5] = 1
    cases = pd.DataFrame({"case_id": ["a", "b"], "label": [0, 1]})
    index = save_heatmaps(images, heat, cases, tmp_path, classes=("one", "two"), synthetic=True)
    pictures = [Image.open(tmp_path / file) for file in index["file"]]
    a, b = (np.asarray(p) for p in pictures)
    assert a.shape == (256, 512, 3) and (b == 100).all() and (a[:, :256] == 100).all()
    different = (a[:, 256:] != 100).any(axis=2)
    assert different.sum() == 256 and different[64:80, 80:96].all()
    assert index["empty"].tolist() == [False, True] and index["file"].str.endswith("_synthetic.png").all()
    assert all(p.info["Description"] == "synthetic data" for p in pictures)


def test_pictures_of_another_set_are_refused(tmp_path):
    saved(tmp_path, list("abcd"))
    with pytest.raises(DataError, match="without other pictures.*Give another folder"): saved(tmp_path, list("abcd"), per_class=1)


@pytest.mark.parametrize("names, options, message", [
    (["a", "b"], dict(classes=("x/y", "x y")), "stay different"), (["a", "b"], dict(per_class=0), "per_class=0")])
def test_bad_files(tmp_path, names, options, message):
    with pytest.raises(DataError, match=message): saved(tmp_path, names, **options)


# ---- figures

def explanation(n=40, of_classes=0):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(n, 6, *([of_classes] if of_classes else []))) * np.array([0.1, 3, 1, 0.5, 2, 0.01]).reshape(6, *[1] * bool(of_classes))
    data = rng.normal(size=(n, 6))
    data[::5] = np.nan
    return shap.Explanation(values, np.full(values.shape[:1] + values.shape[2:], 0.7), data, feature_names=[f"lab_{c}" for c in "abcdef"])


def texts(ax): return [t.get_text() for t in ax.get_yticklabels()]


def test_waterfall_climbs_from_the_base_to_the_score():
    e = explanation()
    total = e.values.sum(axis=1) + e.base_values
    for case, row in (("high", total.argmax()), ("low", total.argmin()), (3, 3)):
        ax = plot_waterfall(e, case=case, top=4)
        bars = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
        assert len(bars) == 4 and np.isclose(bars[0][1], total[row]) and np.isclose(bars[-1][0], 0.7)
        assert all(np.isclose(above[0], below[1]) for above, below in zip(bars, bars[1:]))
        assert texts(ax)[-1] == "3 other variables" and np.isclose(bars[-1][1] - bars[-1][0], np.sort(e.values[row][np.argsort(-np.abs(e.values[row]))[3:]]).sum())
    assert any("not recorded" in t for t in texts(plot_waterfall(e, case=5)))
    assert len(plot_waterfall(e, top=6).patches) == 6


def test_bars_are_mean_absolute_values():
    e = explanation()
    ax = plot_shap_bars(e, top=3)
    assert texts(ax) == ["Lab b", "Lab e", "Lab c"] and np.allclose([p.get_width() for p in ax.patches], np.sort(np.abs(e.values).mean(axis=0))[::-1][:3])
    several = plot_shap_bars(explanation(of_classes=3), classes=["x", "y", "z"])
    assert len(several.patches) == 18 and [t.get_text() for t in several.get_legend().get_texts()] == ["X", "Y", "Z"]


def test_swarm_has_a_dot_per_case_and_changes_nothing():
    e = explanation()
    values, state = e.values.copy(), np.random.get_state()[1].copy()
    ax = plot_beeswarm(e, top=4)
    assert texts(ax) == ["Lab d", "Lab c", "Lab e", "Lab b"]  # from below
    dots = np.concatenate([c.get_offsets()[:, 0] for c in ax.collections])
    assert np.allclose(np.sort(dots), np.sort(values[:, [1, 2, 3, 4]].ravel()))
    assert np.array_equal(e.values, values) and (np.random.get_state()[1] == state).all() and "4 largest of 6" in ax.texts[0].get_text()


def test_one_class_of_several():
    e = explanation(of_classes=3)
    for plot in (plot_beeswarm, plot_waterfall):
        with pytest.raises(DataError, match="Choose a class"): plot(e)
        plot(e[:, :, 1])


def test_heatmaps_show_what_was_given():
    heat, masks = noise(5), discs(5)
    heat[1] = 0
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 32, 32)).astype(np.uint8)
    axes = plot_heatmaps(images, heat, masks=masks, across=3, synthetic=True)
    figure = axes[0].figure
    assert len(axes) == 5 and "1 of 5 maps is empty" in figure.get_supxlabel() and any(t.get_text() == "synthetic data" for t in figure.texts)
    shown = [ax.images[0].get_array() for ax in axes]
    assert np.allclose(shown[1][..., 0] * 255, images[1, 0]) and not np.allclose(shown[0][..., 0] * 255, images[0, 0])
    assert "empty" not in plot_heatmaps(images[2:], heat[2:])[0].figure.get_supxlabel()
    with pytest.raises(DataError, match="an image and a mask"): plot_heatmaps(images[:4], heat)


def test_share_of_each_modality():
    share = pd.DataFrame({"table_share": [0.1, 0.3, np.nan, 0.5], "table_share_signed": [0.2, 0.2, np.nan, 0.9]})
    ax = plot_modality_share(share, labels=np.array(["a", "b", "a", "a"]))
    x = np.sort(np.concatenate([c.get_offsets()[:, 0] for c in ax.collections if hasattr(c, "get_sizes")]))
    assert {10, 30, 50, 20, 90} <= set(np.round(x).astype(int)) and "1 without any attribution" in ax.texts[0].get_text()
    assert "not what a modality is worth" in ax.texts[0].get_text()


def test_sanity_shows_the_mean_and_counts_the_gaps():
    table = pd.DataFrame([(s, k, 0, r, 0.1 * k + 0.01 * r) for k, s in enumerate(["another case", "head", "layer4"]) for r in range(4)],
                         columns=["stage", "step", "repeat", "row", "similarity"])
    table.loc[5, "similarity"] = np.nan
    ax = plot_sanity(table)
    thick = max(ax.lines, key=lambda line: line.get_linewidth())
    assert np.allclose(thick.get_ydata(), [table["similarity"][4:8].mean(), table["similarity"][8:].mean()])
    assert [t.get_text().split("n = ")[1] for t in ax.get_xticklabels()] == ["4", "3", "4"] and "4 cases, 1 cascade;" in ax.texts[0].get_text()


@pytest.mark.parametrize("plot, table", [(plot_heat_inside, "heat inside"), (plot_sanity, "sanity check"), (plot_modality_share, "shares")])
def test_tables_of_another_kind(plot, table):
    with pytest.raises(DataError, match=table): plot(pd.DataFrame({"a": [1]}))


@pytest.mark.parametrize("draw", [
    lambda: plot_beeswarm(explanation(), synthetic=True), lambda: plot_waterfall(explanation(), synthetic=True), lambda: plot_shap_bars(explanation(), synthetic=True),
    lambda: plot_heat_inside(heat_inside(noise(), discs(), n=20), synthetic=True), lambda: plot_heatmaps(255 * discs(4)[:, None].astype(np.uint8), noise(4), synthetic=True)])
def test_figures_are_stamped_and_the_same_each_time(draw, tmp_path):
    one, two = (save_figure(draw(), tmp_path / name, "figure", formats=("svg",))[0].read_text() for name in "ab")
    assert one == two and "synthetic data" in one


# ---- the real masks

@pytest.fixture(scope="module")
def real(data_dir):
    table = read_breast_lesions(data_dir / "breast_lesions_usg").table.iloc[::6]
    images = np.stack([decode_image(path, size=64) for path in table["image"]])
    return images, read_masks(table["mask"], size=64), table["group"].to_numpy(), table["label"].to_numpy(), table


def test_real_masks_lie_where_the_images_are(real):
    images, masks, *_, table = real
    assert masks.shape == (42, 64, 64) and 0.002 < masks.mean(axis=(1, 2)).min() and masks.mean(axis=(1, 2)).max() < 0.6
    for path, mask in zip(table["mask"], masks):
        full = np.asarray(Image.open(path).convert("L")) > 127
        assert np.isclose(mask.sum() / 64 ** 2, full.sum() / max(full.shape) ** 2, rtol=0.1, atol=2e-3)
    inside = [im[0][m].mean() for im, m in zip(images, masks)]
    assert np.mean(inside) < images.mean()  # lesions are darker than the rest of the breast


def test_planted_heat_on_real_masks(real):
    _, masks, groups, *_ = real
    assert np.allclose(estimates(masks.astype(float), masks, groups)[["heat_inside", "pointing"]], 1)
    even = estimates(np.ones(masks.shape), masks, groups)
    assert np.isclose(even["heat_inside"], even["area"]) and np.isclose(even["difference"], 0)


def test_knowing_where_lesions_are_beats_the_area_and_not_the_other_masks(real, data_dir):
    _, masks, groups, *_ = real
    elsewhere = read_breast_lesions(data_dir / "breast_lesions_usg").table["mask"].iloc[3::6]
    usual = np.broadcast_to(read_masks(elsewhere, size=64).mean(axis=0), masks.shape)  # one map for all, made from other patients
    found = heat_inside(usual, masks, groups, n=500).set_index("measure")
    assert found.at["difference", "low"] > 0
    assert found.at["difference_shuffled", "low"] < 0 < found.at["difference_shuffled", "high"]


def test_gradcam_of_a_small_network_on_real_masks(real):
    from fusion_nb.attribution import gradcam
    from fusion_nb.batches import FusionData
    from fusion_nb.encoders import SmallCNN
    from fusion_nb.fusion import build_model
    from fusion_nb.train import TrainConfig, fit
    images, masks, groups, label, _ = real
    data, rows = FusionData(images, np.zeros((len(label), 1), np.float32), label.astype(np.float32)), np.arange(len(label))
    model = build_model("image_only", lambda: SmallCNN(1, (8, 12, 16)), table_dim=1, hidden=(8,), seed=0)
    fit(model, data, rows[::2], rows[1::2], config=TrainConfig(lr=5e-3, epochs=2, batch_size=16, augment=False), progress=False)
    heat = gradcam(model, data, rows, target=1)
    assert heat.max() == 1
    found = heat_inside(heat, masks, groups, n=200).set_index("measure")
    kept = heat.max(axis=(1, 2)) > 0
    assert found["n"].iloc[0] == kept.sum() and np.isclose(found.at["area", "estimate"], masks[kept].mean())
    own = (heat * masks)[kept].sum(axis=(1, 2)) / heat[kept].sum(axis=(1, 2))
    assert np.isclose(found.at["heat_inside", "estimate"], own.mean(), atol=1e-5)
    assert (found["low"] <= found["estimate"] + 1e-9).all() and (found["estimate"] <= found["high"] + 1e-9).all()
