"""Bag encoders and bag fusion: what no single notebook can show."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from fusion_nb.bag_encoders import Bag, GatedAttention, MeanPool, PatchScale, SelfNormalising, gene_encoder, masked_softmax
from fusion_nb.bag_fusion import BAG_MODELS, BagOnly, _attend, _present, build_bag_model
from fusion_nb.batches import FusionData
from fusion_nb.schema import DataError
from fusion_nb.slide_features import bags_of
from fusion_nb.train import TrainConfig, fit, predict

D, F_ = 8, 10  # features of a patch, genes
IMAGE_ONLY, GENES_ONLY = ("bag_mean", "bag_attention"), ("genes",)
BOTH = [name for name in BAG_MODELS if name not in (*IMAGE_ONLY, *GENES_ONLY)]
ATTENDING = ["bag_attention", "bag_concat", "cross_attention", "cross_attention_gated", "co_attention", "gated_product"]
NAN = torch.nan


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks here are tiny: threads that share a busy core only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(name, **options):
    return build_bag_model(name, token_dim=D, table_dim=F_, **{"dim": 16, "gene_hidden": (32, 16)} | options)


def batch(sizes=(6, 3, 1, 5), longest=6, seed=0):
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(longest) < torch.tensor(sizes)[:, None]
    return Bag(torch.randn(len(sizes), longest, D, generator=rng), mask), torch.randn(len(sizes), F_, generator=rng)


def used(model):
    """A model whose patch scale has seen patches, in evaluation mode."""
    bag, table = batch((6,) * 20, seed=9)
    model.train()(Bag(3 + 2 * bag.tokens, bag.mask), table)
    return model.eval()


# every model

@pytest.mark.parametrize("n_outputs, shape", [(1, (4,)), (3, (4, 3))])
@pytest.mark.parametrize("name", BAG_MODELS)
def test_forward_and_backward(name, n_outputs, shape):
    model = small(name, n_outputs=n_outputs, modality_dropout=.5)
    logits = model(*batch())
    assert list(logits) == ["main"] and logits["main"].shape == shape
    logits["main"].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for group in model.parameter_groups() for p in group)


@pytest.mark.parametrize("name", BAG_MODELS)
def test_forward_is_head_of_features_and_nothing_thaws(name):
    model, (bag, table) = small(name).eval(), batch()
    features = model.forward_features(bag)
    assert features is (bag if model.uses_image else None) and model.backbone_blocks() == []
    assert torch.equal(model(bag, table)["main"], model.forward_head(features, table)["main"])
    assert [id(p) for group in model.parameter_groups() for p in group] == [id(p) for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("name", BAG_MODELS)
def test_uses_what_it_says(name):
    model, (bag, table) = small(name).eval(), batch()
    assert (model.uses_image, model.uses_table) == (name not in GENES_ONLY, name not in IMAGE_ONLY)
    before = model(bag, table)["main"]
    assert torch.equal(before, model(Bag(-bag.tokens, bag.mask), table)["main"]) == (not model.uses_image)
    assert torch.equal(before, model(bag, -table)["main"]) == (not model.uses_table)
    model(bag if model.uses_image else None, table if model.uses_table else None)


@pytest.mark.parametrize("name", BAG_MODELS)
def test_seed_decides_the_first_weights_and_leaves_no_trace(name):
    before = torch.random.get_rng_state()
    a, b, c = (small(name, seed=seed, modality_dropout=.2).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_models_of_one_seed_start_from_one_gene_encoder():
    names = [name for name in BAG_MODELS if name not in (*IMAGE_ONLY, "bag_early")]
    first = [small(name, gene_encoder="snn").genes.state_dict() for name in names]
    assert len(first) == 7 and all(torch.equal(first[0][k], other[k]) for other in first for k in other)


@pytest.mark.parametrize("name", BAG_MODELS)
def test_in_bfloat16(name):
    model, (bag, table) = small(name, modality_dropout=.3), batch((6, 3, 0, 5))
    with torch.autocast("cpu", torch.bfloat16):
        z = model(bag, table)["main"]
    z.float().sum().backward()
    assert z.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# padding and order

@pytest.mark.parametrize("filling", [NAN, torch.inf, 1e30])
@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("name", [n for n in BAG_MODELS if n not in GENES_ONLY])
def test_padding_never_matters(name, standardise, filling):
    model, (bag, table) = used(small(name, standardise=standardise)), batch()
    dirty = Bag(bag.tokens.masked_fill(~bag.mask[:, :, None], filling), bag.mask)
    longer = Bag(F.pad(dirty.tokens, (0, 0, 0, 7), value=filling), F.pad(bag.mask, (0, 7)))
    expected = model(bag, table)["main"]
    assert torch.equal(model(dirty, table)["main"], expected)
    torch.testing.assert_close(model(longer, table)["main"], expected)
    model.train()  # nor in training: neither loss, gradients nor the patch scale
    states = []
    for given in (bag, dirty):
        torch.manual_seed(0)
        fresh = small(name, standardise=standardise)
        fresh(given, table)["main"].sum().backward()
        states.append([p.grad for p in fresh.parameters()] + list(fresh.buffers()))
    assert all(torch.equal(a, b) for a, b in zip(*states))


@pytest.mark.parametrize("name", [n for n in BAG_MODELS if n not in GENES_ONLY])
def test_order_of_patches_does_not_matter(name):
    model, (bag, table) = used(small(name)), batch()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    turned = Bag(bag.tokens[:, order], bag.mask[:, order])
    torch.testing.assert_close(model(turned, table)["main"], model(bag, table)["main"])
    if name in ATTENDING: torch.testing.assert_close(model.attention(turned, table), model.attention(bag, table)[:, order])


@pytest.mark.parametrize("name", BAG_MODELS)
def test_cases_do_not_see_each_other(name):
    model, (bag, table) = used(small(name)), batch()
    alone = torch.cat([model(Bag(bag.tokens[[i]], bag.mask[[i]]), table[[i]])["main"] for i in range(4)])
    torch.testing.assert_close(model(bag, table)["main"], alone)


@pytest.mark.parametrize("name", BAG_MODELS)
def test_attention_sums_to_one_over_real_patches(name):
    model, (bag, table) = small(name, modality_dropout=.3).train(), batch((6, 3, 1, 0))
    weights = model.attention(bag, table)
    assert model.training and (weights is not None) == (name in ATTENDING)
    if weights is None: return
    assert weights.shape == (4, 6) and not weights.requires_grad and (weights >= 0).all() and not weights[~bag.mask].any()
    torch.testing.assert_close(weights.sum(1), torch.tensor([1., 1, 1, 0]))
    assert weights[2, 0] == 1  # one patch
    assert model.attention(Bag(torch.zeros(4, 0, D), torch.zeros(4, 0, dtype=bool)), table).shape == (4, 0)


# a missing modality

@pytest.mark.parametrize("name", BAG_MODELS)
def test_nothing_is_nan_without_patches_or_genes(name):
    model, (bag, table) = small(name, modality_dropout=.5), batch((6, 3, 0, 5))
    table[1] = NAN
    table.requires_grad_()
    z = model(bag, table)["main"]
    z.square().sum().backward()
    assert z.isfinite().all() and all(p.grad.isfinite().all() for group in model.parameter_groups() for p in group if p.grad is not None)
    if model.uses_table: assert table.grad.isfinite().all() and not table.grad[1].any()
    nobody = Bag(torch.zeros(4, 0, D), torch.zeros(4, 0, dtype=bool))
    assert model.eval()(nobody, torch.randn(4, F_))["main"].isfinite().all()


@pytest.mark.parametrize("name", BAG_MODELS)
def test_a_missing_modality_is_refused_without_modality_dropout(name):
    model, (bag, table) = small(name), batch((6, 3, 1, 0))
    bad = table.clone()
    bad[1] = NAN
    for call in (model.train(), model.eval()):
        if model.uses_image:
            with pytest.raises(DataError, match="a patch in every case. Got none in 1 of 4 cases, the first in row 3 .* modality_dropout"): call(bag, table)
        if model.uses_table:
            with pytest.raises(DataError, match="genes in every case. Got none in 1 of 4 cases, the first in row 1 .* modality_dropout"): call(batch()[0], bad)
    if not model.uses_image: model(bag, table)
    if not model.uses_table: model(batch()[0], bad)


@pytest.mark.parametrize("name", BOTH)
def test_a_case_without_both_is_refused(name):
    model, (bag, table) = small(name, modality_dropout=.3), batch((6, 3, 1, 0))
    table[3] = NAN
    with pytest.raises(DataError, match="a patch or genes in every case. Got none in 1 of 4 cases, the first in row 3"): model(bag, table)


@pytest.mark.parametrize("name", BOTH)
def test_the_stand_in_hides_nothing_else(name):
    """A case that lacks a modality is answered from the other, and the others in the batch as if it had it."""
    model, (bag, table) = used(small(name, modality_dropout=.3)), batch()
    gone = table.clone()
    gone[1] = NAN
    before, after = model(bag, table)["main"], model(bag, gone)["main"]
    torch.testing.assert_close(before[[0, 2, 3]], after[[0, 2, 3]])
    stood = table.clone()
    stood[1] = model.stand_in["genes"].detach()
    torch.testing.assert_close(model(bag, stood)["main"], after)
    empty = Bag(bag.tokens, bag.mask & torch.tensor([True, False, True, True])[:, None])
    torch.testing.assert_close(model(empty, table)["main"][[0, 2, 3]], before[[0, 2, 3]])
    other = Bag(-bag.tokens, empty.mask)
    torch.testing.assert_close(model(empty, table)["main"][1], model(other, table)["main"][1])


def test_modality_dropout_takes_each_as_often_and_never_the_last():
    model = small("bag_concat", modality_dropout=.4)
    bag, table = Bag(torch.randn(6000, 2, D), torch.ones(6000, 2, dtype=bool)), torch.ones(6000, F_)
    bag.mask[:1000] = False
    table[1000:2000] = NAN
    torch.manual_seed(1)
    seen, genes = _present(model, bag, table)
    no_patch, no_genes = seen.mask.sum(1) == 1, genes.sum(1) == 0
    assert not (no_patch & no_genes).any() and no_patch[:1000].all() and no_genes[1000:2000].all() and not no_genes[:1000].any()
    assert abs(no_patch[2000:].float().mean() - .2) < .02 and abs(no_genes[2000:].float().mean() - .2) < .02
    seen, genes = _present(model.eval(), bag, table)  # never in evaluation
    assert (seen.mask.sum(1) == 1).sum() == (genes.sum(1) == 0).sum() == 1000


# encoders

def test_patch_scale_is_scikit_learns():
    rng = torch.Generator().manual_seed(0)
    scale, theirs = PatchScale(D, patches=700), StandardScaler()
    for n in (1, 5, 40):
        bag = Bag(100 + torch.randn(n, 30, D, generator=rng) * torch.arange(D), torch.rand(n, 30, generator=rng) < .6)
        scale.train()(bag)
        theirs.partial_fit(bag.tokens[bag.mask].double().numpy())
    assert scale.count == theirs.n_samples_seen_ > 700
    np.testing.assert_allclose(scale.mean, theirs.mean_, rtol=1e-6)
    np.testing.assert_allclose(scale.var, theirs.var_, rtol=1e-4)
    out = scale.eval()(bag)
    np.testing.assert_allclose(out.tokens[bag.mask][:, 1:], theirs.transform(bag.tokens[bag.mask].double().numpy())[:, 1:], atol=1e-4)
    assert not out.tokens[..., 0].any()  # constant in training: 0, not rounding errors divided by rounding errors
    moved = scale.train()(Bag(bag.tokens + 5, bag.mask))  # it has seen enough, and stays
    assert scale.count == theirs.n_samples_seen_ and moved.tokens.isfinite().all()


def test_patch_scale_learns_in_training_alone_and_is_saved():
    model, (bag, table) = small("cross_attention"), batch()
    model.eval()(bag, table)
    assert model.scale.count == 0
    model.train()(bag, table)
    assert model.scale.count == 15
    copy = small("cross_attention", seed=5)
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy.eval()(bag, table)["main"], model.eval()(bag, table)["main"])
    assert not [k for k in small("cross_attention", standardise=False).state_dict() if k.startswith("scale")]


def test_masked_softmax_at_the_extremes():
    logits, mask = torch.tensor([[1e30, -1e30, 5.], [-1e30, -1e30, 3e38], [1., 2, 3]]), torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)
    assert torch.equal(masked_softmax(logits, mask), torch.tensor([[1., 0, 0], [.5, .5, 0], [0, 0, 0]]))


@pytest.mark.parametrize("pool", [MeanPool(D), GatedAttention(D, 4)])
def test_pools_of_an_empty_bag_have_finite_gradients(pool):
    tokens = torch.randn(2, 3, D, requires_grad=True)
    out = pool(Bag(tokens, torch.zeros(2, 3, dtype=bool)))
    z = out if isinstance(out, torch.Tensor) else out[0]
    z.sum().backward()
    assert not z.any() and tokens.grad.isfinite().all() and not tokens.grad.any()


def test_self_normalising_first_weights():
    torch.manual_seed(0)
    layer = SelfNormalising(400, (500,))[0]
    assert abs(layer.weight.var().item() * 400 - 1) < .02 and abs(layer.weight.mean()) < 1e-3 and not layer.bias.any()


def test_attention_is_torchs():
    """Queries, keys and values of co-attention, and the shortcut of cross-attention, against torch's own scaled dot-product attention."""
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))
    asking, (bag, table) = torch.randn(4, 3, 16), batch()
    asked = torch.randn(4, 6, 16)
    found, weights = _attend(layers, asking, asked, bag.mask[:, None])
    theirs = F.scaled_dot_product_attention(layers[0](asking), layers[1](asked), layers[2](asked), attn_mask=bag.mask[:, None].expand(-1, 3, -1))
    torch.testing.assert_close(found, theirs)
    torch.testing.assert_close(weights.sum(2), torch.ones(4, 3))
    model = small("cross_attention", standardise=False).eval()
    query, z = model.query(model.genes(table))[:, None], model._fuse(bag, table)[0]
    mean = F.scaled_dot_product_attention(query, model.key(bag.tokens), bag.tokens, attn_mask=bag.mask[:, None])[:, 0]
    torch.testing.assert_close(z[:, :16], model.value(mean))


def test_the_joint_mean_is_additive_and_concat_is_not():
    bag, table = batch((6,) * 4)
    for name, additive in (("bag_joint_mean", True), ("bag_concat", False)):
        model = small(name).eval()
        z = torch.stack([model(Bag(bag.tokens[[i] * 4], bag.mask), table)["main"] for i in range(4)]).detach().double()  # bag by genes
        rest = z - z.mean(0) - z.mean(1, keepdim=True) + z.mean()
        assert (rest.abs().max() < 1e-6) == additive


# early fusion

def test_early_fusion_keeps_a_trained_gene_encoder_as_it_is():
    genes = small("genes", gene_dropout=.5).genes
    model, (bag, table) = small("bag_early", gene_encoder=genes, dropout=0), batch()
    before = {k: v.clone() for k, v in genes.state_dict().items()}
    assert not any(p is q for p in model.parameters() for q in genes.parameters()) and all(p.requires_grad for p in genes.parameters())
    assert torch.equal(model.train()(bag, table)["main"], model(bag, table)["main"])  # the frozen encoder drops nothing
    optimizer = torch.optim.Adam(model.parameter_groups()[0], lr=.1, weight_decay=.1)
    model(bag, table)["main"].sum().backward()
    optimizer.step()
    assert all(torch.equal(v, before[k]) for k, v in model.genes.encoder.state_dict().items())
    assert {tuple(p.shape) for p in model.parameter_groups()[0] if p.ndim == 2} == {(2048, D + 16), (200, 2048), (1, 200)}
    assert small("bag_early").head[0][0].in_features == D + F_  # without one: the genes themselves


# what is refused

@pytest.mark.parametrize("call, message", [
    (lambda: small("cross_atention"), "Did you mean 'cross_attention'"),
    (lambda: small("genes", gene_hiden=(8,)), "a known option of a bag model. Got 'gene_hiden'. Did you mean 'gene_hidden'"),
    (lambda: small("genes", gene_encoder="nlp"), "a known gene encoder"),
    (lambda: small("genes", gene_hidden=()), "at least one hidden layer"),
    (lambda: small("genes", gene_encoder="snn", gene_hidden=(4, 0)), "at least one hidden layer"),
    (lambda: small("bag_early", gene_encoder=gene_encoder("mlp", F_ + 1, (4,))), "an encoder of 10 genes. Got one of 11"),
    (lambda: small("bag_concat", modality_dropout=1.0), "modality_dropout of at least 0 and below 1"),
    (lambda: small("bag_concat", modality_dropout=-.1), "modality_dropout of at least 0 and below 1"),
    (lambda: BagOnly(D, pool="max"), "a known pool"),
    (lambda: small("bag_mean")(torch.rand(4, 3, 8, 8), None), r"a Bag\(tokens, mask\) of patch features. Got Tensor"),
    (lambda: small("bag_concat")(None, batch()[1]), "Got NoneType"),
    (lambda: small("bag_mean")(Bag(torch.rand(4, 6, D + 1), batch()[0].mask), None), r"tokens \(B, K, 8\) .* Got tokens \(4, 6, 9\)"),
    (lambda: small("bag_mean")(Bag(torch.rand(4, 5, D), batch()[0].mask), None), r"mask \(4, 6\)"),
    (lambda: small("bag_mean")(Bag(batch()[0].tokens, batch()[0].mask.float()), None), "torch.float32 mask"),
    (lambda: small("genes")(None, torch.rand(4, F_ + 1)), r"a table of 10 genes. Got one of shape \(4, 11\)"),
    (lambda: small("genes")(None, None), "a table of 10 genes. Got none"),
    (lambda: small("genes", modality_dropout=.5)(None, batch()[1].index_fill(1, torch.tensor([2]), NAN)), "1 of 10 NaN in row 0"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(DataError, match=message): call()


# trained

def planted(n, main=0.0, interaction=0.0, seed=0, bag_size=None):
    """Cases of 16 patches whose log odds depend on the share r of patches of one kind, on the mean g of five genes, and on r g."""
    rng = np.random.default_rng(seed)
    kind = rng.random((n, 16)) < rng.random((n, 1))
    tokens, table = rng.normal(size=(n, 16, D)).astype("float32"), rng.normal(size=(n, F_)).astype("float32")
    tokens[..., 0] += 3 * kind
    r, g = (kind.mean(1) - .5) / .31, table[:, :5].mean(1) * 5 ** .5
    odds = main * (r + g) + interaction * r * g
    label = (rng.random(n) < 1 / (1 + np.exp(-odds))).astype("float32")
    return FusionData(bags_of(list(tokens), bag_size=bag_size), table, label)


CONFIG = TrainConfig(lr=5e-3, batch_size=50, epochs=12, patience=12, label_smoothing=0, accelerator="cpu")
TRAIN, VAL, TEST = np.split(np.arange(2200), [1000, 1200])


def learned(name, data, **options):
    model = build_bag_model(name, token_dim=D, table_dim=F_, **{"dim": 32, "gene_hidden": (32, 16), "gene_dropout": .1} | options)
    fit(model, data, TRAIN, VAL, config=CONFIG, progress=False)
    return model


def test_an_interaction_is_learned_by_fusion_and_not_by_a_late_mean():
    data = planted(2200, interaction=3.0)
    score = {name: predict(learned(name, data), data, TEST) for name in ("bag_attention", "genes", "cross_attention", "gated_product")}
    score["late"] = sum(np.log(p / (1 - p)) for p in (score["bag_attention"], score["genes"]))
    auc = {name: roc_auc_score(data.labels[TEST], p) for name, p in score.items()}
    assert min(auc["cross_attention"], auc["gated_product"]) > .75, auc
    assert abs(auc["late"] - .5) < .08, auc


def test_a_model_with_modality_dropout_answers_from_what_there_is():
    data = planted(2200, main=1.5, seed=1)
    model = learned("cross_attention", data, modality_dropout=.5)
    bags, table = np.split(data.images.features, 2200), data.table.copy()
    table[TEST] = np.nan
    no_slide = FusionData(bags_of([*bags[:TEST[0]], *(bag[:0] for bag in bags[TEST[0]:])]), data.table, data.labels)
    no_genes = FusionData(data.images, table, data.labels)
    auc = {name: roc_auc_score(data.labels[TEST], predict(model, d, TEST)) for name, d in (("both", data), ("genes", no_slide), ("slide", no_genes))}
    assert auc["both"] > max(auc["genes"], auc["slide"]) and min(auc["genes"], auc["slide"]) > .68, auc
    assert all(v.abs().max() > 1e-3 for v in model.stand_in.values())  # learned


@pytest.mark.parametrize("name", BAG_MODELS)
def test_every_model_trains_and_resumes_to_the_same_bits(name, tmp_path):
    data, rows = planted(80, main=2.0, bag_size=6), (np.arange(50), np.arange(50, 80))
    config = TrainConfig(lr=3e-3, batch_size=10, epochs=3, patience=3, accelerator="cpu")
    whole, parts = small(name, modality_dropout=.2), small(name, modality_dropout=.2)
    history = fit(whole, data, *rows, config=config, progress=False)
    assert np.isfinite(history.drop(columns="epoch").to_numpy(dtype=float)).all()
    calls = []

    def killed(*_):  # in the second epoch
        calls.append(0)
        if len(calls) == 8: raise KeyboardInterrupt

    hook = parts.register_forward_pre_hook(killed)
    with pytest.raises(KeyboardInterrupt): fit(parts, data, *rows, config=config, folder=tmp_path, progress=False)
    hook.remove()
    fresh = small(name, modality_dropout=.2)
    fit(fresh, data, *rows, config=config, folder=tmp_path, progress=False)
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in whole.state_dict().items())
