"""Attention and gene attributions against computations that share no code with them, a planted bag whose truth is known, missing modalities, bad input."""
import numpy as np
import pandas as pd
import pytest
import shap
import torch
from scipy.stats import spearmanr

from fusion_nb.bag_attribution import attention_similarity, bag_attention, gene_attribution, random_weights, top_patches
from fusion_nb.bag_encoders import Bag
from fusion_nb.bag_fusion import BAG_MODELS, build_bag_model
from fusion_nb.batches import FusionData
from fusion_nb.data.omics import read_tcga_brca
from fusion_nb.expression import ExpressionPreprocessor
from fusion_nb.schema import DataError
from fusion_nb.slide_features import Bags, bags_of
from fusion_nb.slide_figures import attention_inside, inside_region, rank_genes
from fusion_nb.survival_losses import survival_of
from fusion_nb.train import TrainConfig, fit, predict

D, G = 6, 5
WEIGHING = ["bag_attention", "bag_concat", "cross_attention", "cross_attention_gated", "co_attention", "gated_product"]
WITH_GENES = [name for name in BAG_MODELS if name not in ("bag_mean", "bag_attention")]
ROWS = np.array([7, 0, 4, 3])


def cases(n=10, seed=0, labels=None, genes=G):
    rng = np.random.default_rng(seed)
    bags = bags_of([rng.normal(size=(k, D)) for k in rng.integers(3, 12, n)])
    return FusionData(bags, rng.normal(size=(n, genes)).astype(np.float32), (np.arange(n) % 2).astype(np.float32) if labels is None else labels)


def made(name, table_dim=G, **options):
    """A model with weights large enough that attention is far from even."""
    model = build_bag_model(name, token_dim=D, table_dim=table_dim, seed=1, **{"dim": 8, "gene_hidden": (7, 6), "dropout": 0.0} | options)
    with torch.no_grad():
        for p in model.parameters(): p *= 2.5
    return model.eval()


def bag_of(data, row): return Bag(torch.from_numpy(data.images.features[data.images.offsets[row]:data.images.offsets[row + 1]])[None], torch.ones(1, data.images.sizes[row], dtype=bool))


def score_by_hand(model, data, row, table): return model(bag_of(data, row), table)["main"]


# ---- attention

@pytest.mark.parametrize("name", WEIGHING)
def test_attention_is_the_models_own_case_by_case(name):
    data, model = cases(), made(name)
    found = bag_attention(model, data, ROWS, batch_size=3)
    assert found["row"].drop_duplicates().tolist() == ROWS.tolist() and np.allclose(found.groupby("row")["weight"].sum(), 1, atol=1e-6)
    for row in ROWS:
        alone = model.attention(bag_of(data, row), torch.from_numpy(data.table[[row]]))[0].numpy()
        mine = found[found["row"] == row]
        assert np.allclose(mine["weight"], alone, atol=1e-6) and alone.std() > 1e-3 and mine["patch"].tolist() == list(range(len(alone)))
    pd.testing.assert_frame_equal(found, bag_attention(model, data, ROWS, batch_size=1), atol=1e-6)


def test_places_are_those_of_the_features():
    data = cases()
    bags = data.images
    found = bag_attention(made("bag_attention"), data, [2])
    here = slice(bags.offsets[2], bags.offsets[3])
    assert (found[["x", "y"]].to_numpy() == bags.coords[here]).all() and set(found["slide"]) == {"case 2"}
    several = Bags(bags.features, bags.offsets, bags.coords, np.arange(len(bags.features), dtype=np.int32) % 2, ("left", "right"), None, "key")
    found = bag_attention(made("bag_attention"), FusionData(several, data.table, data.labels), [2])
    assert found["slide"].tolist() == [("left", "right")[i % 2] for i in range(bags.offsets[2], bags.offsets[3])]


def test_explaining_leaves_the_model_as_it_was():
    data, model = cases(), made("gated_product", dropout=0.3).train()
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, (torch.get_rng_state(), np.random.get_state()[1].copy())
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    bag_attention(model, data, ROWS)
    gene_attribution(model, data, ROWS)
    gene_attribution(model, data, ROWS[:1], method="shap", background=[1, 2])
    random_weights(model)
    assert model.training and all(m.training for m in model.modules()) and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random[0]) and (np.random.get_state()[1] == random[1]).all() and (next(model.parameters()).grad == 1).all()


@pytest.mark.parametrize("name", [name for name in BAG_MODELS if name not in WEIGHING])
def test_models_without_attention_are_refused(name):
    with pytest.raises(DataError, match="a model that weighs patches.*bag_joint_mean"): bag_attention(made(name), cases(), ROWS)


@pytest.mark.parametrize("rows, message", [([], "positions of the cases"), ([[1]], r"shape \(1, 1\)"), ([1.5], "float64"), ([0, 10], "from 0 to 9"), ([-1], "-1 to -1"),
                                           ([1, 2, 1], "each case once.*1 of them")])
def test_bad_rows(rows, message):
    for explain in (bag_attention, gene_attribution):
        with pytest.raises(DataError, match=message): explain(made("bag_concat"), cases(), rows)


def test_whole_images_are_refused():
    data = cases()
    with pytest.raises(DataError, match="bags of patches.*gradcam"): bag_attention(made("bag_attention"), FusionData(np.zeros((10, D), np.float32), data.table, data.labels), ROWS)


def test_cases_without_slide_have_no_row():
    rng = np.random.default_rng(0)
    data = FusionData(bags_of([rng.normal(size=(k, D)) for k in (4, 0, 3)]), rng.normal(size=(3, G)).astype(np.float32), np.float32([0, 1, 0]))
    with pytest.raises(DataError, match="a patch in every case"): bag_attention(made("cross_attention"), data, [0, 1, 2])
    found = bag_attention(made("cross_attention", modality_dropout=0.3), data, [0, 1, 2])
    assert found["row"].tolist() == [0] * 4 + [2] * 3 and list(bag_attention(made("cross_attention", modality_dropout=0.3), data, [1]).columns) == list(found.columns)


# ---- a bag whose truth is known

@pytest.fixture(scope="module")
def planted():
    """Survival that hangs on the sign of marked patches and on one gene; the marked patches lie in a known region of the slide."""
    rng, n, side = np.random.default_rng(3), 300, 6
    corners = np.stack(np.meshgrid(*[np.arange(side) * 10] * 2), axis=-1).reshape(-1, 2)
    sign, table = rng.choice([-1, 1], n), rng.normal(size=(n, G)).astype(np.float32)
    regions = {f"slide {i}": np.zeros((60, 60), bool) for i in range(n)}
    features = []
    for i in range(n):
        y, x = rng.integers(0, 4, 2) * 10
        regions[f"slide {i}"][y:y + 30, x:x + 30] = True
        inside = np.array([regions[f"slide {i}"][b, a] for a, b in corners])
        tokens = rng.normal(0, 0.3, (len(corners), D))
        tokens[:, 0] += 2 * inside
        tokens[:, 1] += np.where(inside, sign[i], rng.choice([-1, 1], len(corners)))
        features.append(tokens)
    bags = Bags(np.concatenate(features).astype(np.float32), np.arange(n + 1) * 36, np.tile(corners, (n, 1)), np.repeat(np.arange(n, dtype=np.int32), 36), tuple(regions), None, "key")
    time = rng.exponential(size=n) * np.exp(-2 * sign - 1.5 * table[:, 2]) + 0.01
    labels = np.stack([np.minimum(time, 3), time < 3], axis=1).astype(np.float32)
    data = FusionData(bags, table, labels)
    model = build_bag_model("bag_concat", token_dim=D, table_dim=G, dim=16, gene_hidden=(16, 16), dropout=0.0, seed=0)
    fit(model, data, np.arange(200), np.arange(200, 250), progress=False,
        config=TrainConfig(lr=1e-2, epochs=15, batch_size=64, augment=False, loss="cox", monitor="harrell_c"))
    return model, data, regions


TEST = np.arange(250, 300)


def test_trained_attention_lies_in_the_region_and_random_attention_does_not(planted):
    model, data, regions = planted
    attention, control = (bag_attention(m, data, TEST) for m in (model, random_weights(model, 1)))
    inside = inside_region(attention, regions, patch=10)
    assert set(np.unique(inside)) == {0, 1} and np.isclose(inside.mean(), 0.25)
    found = attention_inside(attention, inside, np.arange(300), against=control, n=500).set_index("measure")
    assert found.at["attention", "estimate"] > 0.6 and found.loc[["difference", "pointing_difference", "against_difference"], "low"].min() > 0.1
    random = attention_inside(control, inside, n=500).set_index("measure")
    assert abs(random.at["difference", "estimate"]) < 0.1


def test_the_gene_that_acts_is_first(planted):
    model, data, _ = planted
    for options in ({}, {"method": "shap", "background": np.arange(40), "samples": 100}):
        found, _ = gene_attribution(model, data, TEST, names=list("abcde"), **options)
        ranked = rank_genes(found.values, found.feature_names, values=found.data, n=300)
        assert ranked["gene"][0] == "c" and ranked.loc[0, "rank_high"] == 1


def test_risk_and_not_probability_is_explained(planted):
    model, data, _ = planted
    found, delta = gene_attribution(model, data, TEST[:10], steps=300)
    assert np.allclose(found.values.sum(axis=1) + found.base_values - delta, predict(model, data, TEST[:10]), atol=1e-4)


# ---- random weights

def test_random_weights_change_every_layer_and_keep_the_scale():
    model = made("gated_product")
    model.train()(bag_of(cases(), 0), torch.zeros(1, G))  # so that the scale of the patches is measured
    changed, again = random_weights(model, 1), random_weights(model, 1)
    assert all(not torch.equal(a, b) for (_, a), b in zip(changed.named_parameters(), model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(changed.state_dict().values(), again.state_dict().values()))
    assert torch.equal(changed.scale.mean, model.scale.mean) and model.scale.mean.abs().max() > 0


@pytest.mark.parametrize("name", WEIGHING)
def test_attention_depends_on_the_weights(name):
    data, model = cases(), made(name)
    a, b = (bag_attention(m, data, np.arange(10)) for m in (model, random_weights(model, 3)))
    assert not np.allclose(a["weight"], b["weight"], atol=1e-3) and attention_similarity(a, b)["similarity"].mean() < 0.9


def test_similarity_against_scipy():
    data = cases()
    a, b = (bag_attention(made(name), data, ROWS) for name in ("bag_attention", "cross_attention"))
    found = attention_similarity(a, b)
    assert found["row"].tolist() == ROWS.tolist() and found["n_patches"].tolist() == data.images.sizes[ROWS].tolist()
    expected = [spearmanr(a.loc[a["row"] == row, "weight"], b.loc[b["row"] == row, "weight"]).statistic for row in ROWS]
    assert np.allclose(found["similarity"], expected)
    assert attention_similarity(a, b.assign(weight=0.1))["similarity"].isna().all() and np.allclose(attention_similarity(a, a)["similarity"], 1)
    with pytest.raises(DataError, match="same patches in the same order"): attention_similarity(a, b.iloc[::-1])
    with pytest.raises(DataError, match="'weight'"): attention_similarity(a, b.drop(columns="weight"))


# ---- top patches

def test_top_patches_are_multiples_of_the_even_share():
    table = pd.DataFrame({"row": [0] * 2 + [1] * 5, "patch": [0, 1, *range(5)], "weight": [0.8, 0.2, 0.5, 0.2, 0.15, 0.1, 0.05]})
    top = top_patches(table, k=2)
    assert top[["row", "patch", "end", "place"]].to_numpy().tolist() == [[1, 0, "highest", 1], [0, 0, "highest", 2], [1, 4, "lowest", 1], [0, 1, "lowest", 2]]
    assert np.allclose(top["times"], [2.5, 1.6, 0.25, 0.4])
    assert top_patches(table, k=3, per_case=1)["row"].tolist() == [1, 0, 1, 0]
    all_of_them = top_patches(table, k=5)
    assert len(all_of_them) == 7 and not all_of_them.duplicated(["row", "patch"]).any()
    with pytest.raises(DataError, match="per_case=0"): top_patches(table, per_case=0)
    with pytest.raises(DataError, match="table of the attention"): top_patches(table.drop(columns="row"))


# ---- genes

@pytest.mark.parametrize("name", WITH_GENES)
def test_integrated_gradients_against_a_sum_over_the_path(name):
    data, model, rows = cases(), made(name), ROWS[:2]
    found, delta = gene_attribution(model, data, rows, steps=200)
    for i, row in enumerate(rows):
        x, total = torch.from_numpy(data.table[[row]]), 0
        for alpha in (np.arange(200) + 0.5) / 200:
            point = (x * float(alpha)).requires_grad_()
            total = total + torch.autograd.grad(score_by_hand(model, data, row, point).sum(), point)[0] / 200
        scores = [score_by_hand(model, data, row, t).item() for t in (x, 0 * x)]
        assert np.allclose(found.values[i], (x * total).numpy()[0], atol=0.02 * (1 + abs(scores[0])))
        assert np.isclose(delta[i], found.values[i].sum() - scores[0] + scores[1], atol=1e-3) and np.isclose(found.base_values[i], scores[1], atol=1e-5)
    assert (found.data == data.table[rows]).all()


def linear(genes=G):
    """A model whose score is linear in the genes, so that every attribution is known exactly."""
    model = made("bag_joint_mean", genes, gene_hidden=(7,))
    model.genes = torch.nn.Linear(genes, model.genes.dim)
    model.genes.dim = model.genes.out_features
    return model.eval()


def test_both_methods_are_exact_for_a_linear_model():
    data, model = cases(40), linear()
    weight = (model.head[-1].weight[:, -model.genes.dim:] @ model.genes.weight).detach().numpy()[0]
    for options, start in (({}, np.zeros(G)), ({"background": np.arange(20)}, data.table[:20].mean(axis=0))):
        found, delta = gene_attribution(model, data, ROWS, **options)
        assert np.allclose(found.values, weight * (data.table[ROWS] - start), atol=1e-4) and np.abs(delta).max() < 1e-4
    found, delta = gene_attribution(model, data, ROWS, method="shap", background=[5, 6], samples=3000)
    assert np.allclose(found.values, weight * (data.table[ROWS] - data.table[[5, 6]].mean(axis=0)), atol=0.1 * np.abs(weight).max())
    assert np.allclose(gene_attribution(model, data, ROWS, method="shap", background=[5], samples=3)[1], 0, atol=1e-4)  # one background case: nothing is drawn


def test_shap_values_are_those_of_shap():
    data, model = cases(40), made("genes")

    class Score(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, table): return self.model(None, table)["main"][:, None]

    background = np.arange(10, 30)
    theirs = shap.GradientExplainer(Score(), torch.from_numpy(data.table[background])).shap_values(torch.from_numpy(data.table[[4]]), nsamples=50, rseed=7)
    found, delta = gene_attribution(model, data, [4], method="shap", background=background, samples=50, seed=7)
    assert np.allclose(found.values[0], theirs.reshape(-1), atol=1e-5)
    with torch.no_grad(): scores = Score()(torch.from_numpy(data.table)).numpy().ravel()
    assert np.isclose(found.base_values[0], scores[background].mean(), atol=1e-5) and np.isclose(delta[0], found.values[0].sum() + found.base_values[0] - scores[4], atol=1e-4)


def test_the_bag_is_held_fixed_and_matters():
    data, model = cases(), made("cross_attention")
    other = FusionData(bags_of([np.random.default_rng(9).normal(size=(5, D)) for _ in range(10)]), data.table, data.labels)
    assert not np.allclose(gene_attribution(model, data, ROWS)[0].values, gene_attribution(model, other, ROWS)[0].values, atol=1e-2)
    together, alone = gene_attribution(model, data, ROWS)[0].values, [gene_attribution(model, data, [row])[0].values[0] for row in ROWS]
    assert np.allclose(together, alone, atol=1e-6)


def test_large_bags_go_a_few_steps_at_a_time(monkeypatch):
    data, model = cases(), made("cross_attention")
    whole = [gene_attribution(model, data, ROWS)[0].values, gene_attribution(model, data, ROWS, method="shap", background=[1, 2, 6])[0].values]
    monkeypatch.setattr("fusion_nb.bag_attribution._AT_ONCE", 3 * 8 * D)
    seen, forward = [], model.forward
    monkeypatch.setattr(model, "forward", lambda image, table: seen.append(image.tokens.numel()) or forward(image, table))
    parts = [gene_attribution(model, data, ROWS)[0].values, gene_attribution(model, data, ROWS, method="shap", background=[1, 2, 6])[0].values]
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(whole, parts)) and max(seen) <= 3 * 8 * D


def test_cases_without_genes_are_nan():
    data, model = cases(), made("cross_attention", modality_dropout=0.3)
    data.table[[0, 3]] = np.nan
    found, delta = gene_attribution(model, data, ROWS)
    lacks = np.isin(ROWS, [0, 3])
    assert np.isnan(found.values[lacks]).all() and np.isnan(delta[lacks]).all() and np.isfinite(found.values[~lacks]).all() and np.isfinite(delta[~lacks]).all()
    assert (rank_genes(np.r_[found.values, found.values], list("abcde"), np.arange(8), n=10)["n_missing"] == 4).all()
    with pytest.raises(DataError, match="at least one case with genes.*none among 2"): gene_attribution(model, data, [0, 3])
    with pytest.raises(DataError, match="1 of 2 without"): gene_attribution(model, data, [1], method="shap", background=[0, 1])


def test_a_case_without_slide_has_attributions_of_genes():
    rng = np.random.default_rng(0)
    data = FusionData(bags_of([rng.normal(size=(k, D)) for k in (4, 0)]), rng.normal(size=(2, G)).astype(np.float32), np.float32([0, 1]))
    found, delta = gene_attribution(made("cross_attention", modality_dropout=0.3), data, [1], steps=300)
    assert np.isfinite(found.values).all() and abs(delta[0]) < 0.05


def test_hazards_are_explained_as_risk():
    labels = np.stack([np.arange(1, 11), np.ones(10)], axis=1).astype(np.float32)
    data, model = cases(labels=labels), made("bag_concat", n_outputs=4)
    found, delta = gene_attribution(model, data, ROWS, steps=300)
    risks = [-survival_of(score_by_hand(model, data, row, torch.from_numpy(data.table[[row]]))).sum().item() for row in ROWS]
    assert np.allclose(found.values.sum(axis=1) + found.base_values - delta, risks, atol=1e-4)


def test_one_of_several_classes():
    data, model = cases(labels=np.arange(10) % 3), made("bag_concat", n_outputs=3)
    found, delta = gene_attribution(model, data, ROWS, output=2, steps=300)
    scores = [score_by_hand(model, data, row, torch.from_numpy(data.table[[row]]))[0, 2].item() for row in ROWS]
    assert np.allclose(found.values.sum(axis=1) + found.base_values - delta, scores, atol=1e-4)
    for options, message in (({}, "output=0 to 2"), ({"output": 3}, "an output from 0 to 2.*3")):
        with pytest.raises(DataError, match=message): gene_attribution(model, data, ROWS, **options)


@pytest.mark.parametrize("name, options, message", [
    ("bag_attention", {}, "a model that looks at genes.*bag_attention"), ("genes", {"method": "gradient"}, "a known method of attribution"),
    ("genes", {"step": 5}, "Did you mean 'steps'"), ("genes", {"method": "shap"}, "background cases for SHAP.*20 to 100"),
    ("genes", {"method": "shap", "background": [99]}, "cases from 0 to 9"), ("genes", {"output": 0}, "output=None for a model of one number")])
def test_bad_questions(name, options, message):
    with pytest.raises(DataError, match=message): gene_attribution(made(name), cases(), ROWS, **options)


def test_the_seed_of_shap_decides():
    data, model = cases(), made("genes")
    a, b, c = (gene_attribution(model, data, ROWS, method="shap", background=np.arange(6), samples=20, seed=s)[0].values for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.allclose(a, c)


# ---- real genes

def test_the_gene_of_lobular_carcinoma_is_among_the_first(data_dir):
    """Lobular carcinomas of the breast have lost CDH1 (E-cadherin); who tells them from ductal ones leans on its absence."""
    cohort = read_tcga_brca(data_dir / "tcga_brca_tabular")
    train, val, test = np.split(np.random.default_rng(0).permutation(len(cohort)), [550, 700])
    genes = ExpressionPreprocessor(cohort.variables).fit(cohort.table.iloc[train])
    data = FusionData(None, np.asarray(genes.transform(cohort.table), np.float32), cohort.table["label"].to_numpy(np.float32))
    model = build_bag_model("genes", token_dim=0, table_dim=data.table.shape[1], gene_hidden=(32,), seed=0)
    fit(model, data, train, val, config=TrainConfig(lr=1e-3, epochs=15, batch_size=64, augment=False), progress=False)
    found, delta = gene_attribution(model, data, test[:100], names=list(genes.columns_))
    ranked = rank_genes(found.values, found.feature_names, cohort.table["group"].to_numpy()[test[:100]], values=found.data, n=300).set_index("gene")
    lost = ranked.loc["CDH1_rnaseq"]
    assert np.abs(delta).max() < 0.02 and lost["rank_high"] < 20 and lost["direction"] < -0.9 and (ranked["rank_high"] < 20).sum() < 20
