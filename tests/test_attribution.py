"""Attributions against computations that share no code with them: gradients by hand, sums of paths, every subset of the variables."""
from collections import deque
from itertools import combinations
from math import factorial

import numpy as np
import pytest
import shap
import torch
import torch.nn.functional as F
import xgboost as xgb
from scipy.stats import spearmanr

from fusion_nb.attribution import (by_variable, gradcam, heat_similarity, integrated_gradients, modality_share, network_shap, randomised_weights,
                                   sanity_check, tree_shap)
from fusion_nb.batches import FusionData
from fusion_nb.encoders import ENCODERS, SmallCNN, image_encoder
from fusion_nb.fusion import MODELS, FusionModel, build_model
from fusion_nb.schema import DataError

WITH_IMAGE = [name for name in MODELS if name != "table_only"]
WITH_TABLE = [name for name in MODELS if name != "image_only"]
N_CASES, N_COLUMNS = 6, 4


def small(): return SmallCNN(1, (4, 6))


def made(name, n_classes=2, encoder=small):
    return shaken(build_model(name, encoder, table_dim=N_COLUMNS, hidden=(8, 5), n_classes=n_classes, seed=2))


def shaken(model):
    """The model with larger, seeded weights, so that heads are alive and batch norms are not the identity."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_mean"): tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.1)
            elif tensor.is_floating_point() and "running_var" not in name and name not in ("encoder.mean", "encoder.std"):
                tensor += 0.15 * torch.randn(tensor.shape, generator=generator) + 0.2 * name.endswith("bias")
    return model.eval()


def cases(n_classes=2, channels=1, side=16, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (N_CASES, channels, side, side)).astype(np.uint8)
    labels = np.arange(N_CASES) % n_classes
    return FusionData(images, rng.normal(size=(N_CASES, N_COLUMNS)).astype(np.float32), labels.astype(np.float32 if n_classes == 2 else np.int64))


ROWS = np.array([4, 0, 3, 5])


def scores_by_hand(model, image, table):
    """(B, C): logits, or minus and plus the one logit."""
    z = model(image, table)["main"]
    return torch.stack([-z, z], 1) if z.ndim == 1 else z


def tensors(data, rows=ROWS):
    return torch.tensor(data.images[rows] / 255).float(), torch.tensor(data.table[rows])


def undetached(model):
    """The same network built as a variant that detaches nothing."""
    if getattr(model, "training_variant", "") != "multi_optimiser": return model
    twin = made("learned_multi_loss", 2 if model.head[-1].out_features == 1 else model.head[-1].out_features)
    twin.load_state_dict(model.state_dict())
    return twin


def gradcam_by_hand(model, block, data, target=None):
    """One case at a time: keep the block's output, differentiate one score, weigh, cut, enlarge, divide."""
    maps, kept = [], []
    hook = block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    for row in ROWS:
        image, table = tensors(data, [row])
        score = scores_by_hand(model, image.requires_grad_(), table)[0]
        c = int(score.argmax()) if target is None else target
        features = kept.pop()
        gradient, = torch.autograd.grad(score[c], features, allow_unused=False)
        heat = (gradient.mean(dim=(2, 3), keepdim=True) * features).sum(dim=1, keepdim=True).clamp(min=0)
        heat = F.interpolate(heat, data.images.shape[2:], mode="bilinear")[0, 0].detach().numpy()
        maps.append(heat / heat.max() if heat.max() > 0 else heat)
    hook.remove()
    return np.array(maps)


# ---- Grad-CAM

@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", WITH_IMAGE)
def test_gradcam_is_what_autograd_gives(name, n_classes):
    data, model = cases(n_classes), made(name, n_classes)
    same = undetached(model)
    for target in (None, 1):
        expected = gradcam_by_hand(same, same.encoder.stages[-1], data, target)
        found = gradcam(model, data, ROWS, target=target, batch_size=3)
        assert np.allclose(found, expected, atol=1e-5) and found.dtype == np.float32
        assert set(found.max(axis=(1, 2)).tolist()) <= {0.0, 1.0}
    by_class = [gradcam(model, data, ROWS, target=c) for c in range(n_classes)]
    assert any(m.any() for m in by_class)
    chosen = np.array([0, 1, 1, 0])
    assert np.allclose(gradcam(model, data, ROWS, target=chosen), [by_class[c][i] for i, c in enumerate(chosen)], atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_gradcam_reads_the_last_block_of_every_encoder(encoder):
    channels = 3
    model = made("image_only", 3, lambda: image_encoder(encoder, channels=channels))
    data = cases(3, channels, side=64 if encoder == "resnet18" else 32)  # a last block of 2 x 2 places
    last = model.encoder.layer4[-1] if encoder.startswith("resnet") else model.encoder.stages[-1]
    found = gradcam(model, data, ROWS)
    assert found.shape == (len(ROWS), *data.images.shape[2:]) and found.any() and np.allclose(found, gradcam_by_hand(model, last, data), atol=1e-4)


def test_gradcam_of_another_layer():
    model, data = made("image_only"), cases()
    first = model.encoder.stages[0]
    assert np.allclose(gradcam(model, data, ROWS, layer=first), gradcam_by_hand(model, first, data), atol=1e-5)
    with pytest.raises(DataError, match="feature maps"): gradcam(model, data, ROWS, layer=model.head[0][0])


def test_gradcam_of_frozen_weights():
    model, data = made("feature_fusion"), cases()
    expected = gradcam(model, data, ROWS)
    assert np.array_equal(gradcam(model.requires_grad_(False), data, ROWS), expected) and expected.any()


def test_a_score_without_gradient_gives_an_empty_map():
    model, data = made("image_only"), cases()
    torch.nn.init.zeros_(model.head[-1].weight)
    assert not gradcam(model, data, ROWS).any()


# ---- nothing is left behind

def everything(model, data):
    if model.uses_image:
        yield gradcam(model, data, ROWS)
        yield sanity_check(model, data, ROWS)["similarity"].to_numpy()
    yield from (a for a in integrated_gradients(model, data, ROWS, steps=8) if a is not None)
    if model.uses_table: yield network_shap(model, data, ROWS, background=[1, 2], permutations=1).values


@pytest.mark.parametrize("name", MODELS)
def test_models_and_generators_are_left_as_they_were(name):
    model, data = made(name), cases()
    model.train()
    part = next(m for m in model.modules() if not list(m.children()))
    part.eval()
    for p in model.parameters(): p.grad = torch.full_like(p, 7.0)
    modes, weights = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    first = list(everything(model, data))
    assert [m.training for m in model.modules()] == modes and all((p.grad == 7).all() for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items()) and all(p.requires_grad for p in model.parameters())
    assert (np.random.get_state()[1] == numpy_state).all() and torch.equal(torch.get_rng_state(), torch_state)
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(first, everything(model, data)))


# ---- integrated gradients

class Straight(FusionModel):
    """A linear score: its attributions are known."""

    def __init__(self):
        super().__init__()
        self.encoder, self.head = torch.nn.Flatten(), torch.nn.Linear(256 + N_COLUMNS, 3)

    def forward_head(self, embedding, table): return {"main": self.head(torch.cat([embedding, table], 1))}


def test_integrated_gradients_of_a_line_are_its_terms():
    model, data = Straight(), cases(3)
    start = {"image": np.full((1, 16, 16), 0.3, np.float32), "table": np.arange(N_COLUMNS, dtype=np.float32)}
    image, table, delta = integrated_gradients(model, data, ROWS, target=2, baseline=start, steps=3)
    w = model.head.weight[2].detach().numpy()
    assert np.allclose(image.reshape(4, -1), w[:256] * (data.images[ROWS].reshape(4, -1) / 255 - 0.3), atol=1e-5)
    assert np.allclose(table, w[256:] * (data.table[ROWS] - start["table"]), atol=1e-5) and np.abs(delta).max() < 1e-5


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_integrated_gradients_are_complete(name, n_classes):
    model, data = made(name, n_classes), cases(n_classes)
    image, table, delta = integrated_gradients(model, data, ROWS, target=1, steps=200)
    assert (image is None) == (not model.uses_image) and (table is None) == (not model.uses_table)
    x, t = tensors(data)
    with torch.no_grad(): gap = (scores_by_hand(model, x, t) - scores_by_hand(model, 0 * x, 0 * t))[:, 1].numpy()
    total = sum(a.reshape(4, -1).sum(axis=1) for a in (image, table) if a is not None)
    assert np.allclose(total - gap, delta, atol=1e-4) and np.abs(delta).max() < 0.02 * np.abs(gap).max() + 1e-4
    share = modality_share(image, table)
    assert np.allclose(share["image_sum"] + share["table_sum"], total, atol=1e-4)


def test_integrated_gradients_are_the_mean_gradient_along_the_line():
    model, data = made("learned_multiply"), cases()
    image, table, _ = integrated_gradients(model, data, ROWS, target=1, steps=200)
    (x, t), n = tensors(data), 400
    sums = [torch.zeros_like(x), torch.zeros_like(t)]
    for k in range(n):  # midpoints
        at = [((k + 0.5) / n * v).requires_grad_() for v in (x, t)]
        for total, g in zip(sums, torch.autograd.grad(model(*at)["main"].sum(), at)): total += g
    for found, v, total in zip((image, table), (x, t), sums):
        expected = (v * total / n).numpy()
        assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


def test_shares():
    image, table = np.array([[[[3., -3]]], [[[0, 0]]], [[[1, 1]]]]), np.array([[1., 1], [0, 0], [0, -2]])
    share = modality_share(image, table)
    assert np.allclose(share["table_share"], [0.25, np.nan, 0.5], equal_nan=True)
    assert np.allclose(share["table_share_signed"], [1, np.nan, 0.5], equal_nan=True)  # the pixels of the first cancel
    assert modality_share(None, table)["table_share"].dropna().eq(1).all()
    with pytest.raises(DataError, match="the same cases"): modality_share(image, table[:2])
    with pytest.raises(DataError, match="none cases"): modality_share(None, None)


# ---- SHAP

def shapley(value, n):
    """Every subset: the definition."""
    result = 0
    for j in range(n):
        rest = [i for i in range(n) if i != j]
        one = sum(factorial(k) * factorial(n - k - 1) / factorial(n) * (value({*s, j}) - value(set(s))) for k in range(n) for s in combinations(rest, k))
        result = result + np.eye(n)[j].reshape(n, *[1] * np.ndim(one)) * one
    return result


def network_by_hand(model, data, row, background):
    def value(subset):
        mixed = data.table[background].copy()
        mixed[:, list(subset)] = data.table[row, list(subset)]
        image = torch.tensor(data.images[[row] * len(background)] / 255).float()
        with torch.no_grad(): return model(image, torch.tensor(mixed))["main"].double().numpy().mean(axis=0)
    return shapley(value, N_COLUMNS), value(set()), value(set(range(N_COLUMNS)))


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("name", WITH_TABLE)
def test_network_shap_is_the_shapley_value(name, n_classes):
    model, data, background = made(name, n_classes), cases(n_classes), [1, 2, 5]
    found = network_shap(model, data, [0, 3], background=background, permutations=40)
    assert found.values.shape == (2, N_COLUMNS, *([n_classes] if n_classes > 2 else []))
    for i, row in enumerate([0, 3]):
        expected, base, output = network_by_hand(model, data, row, background)
        assert np.allclose(found.base_values[i], base, atol=1e-5) and np.allclose(found.values[i].sum(axis=0) + base, output, atol=1e-5)
        assert np.allclose(found.values[i], expected, atol=0.03 * np.abs(expected).max() + 1e-5)


class Product(FusionModel):
    """Two variables interact, a third meets the image: no interaction of three."""

    def __init__(self):
        super().__init__()
        self.encoder, self.weight = torch.nn.Flatten(), torch.nn.Parameter(torch.tensor(2.0))

    def forward_head(self, embedding, table):
        return {"main": self.weight * table[:, 0] * table[:, 1] + embedding.mean(1) * table[:, 2] + table[:, 3]}


def test_network_shap_is_exact_for_interactions_of_two():
    model, data = Product(), cases()
    found = network_shap(model, data, ROWS, background=[1, 2], permutations=1, names=list("abcd"))
    expected = [network_by_hand(model, data, row, [1, 2])[0] for row in ROWS]
    assert np.allclose(found.values, expected, atol=1e-5) and found.feature_names == list("abcd")
    other = network_shap(model, data, ROWS[:1], background=[1, 2], permutations=1, seed=9)
    assert np.allclose(other.values[0], expected[0], atol=1e-5)


def test_network_shap_uses_the_whole_background():
    rng, n = np.random.default_rng(1), 250  # shap's own masker would take 100 of them
    data = FusionData(np.zeros((n, 1, 16, 16), np.uint8), rng.normal(size=(n, N_COLUMNS)).astype(np.float32), (np.arange(n) % 2).astype(np.float32))
    found = network_shap(Product(), data, [0], background=np.arange(1, n), permutations=1)
    assert np.isclose(found.values[0, 3], data.table[0, 3] - data.table[1:, 3].mean(), atol=1e-5)


def test_variables_of_several_columns():
    found = network_shap(Product(), cases(), ROWS, background=[1, 2], permutations=1)
    joined = by_variable(found, {"pair": [0, 1], "last": [3], "third": [2]})
    assert np.allclose(joined.values, np.c_[found.values[:, :2].sum(axis=1), found.values[:, 3], found.values[:, 2]])
    assert np.isnan(joined.data[:, 0]).all() and np.array_equal(joined.data[:, 1], found.data[:, 3])
    for wrong in ({"a": [0, 1, 2]}, {"a": [0, 1, 2, 3], "b": [3]}):
        with pytest.raises(DataError, match="in one variable"): by_variable(found, wrong)


def test_a_variable_with_a_gap_column_keeps_its_number_and_one_with_categories_its_names():
    data = np.array([[61.5, 0, 1, 0], [np.nan, 1, 0, 1], [44, 0, np.nan, np.nan]])
    found = shap.Explanation(np.ones((3, 4)), np.zeros(3), data, feature_names=["age", "age (missing)", "race=white", "race=black"])
    joined = by_variable(found, {"age": [0, 1], "race": [2, 3]})
    assert joined.values.tolist() == [[2, 2]] * 3 and np.array_equal(joined.data[:, 0], data[:, 0], equal_nan=True)
    assert joined.display_data.tolist() == [["61.5", "white"], ["not recorded", "black"], ["44", "not recorded"]]


# ---- trees

def trained(objective, n_classes, gaps=0.1, stop=None):
    rng = np.random.default_rng(3)
    table = rng.normal(size=(300, 5)).astype(np.float32)
    label = np.digitize(table[:, 0] * table[:, 1] + table[:, 2] + rng.normal(0, 0.5, 300), [0] if n_classes == 2 else [-0.6, 0.6])
    table[rng.random(table.shape) < gaps] = np.nan
    train, test = (xgb.DMatrix(table[a:b], label[a:b]) for a, b in ((0, 200), (200, 300)))
    options = {"objective": objective, "max_depth": 4, "eta": 0.3, "nthread": 1, "seed": 0, **({"num_class": 3} if n_classes > 2 else {})}
    return xgb.train(options, train, 60, evals=[(test, "test")], early_stopping_rounds=stop, verbose_eval=False), table[200:]


@pytest.mark.parametrize("objective, n_classes", [("binary:logistic", 2), ("multi:softprob", 3)])
def test_tree_shap_is_xgboosts_and_shaps(objective, n_classes):
    booster, table = trained(objective, n_classes)
    found = tree_shap(booster, table)
    theirs = booster.predict(xgb.DMatrix(table), pred_contribs=True)
    if n_classes > 2: theirs = theirs.transpose(0, 2, 1)
    assert np.allclose(found.values, theirs[:, :-1], atol=1e-6) and np.allclose(found.base_values, theirs[:, -1], atol=1e-6)
    assert np.allclose(found.values, shap.TreeExplainer(booster)(table).values, atol=1e-4)
    assert np.allclose(found.values.sum(axis=1) + found.base_values, booster.predict(xgb.DMatrix(table), output_margin=True), atol=1e-4)
    assert np.array_equal(found.data, table, equal_nan=True) and found.feature_names[0] == "column 0"


def test_tree_shap_counts_the_trees_up_to_the_best():
    booster, table = trained("binary:logistic", 2, stop=5)
    best = booster.best_iteration + 1
    assert best < booster.num_boosted_rounds()
    margin = booster.predict(xgb.DMatrix(table), output_margin=True, iteration_range=(0, best))
    found = tree_shap(booster, table)
    assert np.allclose(found.values.sum(axis=1) + found.base_values, margin, atol=1e-4)
    every = tree_shap(booster, table, rounds=booster.num_boosted_rounds())
    assert not np.allclose(every.values, found.values, atol=1e-3)


def test_tree_shap_survives_the_file(tmp_path):
    booster, table = trained("binary:logistic", 2, stop=5)
    booster.save_model(tmp_path / "trees.json")
    assert np.array_equal(tree_shap(xgb.Booster(model_file=tmp_path / "trees.json"), table).values, tree_shap(booster, table).values)


@pytest.mark.parametrize("table", [np.zeros((3, 4)), np.zeros(5), np.zeros((0, 5))])
def test_tree_shap_of_another_table(table):
    with pytest.raises(DataError, match="a table of 5 columns"): tree_shap(trained("binary:logistic", 2)[0], table)


# ---- random weights

@pytest.mark.parametrize("encoder, parts", [
    ("small_cnn", ["head", "stages.2", "stages.1", "stages.0"]),
    ("simple_cnn", ["head", "dense", "stages.2", "stages.1", "stages.0"]),
    ("resnet18", ["head", "layer4", "layer3", "layer2", "layer1", "bn1", "conv1"])])
def test_weights_become_random_from_the_head_down(encoder, parts):
    model = made("learned_concat", 3, lambda: image_encoder(encoder))
    before, last = {k: v.clone() for k, v in model.state_dict().items()}, None
    for (stage, changed), part in zip(randomised_weights(model, 1), parts, strict=True):
        assert stage == part
        inside = {k for k in before if k.startswith("encoder.") and k.endswith("weight")}
        fresh = tuple(f"encoder.{p}." for p in parts[1:parts.index(part) + 1])
        same = {k for k in inside if torch.equal(changed.state_dict()[k], before[k])}
        assert same == {k for k in inside if not k.startswith(fresh)} if fresh else same == inside
        assert not torch.equal(changed.head[-1].weight, model.head[-1].weight)
        last = changed
    again = deque((m for _, m in randomised_weights(model, 1)), maxlen=1)[0]
    assert all(torch.equal(a, b) for a, b in zip(last.state_dict().values(), again.state_dict().values()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    drawn = [v for k, v in again.state_dict().items() if k.endswith("weight") and v.ndim > 1]
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in combinations(drawn, 2))  # no two layers alike
    _, other = next(randomised_weights(model, 2))
    assert not torch.equal(other.head[-1].weight, again.head[-1].weight)


def test_similarity_is_spearmans(rng=np.random.default_rng(2)):
    a, b = rng.random((5, 6, 7)).round(1), rng.random((5, 6, 7)).round(1)  # with ties
    a[4] = 0
    expected = [spearmanr(x.ravel(), y.ravel()).statistic for x, y in zip(a[:4], b[:4])]
    assert np.allclose(heat_similarity(a, b), [*expected, np.nan], equal_nan=True)
    with pytest.raises(DataError, match="two stacks"): heat_similarity(a, b[:4])


def test_sanity_check_compares_the_maps_of_one_class():
    model, data = made("learned_concat", 3), cases(3)
    table = sanity_check(model, data, ROWS, seed=4, repeats=2)
    x, t = tensors(data)
    with torch.no_grad(): chosen = scores_by_hand(model, x, t).argmax(1).numpy()
    trained_maps = gradcam(model, data, ROWS, target=chosen)
    for repeat in (0, 1):
        for step, (stage, changed) in enumerate(randomised_weights(model, 4 + repeat), start=1):
            expected = heat_similarity(trained_maps, gradcam(changed, data, ROWS, target=chosen))
            found = table[(table["step"] == step) & (table["repeat"] == repeat)]
            assert np.allclose(found["similarity"], expected, equal_nan=True) and (found["stage"] == stage).all()
    assert table.groupby(["step", "repeat"])["row"].apply(list).map(lambda rows: rows == ROWS.tolist()).all()
    assert len(table[table["step"] == 0]) == len(ROWS) and not np.allclose(table.loc[table["step"] == 0, "similarity"], 1)


# ---- bad input

@pytest.mark.parametrize("call, message", [
    (lambda m, d: gradcam(made("table_only"), d, ROWS), "looks at the image"),
    (lambda m, d: sanity_check(made("table_only"), d, ROWS), "looks at the image"),
    (lambda m, d: list(randomised_weights(made("table_only"))), "looks at the image"),
    (lambda m, d: network_shap(made("image_only"), d, ROWS, background=[1]), "looks at the table"),
    (lambda m, d: network_shap(m, d, ROWS, background=[]), "background cases"),
    (lambda m, d: gradcam(m, d, []), "at least one case"),
    (lambda m, d: gradcam(m, d, ROWS, target=2), "classes from 0 to 1. Got class 2"),
    (lambda m, d: gradcam(m, d, ROWS, target=-1), "Got class -1"),
    (lambda m, d: gradcam(m, d, ROWS, target=[0, 1]), "one for each of 4 cases"),
    (lambda m, d: gradcam(m, d, ROWS, target=0.5), "one class for all"),
    (lambda m, d: integrated_gradients(m, d, ROWS, baseline={"image": np.zeros((1, 3, 3))}), r"baseline of shape \(1, 16, 16\)"),
    (lambda m, d: gradcam(Straight(), d, ROWS), "`layer4` or `stages`.*layer="),
])
def test_bad_input(call, message):
    with pytest.raises(DataError, match=message): call(made("learned_concat"), cases())
