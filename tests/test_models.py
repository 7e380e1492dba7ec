"""Encoders, fusion models and losses: what no single notebook can show."""
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_class_weight
from torch import nn

from fusion_nb.encoders import ENCODERS, IMAGENET_MEAN, IMAGENET_STD, image_encoder, n_parameters
from fusion_nb.fusion import MODELS, build_model, from_branches
from fusion_nb.losses import bce_loss, class_loss, class_weights_of, multi_head_loss, pos_weight_of
from fusion_nb.schema import DataError

TABLE_DIM = 5
LEARNED = [name for name in MODELS if name.startswith("learned_")]
BOTH = [name for name in MODELS if name not in ("image_only", "table_only")]


def small(name, *, channels=1, seed=0, **options):
    return build_model(name, lambda: image_encoder("small_cnn", channels=channels, widths=(4, 8)),
                       table_dim=TABLE_DIM, seed=seed, **{"hidden": (16, 8), **options})


def batch(n=6, channels=1, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(n, channels, 16, 16, generator=rng), torch.randn(n, TABLE_DIM, generator=rng), torch.arange(n) % 2)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks here are tiny: two threads that share a busy core take a hundred times as long as one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# models

@pytest.mark.parametrize("name, order", [("small_cnn", (0, 1, 3, 2)), ("simple_cnn", (0, 2, 1))])
def test_relu_after_pooling_gives_the_numbers_of_relu_before(name, order):
    image, grads = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(1)), []
    for usual in (False, True):
        torch.manual_seed(0)
        encoder = image_encoder(name, channels=3).eval()
        kinds = [[type(layer).__name__ for layer in stage] for stage in encoder.stages]
        assert all(kind[-2:] == ["MaxPool2d", "ReLU"] for kind in kinds)
        if usual: encoder.stages = nn.Sequential(*(nn.Sequential(*(stage[i] for i in order)) for stage in encoder.stages))
        embedding = encoder(image)
        (embedding ** 2).sum().backward()
        grads.append([embedding, *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*grads)) and grads[0][0].std() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_backward(name, channels):
    model, (image, table, label) = small(name, channels=channels), batch(channels=channels)
    logits = model(image if model.uses_image else None, table if model.uses_table else None)
    assert all(z.shape == label.shape for z in logits.values())
    multi_head_loss(logits, label).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_forward_is_head_of_features(name):
    model, (image, table, _) = small(name).eval(), batch()
    features = model.forward_features(image)
    assert (features is None) == (not model.uses_image)
    whole, halves = model(image, table), model.forward_head(features, table)
    assert whole.keys() == halves.keys() and all(torch.equal(whole[k], halves[k]) for k in whole)


@pytest.mark.parametrize("name", MODELS)
def test_uses_what_it_says(name):
    model, (image, table, _) = small(name).eval(), batch()
    before = model(image, table)["main"]
    assert torch.equal(before, model(1 - image, table)["main"]) == (not model.uses_image)
    assert torch.equal(before, model(image, -table)["main"]) == (not model.uses_table)


@pytest.mark.parametrize("name", MODELS)
def test_groups_partition_the_parameters(name):
    model = small(name)
    grouped = [id(p) for group in model.parameter_groups() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert len(model.parameter_groups()) == (3 if name == "learned_multi_optimiser" else 1)


def reached(model, logit):
    """Which parameters the gradient of a logit reaches, by id."""
    parameters = list(model.parameters())
    grads = torch.autograd.grad(logit.sum(), parameters, retain_graph=True, allow_unused=True)
    return {id(p) for p, g in zip(parameters, grads) if g is not None and g.any()}


def test_multi_optimiser_keeps_each_loss_in_its_group():
    model, (image, table, _) = small("learned_multi_optimiser").eval(), batch()
    logits = model(image, table)
    groups = [{id(p) for p in group} for group in model.parameter_groups()]
    for name, own in zip(("main", "image", "table"), groups):
        touched = reached(model, logits[name])
        assert touched and touched <= own, name


@pytest.mark.parametrize("name", [n for n in BOTH if n != "learned_multi_optimiser"])
def test_fused_loss_reaches_both_encoders(name):
    model, (image, table, _) = small(name).eval(), batch()
    touched = reached(model, model(image, table)["main"])
    encoders = [model.encoder] if name == "feature_fusion" else [model.encoder, getattr(model, "table_encoder", None) or model.table_only]
    assert all(touched & {id(p) for p in encoder.parameters()} for encoder in encoders)


def test_probability_fusion_contains_both_unimodal_networks():
    fused, (image, table, _) = small("probability_fusion").eval(), batch()
    image_only, table_only = small("image_only").eval(), small("table_only").eval()
    image_only.load_state_dict(fused.image_only.state_dict())
    table_only.load_state_dict(fused.table_only.state_dict())
    probabilities = torch.stack([image_only(image, None)["main"], table_only(None, table)["main"]], dim=1).sigmoid()
    torch.testing.assert_close(fused(image, table)["main"], fused.head(probabilities)[:, 0])


@pytest.mark.parametrize("op, fuse", [("concat", lambda a, b: torch.cat([a, b], 1)), ("add", lambda a, b: a + b), ("multiply", lambda a, b: a * b)])
def test_learned_fusion_operations(op, fuse):
    model, (image, table, _) = small(f"learned_{op}").eval(), batch()
    z_image, z_table = model.project(model.encoder(image)), model.table_encoder(table)
    torch.testing.assert_close(model(image, table)["main"], model.head(fuse(z_image, z_table))[:, 0])


D, F = 2048, 33
IMAGE_HEAD, TABLE_NET = [(D, 1024), .25, (1024, 512), .25, (512, 1)], [(F, 1024), (1024, 512), .25, (512, 1)]
BRANCHES = [(D, 512), (F, 1024), (1024, 512)]
SPEC = {  # the published layers in order: (in, out) of a fully connected layer, or a dropout's probability
    "image_only": IMAGE_HEAD,
    "table_only": TABLE_NET,
    "probability_fusion": [*IMAGE_HEAD, *TABLE_NET, (2, 16), (16, 1)],
    "feature_fusion": [(D + F, 1024), .25, (1024, 512), .25, (512, 1)],
    "learned_concat": [*BRANCHES, .25, (1024, 512), .25, (512, 1)],
    "learned_add": [*BRANCHES, .25, (512, 512), .25, (512, 1)],
    "learned_multiply": [*BRANCHES, .25, (512, 512), .25, (512, 1)],
    "learned_multi_loss": [*BRANCHES, .25, (1024, 512), .25, (512, 1), (512, 1), (512, 1)],
    "learned_multi_optimiser": [*BRANCHES, .25, (1024, 512), .25, (512, 1), (512, 1), (512, 1)],
}


@pytest.mark.parametrize("name", MODELS)
def test_default_layers_are_the_published_ones(name):
    with torch.device("meta"):
        model = build_model(name, table_dim=F)
    layers = [m.p if isinstance(m, nn.Dropout) else (m.in_features, m.out_features)
              for m in model.modules() if isinstance(m, (nn.Linear, nn.Dropout))]
    assert layers == SPEC[name]


@pytest.mark.parametrize("name", LEARNED)
def test_sizes_can_be_set(name):
    model = small(name, hidden=[12], fused_dim=7, dropout=0.5)
    assert model.head[-1].in_features == 7 and model.project.dim == model.table_encoder.dim == 12
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.5}


@pytest.mark.parametrize("name", MODELS)
def test_seed_decides_the_first_weights(name):
    torch.manual_seed(1)
    a = small(name).state_dict()
    state = torch.get_rng_state()
    torch.manual_seed(2)
    b, c = small(name).state_dict(), small(name, seed=1).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)
    assert torch.equal(torch.manual_seed(1).get_state(), state), "the global generator was used"


def fitted_loss(name, target):
    """The fused loss after 150 steps on four cases: dark and bright image, negative and positive variable."""
    bright, positive = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    image, table = bright.view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float(), torch.zeros(4, TABLE_DIM)
    table[:, 0] = 2.0 * positive - 1
    model, label = small(name, dropout=0.0, hidden=(32, 16)), target(bright, positive)
    optimisers = [torch.optim.Adam(group, lr=0.02) for group in model.parameter_groups()]
    for _ in range(150):
        loss = multi_head_loss(model(image, table), label)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
    return bce_loss(model(image, table)["main"], label).item()


@pytest.mark.parametrize("name", MODELS)
def test_both_modalities_count(name):
    """Positive where both are: one modality alone cannot get below log(2) / 2 = 0.35."""
    loss = fitted_loss(name, torch.bitwise_and)
    assert loss < 0.1 if name in BOTH else loss > 0.34


@pytest.mark.parametrize("name", ["feature_fusion", *LEARNED[:4]])
def test_joint_features_learn_an_interaction(name):
    """Positive where exactly one is: neither modality alone, nor a sum of their evidence, tells anything."""
    assert fitted_loss(name, torch.bitwise_xor) < 0.1


def test_unknown_names():
    with pytest.raises(DataError, match="Did you mean 'learned_add'"):
        small("learned_ad")
    with pytest.raises(DataError, match="Did you mean 'resnet34'"):
        build_model("image_only", "resnet_34", table_dim=1)


# several classes

@pytest.mark.parametrize("n_classes", [2, 3, 5])
@pytest.mark.parametrize("name", [*MODELS, "embedding_concat"])
def test_forward_and_backward_of_several_classes(name, n_classes):
    model, (image, table, _) = small(name, n_classes=n_classes), batch()
    label = torch.arange(6) % n_classes
    logits = model(image if model.uses_image else None, table if model.uses_table else None)
    assert all(z.shape == ((6,) if n_classes == 2 else (6, n_classes)) for z in logits.values())
    multi_head_loss(logits, label, focus=2.0).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_three_classes_are_learned():
    """Class by class another place of the only bright quarter, which no mean over the image shows."""
    image, label = torch.zeros(3, 1, 16, 16), torch.arange(3)
    image[0, :, :8, :8] = image[1, :, :8, 8:] = image[2, :, 8:, :8] = 1
    model = build_model("image_only", lambda: image_encoder("simple_cnn", channels=1, widths=(4, 8, 8), dim=16, dropout=0.0), table_dim=0, hidden=(), n_classes=3)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        multi_head_loss(model(image, None), label).backward()
        optimiser.step()
    assert model(image, None)["main"].argmax(1).tolist() == [0, 1, 2]


def test_patch_cnn_is_the_published_one():
    """Khandelwal et al. 2026: three blocks of 32, 64 and 128 channels, 8192 -> 256 -> dropout .5 -> 3, about 2.2 M parameters.

    It pools after ReLU; the other order gives the same numbers, as the test at the top of this file shows."""
    model = build_model("image_only", lambda: image_encoder("simple_cnn", channels=3), table_dim=0, hidden=(), n_classes=3)
    kinds = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Linear, nn.Dropout)
    layers = [tuple(m.weight.shape) if hasattr(m, "weight") else type(m).__name__ for m in model.modules() if isinstance(m, kinds)]
    assert layers == [(32, 3, 3, 3), "MaxPool2d", "ReLU", (64, 32, 3, 3), "MaxPool2d", "ReLU", (128, 64, 3, 3), "MaxPool2d", "ReLU",
                      (256, 8192), "ReLU", "Dropout", (3, 256)]
    assert n_parameters(model) == 2_191_427 and model(torch.rand(2, 3, 64, 64), None)["main"].shape == (2, 3)


def test_published_record_network():
    model = build_model("table_only", table_dim=90, hidden=(256, 128), dropout=0.3, batch_norm=True, n_classes=3)
    assert [type(m).__name__ for m in model.head[0]] == ["Linear", "ReLU", "BatchNorm1d", "Dropout"] * 2
    assert model.table_encoder.dim == 128 and {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}


@pytest.mark.parametrize("name", ENCODERS)
def test_blocks_partition_the_encoder(name):
    with torch.device("meta"): encoder = image_encoder(name)
    parts = [id(p) for block in encoder.blocks for p in block.parameters()]
    assert sorted(parts) == sorted(id(p) for p in encoder.parameters()) and parts[0] == id(next(encoder.parameters()))


def test_he_head_is_drawn_as_he_et_al_do():
    plain, he = (build_model("image_only", "small_cnn", table_dim=0, hidden=(1000,), n_classes=3, he_head=h) for h in (False, True))
    weight = he.head[0][0].weight.detach()
    assert weight.std() == pytest.approx((2 / 64) ** 0.5, rel=0.02) and abs(weight.mean()) < 0.002 and not he.head[0][0].bias.any()
    assert not torch.equal(weight, plain.head[0][0].weight)
    assert all(torch.equal(v, plain.encoder.state_dict()[k]) for k, v in he.encoder.state_dict().items())


# a fusion of trained branches

def branches(n_classes=3):
    return small("image_only", n_classes=n_classes, hidden=()), small("table_only", n_classes=n_classes, batch_norm=True)


def test_default_layers_of_the_joined_branches():
    with torch.device("meta"): model = build_model("embedding_concat", "resnet18", table_dim=90, n_classes=3)
    layers = [m.p if isinstance(m, nn.Dropout) else (m.in_features, m.out_features) for m in model.modules() if isinstance(m, (nn.Linear, nn.Dropout))]
    assert layers == [(90, 256), .3, (256, 128), .3, (640, 256), .3, (256, 64), .3, (64, 3)]


@pytest.mark.parametrize("freeze", [True, False])
def test_branches_are_copies_and_frozen_ones_stay(freeze):
    image_model, table_model = branches()
    model, (image, table, _) = from_branches(image_model, table_model, freeze=freeze), batch()
    given = {f"{name}.{k}": v.clone() for name, part in (("encoder", image_model.encoder), ("table_encoder", table_model.table_encoder)) for k, v in part.state_dict().items()}
    assert all(torch.equal(v, given[k]) for k, v in model.state_dict().items() if k in given) and len(model.state_dict()) == len(given) + 6
    optimiser = torch.optim.Adam([p for group in model.parameter_groups() for p in group], lr=0.1)
    head = model.head[-1].weight.clone()
    for _ in range(2):
        multi_head_loss(model.train()(image, table), torch.arange(6) % 3).backward()
        optimiser.step()
    same = [k for k, v in model.state_dict().items() if k in given and torch.equal(v, given[k])]
    assert same == (list(given) if freeze else []) and not torch.equal(head, model.head[-1].weight)
    assert all(torch.equal(v, given[f"encoder.{k}"]) for k, v in image_model.encoder.state_dict().items())  # the networks themselves stay


def test_joined_branches_use_both_and_agree_with_the_halves():
    model, (image, table, _) = from_branches(*branches()).eval(), batch()
    whole = model(image, table)["main"]
    assert torch.equal(whole, model.forward_head(model.forward_features(image), table)["main"])
    assert not torch.equal(whole, model(1 - image, table)["main"]) and not torch.equal(whole, model(image, -table)["main"])
    assert torch.equal(whole, from_branches(*branches()).eval()(image, table)["main"]) and not torch.equal(whole, from_branches(*branches(), seed=1).eval()(image, table)["main"])


def test_what_cannot_be_joined():
    with pytest.raises(DataError, match="3 classes of the image, 2 of the table"):
        from_branches(branches()[0], branches(2)[1])
    with pytest.raises(DataError, match="TableOnly and ImageOnly"):
        from_branches(*branches()[::-1])


# weights

@pytest.fixture(scope="module")
def reference():
    """torchvision's own ResNet-18 with random weights and statistics, classifier included."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    model(torch.rand(4, 3, 64, 64))  # so that the running statistics are not the defaults
    return model.eval()


def saved(state, path):
    if path.suffix == ".safetensors": save_file(state, path)
    else: torch.save(state, path)
    return path


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth", "w.pt"])
def test_weights_agree_with_torchvision(reference, tmp_path, file):
    path = saved(reference.state_dict(), tmp_path / file)
    encoder = image_encoder("resnet18", channels=3, weights=path).eval()
    image = torch.rand(2, 3, 64, 64)
    plain = torchvision.models.resnet18()
    plain.load_state_dict(reference.state_dict())
    plain.fc = nn.Identity()
    normal = torchvision.transforms.functional.normalize(image, IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(encoder(image), plain.eval()(normal))
    raw = image_encoder("resnet18", channels=3, weights=path, standardise=False).eval()
    torch.testing.assert_close(raw(image), plain(image))


def test_grey_weights_are_the_sum_over_rgb(reference, tmp_path):
    path = saved(reference.state_dict(), tmp_path / "w.safetensors")
    encoder = image_encoder("resnet18", channels=1, weights=path)
    torch.testing.assert_close(encoder.conv1.weight, reference.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(encoder.layer4[1].conv2.weight, reference.layer4[1].conv2.weight)


@pytest.mark.parametrize("name", ["small_cnn", "resnet18"])
def test_weights_round_trip(name, tmp_path):
    encoder = image_encoder(name)
    path = saved(encoder.state_dict(), tmp_path / "own.safetensors")
    again = image_encoder(name, weights=path).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in encoder.state_dict().items())


def test_wrapped_and_old_files(reference, tmp_path):
    old = {k: v for k, v in reference.state_dict().items() if not k.endswith("num_batches_tracked")}
    path = saved({"epoch": 3, "state_dict": old}, tmp_path / "w.pth")
    assert torch.equal(image_encoder("resnet18", channels=3, weights=path).bn1.running_mean, reference.bn1.running_mean)


def test_wrong_architecture_names_the_keys(reference, tmp_path):
    state = reference.state_dict()
    path = saved(state, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=r"missing \(layer1.0.conv3.weight\).*another shape \(layer1.0.conv1.weight \(64, 64, 3, 3\)"):
        image_encoder("resnet50", weights=path)
    with pytest.raises(DataError, match=r"missing \(stages.0.0.weight\).*unexpected \(bn1"):
        image_encoder("small_cnn", weights=path)
    extra = saved({**state, "more": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(DataError, match=r"1 unexpected \(more\)"):
        image_encoder("resnet18", weights=extra)


@pytest.mark.parametrize("other, channels, message", [
    ("resnet34", 3, r"missing \(layer1.2.conv1.weight\)"), ("simple_cnn", 3, r"missing \(stages.0.0.weight\).*unexpected \(bn1"),
    ("resnet50", 1, r"missing \(layer1.0.conv3.weight\)")])
def test_every_encoder_names_the_file_of_another(reference, tmp_path, other, channels, message):
    path = saved(reference.state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=message) as e: image_encoder(other, channels=channels, weights=path)
    assert str(path) in str(e.value) and "Name the encoder that the file was made with" in str(e.value)


def test_small_encoders_are_not_taken_for_one_another(tmp_path):
    grey = saved(image_encoder("simple_cnn", channels=1).state_dict(), tmp_path / "grey.safetensors")
    with pytest.raises(DataError, match=r"stages.0.0.weight \(32, 1, 3, 3\) instead of \(32, 3, 3, 3\)"): image_encoder("simple_cnn", channels=3, weights=grey)
    with pytest.raises(DataError, match="missing .*unexpected"): image_encoder("small_cnn", channels=1, weights=grey)
    whole = small("image_only", n_classes=3)
    with pytest.raises(DataError, match=r"missing \(stages.0.0.weight\).*unexpected \(encoder.stages"):
        image_encoder("small_cnn", widths=(4, 8), weights=saved(whole.state_dict(), tmp_path / "model.safetensors"))
    with pytest.raises(DataError, match="a ResNet for weights='imagenet'"): image_encoder("simple_cnn", weights="imagenet")


class Malicious:
    """Unpickling this creates the file `mark`."""
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch, (self.mark,)


def test_malicious_pickle_is_refused(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "bad.pth"
    torch.save({"conv1.weight": Malicious(mark)}, path)
    with pytest.raises(DataError, match="could run code"):
        image_encoder("resnet18", weights=path)
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file was harmless: this test shows nothing"


@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
def test_damaged_file(reference, tmp_path, file):
    path = saved(reference.state_dict(), tmp_path / file)
    for content in (path.read_bytes()[:5000], b"not weights", b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"tensors only in the weights file .*{file}"):
            image_encoder("resnet18", weights=path)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        image_encoder("resnet18", weights=tmp_path / "none.pth")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of torchvision's weights on a machine without network."""
    def offline(*args, **kwargs): raise URLError("no network")
    monkeypatch.setattr(torch.hub, "urlopen", offline)
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


def test_imagenet_offline_says_what_to_do(hub):
    with pytest.raises(DataError, match=r"resnet50-0676ba61.pth.*no network.*give its path as `weights`"):
        image_encoder("resnet50", weights="imagenet")


def test_imagenet_comes_from_torchvision(hub, reference):
    name = Path(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url).name
    torch.save(reference.state_dict(), hub / name)
    encoder = image_encoder("resnet18", channels=3, weights="imagenet")
    assert encoder.standardise and torch.equal(encoder.conv1.weight, reference.conv1.weight)
    mark = hub / "mark"
    torch.save(Malicious(mark), hub / name)
    with pytest.raises(DataError):
        image_encoder("resnet18", weights="imagenet")
    assert not mark.exists()


# losses

@pytest.mark.parametrize("pos_weight", [1.0, 4.5])
def test_loss_agrees_with_sklearn(pos_weight):
    rng = np.random.default_rng(0)
    z, y = rng.normal(0, 3, 50), rng.integers(0, 2, 50)
    ours = bce_loss(torch.tensor(z), torch.tensor(y), pos_weight=pos_weight).item()
    oracle = log_loss(y, 1 / (1 + np.exp(-z)), sample_weight=np.where(y, pos_weight, 1), normalize=False) / 50
    assert ours == pytest.approx(oracle, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_mixes_the_two_labels(smoothing):
    """A smoothed label is a draw: the loss is the expected loss over the two labels."""
    z = torch.linspace(-4, 4, 9, dtype=torch.float64)
    zeros, ones = torch.zeros(9), torch.ones(9)
    one, other = bce_loss(z, ones, pos_weight=3.0), bce_loss(z, zeros, pos_weight=3.0)
    expected = (1 - smoothing / 2) * one + smoothing / 2 * other
    torch.testing.assert_close(bce_loss(z, ones, pos_weight=3.0, smoothing=smoothing), expected)


def test_loss_gradient_is_the_finite_difference():
    z = torch.linspace(-3, 3, 8, dtype=torch.float64, requires_grad=True)
    y = torch.arange(8) % 2
    assert torch.autograd.gradcheck(lambda a: bce_loss(a, y, pos_weight=2.5, smoothing=0.1), (z,))
    assert torch.autograd.gradcheck(lambda a: multi_head_loss({"main": a, "image": a * a}, y), (z,))


def test_loss_is_finite_for_extreme_logits():
    z = torch.tensor([-1e4, 1e4, 1e4, -1e4])
    assert bce_loss(z, torch.tensor([0, 1, 0, 1])).item() == pytest.approx(5000)


@pytest.mark.parametrize("labels", [np.array([0, 1, 0, 0, 1]), torch.tensor([0.0, 1, 0, 0, 1]), [False, True, False, False, True]])
def test_pos_weight(labels):
    assert pos_weight_of(labels) == 1.5


def test_loss_errors():
    with pytest.raises(DataError, match="0 negative and 3 positive"):
        pos_weight_of(np.ones(3))
    for labels in ([0, 1, 2], [0.0, 1.0, float("nan")]):
        with pytest.raises(DataError, match="labels 0 and 1"):
            pos_weight_of(labels)
    with pytest.raises(DataError, match=r"logits \(4,\) and labels \(4, 1\)"):
        bce_loss(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(DataError, match="below 1"):
        bce_loss(torch.zeros(4), torch.zeros(4), smoothing=1.0)
    with pytest.raises(DataError, match="at least one output"):
        multi_head_loss({}, torch.zeros(4))


def scores(n=40, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.normal(0, 3, (n, n_classes))), torch.tensor(np.r_[np.arange(n_classes), rng.integers(0, n_classes, n - n_classes)])


@pytest.mark.parametrize("weights", [None, (0.5, 1.0, 2.0, 7.0)])
def test_class_loss_agrees_with_sklearn(weights):
    z, y = scores()
    oracle = log_loss(y, z.softmax(1), sample_weight=None if weights is None else np.array(weights)[y])
    assert class_loss(z, y, weights=weights).item() == pytest.approx(oracle, rel=1e-12)


@pytest.mark.parametrize("focus", [0.5, 2.0, 5.0])
def test_focal_loss_agrees_with_torchvision(focus):
    z, y = torch.tensor(np.random.default_rng(0).normal(0, 3, 50)), torch.arange(50) % 2
    oracle = torchvision.ops.sigmoid_focal_loss(z, y.double(), alpha=-1, gamma=focus, reduction="mean")
    assert bce_loss(z, y, focus=focus).item() == pytest.approx(oracle.item(), rel=1e-12)
    two = torch.stack([torch.zeros(50, dtype=torch.float64), z], 1)  # the same as two classes of which one has the logit 0
    torch.testing.assert_close(class_loss(two, y, focus=focus), bce_loss(z, y, focus=focus))
    torch.testing.assert_close(class_loss(two, y, weights=(1.0, 3.0), focus=focus) * (25 + 75) / 50, bce_loss(z, y, pos_weight=3.0, focus=focus))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_loss_of_several_classes_by_hand(smoothing):
    z, y = scores()
    weights, p, total = (0.5, 1.0, 2.0, 7.0), z.softmax(1), 0.0
    for i, label in enumerate(y.tolist()):
        for c in range(4):
            share = (c == label) * (1 - smoothing) + smoothing / 4
            total -= weights[c] * share * (1 - p[i, c].item()) ** 2 * np.log(p[i, c].item())
    oracle = total / sum(weights[label] for label in y.tolist())
    assert class_loss(z, y, weights=weights, smoothing=smoothing, focus=2.0).item() == pytest.approx(oracle, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_without_focus_is_cross_entropy(smoothing):
    """Nearly without: exactly 0 takes the way through torch."""
    z, y = scores()
    for options in (dict(), dict(weights=(0.5, 1.0, 2.0, 7.0))):
        torch.testing.assert_close(class_loss(z, y, smoothing=smoothing, focus=1e-9, **options), class_loss(z, y, smoothing=smoothing, **options))
    torch.testing.assert_close(bce_loss(z[:, 0], y % 2, pos_weight=3.0, smoothing=smoothing, focus=1e-9), bce_loss(z[:, 0], y % 2, pos_weight=3.0, smoothing=smoothing))


def test_class_loss_gradient_is_the_finite_difference():
    z, y = scores(6)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda a: class_loss(a, y, weights=(1.0, 2.0, 3.0, 4.0), smoothing=0.1, focus=2.0), (z,))
    certain = (100 * torch.nn.functional.one_hot(y, 4)).float().requires_grad_()
    class_loss(certain, y, focus=0.5).backward()
    assert certain.grad.isfinite().all()


def test_class_weights_are_inverse_frequencies():
    label = np.repeat([0, 1, 2], [112, 20_000, 1_900])
    np.testing.assert_allclose(class_weights_of(label, 3), compute_class_weight("balanced", classes=np.arange(3), y=label), rtol=1e-12)


@pytest.mark.parametrize("call, message", [
    (lambda: class_loss(torch.zeros(4, 3), torch.zeros(4, 3)), r"logits \(4, 3\) and labels \(4, 3\)"),
    (lambda: class_loss(torch.zeros(4), torch.zeros(4).long()), "a row of logits per label"),
    (lambda: class_loss(torch.zeros(4, 3), torch.zeros(4).long(), smoothing=1.0), "below 1"),
    (lambda: bce_loss(torch.zeros(4), torch.zeros(4), focus=-1.0), "at least 0. Got -1.0"),
    (lambda: class_weights_of([0, 0, 2], 3), r"each of 3 classes. Got \[2, 0, 1\]"),
    (lambda: class_weights_of([0, 1, 2, 3], 3), r"each of 3 classes. Got \[1, 1, 1, 1\]")])
def test_errors_of_several_classes(call, message):
    with pytest.raises(DataError, match=message): call()
