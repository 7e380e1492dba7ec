"""Training: the same bits whatever happens, checkpoints, and what is refused."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from fusion_nb.batches import Augment, FusionData, PatchAugment
from fusion_nb.fusion import MODELS, build_model, from_branches
from fusion_nb.losses import class_weights_of, multi_head_loss, pos_weight_of
from fusion_nb.schema import DataError
from fusion_nb.train import Finetune, TrainConfig, TrainingError, embed_images, fit, learning_rate, predict, predict_from_embeddings

TRAIN, VAL, TEST = np.split(np.arange(90), [50, 70])
CONFIG = TrainConfig(lr=0.003, batch_size=20, epochs=4, patience=4, accelerator="cpu")


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = (np.arange(90) % 3 == 0).astype("float32")
    images = rng.integers(0, 150, (90, 1, 16, 16), dtype=np.uint8) + (30 * labels).astype("uint8")[:, None, None, None]
    return FusionData(images, rng.normal(size=(90, 4)).astype("float32") + labels[:, None], labels)


def make(name="learned_concat", seed=0, **options):
    return build_model(name, "small_cnn", table_dim=4, **{"hidden": (16, 8), "seed": seed, **options})


def run(data, model=None, **options):
    """History and weights after a training."""
    model = model or make()
    history = fit(model, data, TRAIN, VAL, **{"config": CONFIG, "progress": False, **options})
    return history, {k: t.clone() for k, t in model.state_dict().items()}


def assert_same(a, b):
    pd.testing.assert_frame_equal(a[0], b[0], check_exact=True)
    assert a[1].keys() == b[1].keys() and all(torch.equal(a[1][k], b[1][k]) for k in a[1])


# ---- the loop is what it claims to be


@pytest.mark.parametrize("schedule", ["none", "step"])
def test_same_as_ten_lines_of_torch(data, schedule):
    """Without augmentation and dropout, against a loop written out here: the very same weights."""
    config = replace(CONFIG, augment=False, epochs=3, patience=9, schedule=schedule)
    history, weights = run(data, make(dropout=0.0), config=config)
    model, states, scores = make(dropout=0.0), [], []
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    weight = pos_weight_of(data.labels[TRAIN])
    for epoch in (1, 2, 3):
        model.train()
        optimizer.param_groups[0]["lr"] = {"none": 0.003, "step": 0.003 * 0.1 ** (epoch - 1)}[schedule]
        for rows in np.array_split(np.random.default_rng((0, epoch)).permutation(TRAIN), 3):
            image, table, label = (torch.tensor(x[rows]) for x in (data.images, data.table, data.labels))
            optimizer.zero_grad()
            multi_head_loss(model(image.float().div(255), table), label, pos_weight=weight, smoothing=0.1).backward()
            optimizer.step()
        states.append({k: t.clone() for k, t in model.state_dict().items()})
        scores.append(roc_auc_score(data.labels[VAL], predict(model, data, VAL)))
    assert history["val_auc"].tolist() == scores
    best = max(range(3), key=lambda i: (scores[i], -history["val_loss"][i]))
    assert all(torch.equal(weights[k], states[best][k]) for k in weights)


def test_best_weights_come_back_and_patience_ends_it(data):
    config = replace(CONFIG, epochs=60, patience=3, lr=0.02)
    model = make("table_only")
    history, _ = run(data, model, config=config)
    best = history.sort_values(["val_auc", "val_loss"], ascending=[False, True], kind="stable").iloc[0]
    assert len(history) < 60 and len(history) == best["epoch"] + 3
    assert best["val_auc"] == roc_auc_score(data.labels[VAL], predict(model, data, VAL))


def test_it_learns(data):
    model = make("table_only")
    run(data, model, config=replace(CONFIG, epochs=60, patience=60, lr=0.01))
    assert roc_auc_score(data.labels[TEST], predict(model, data, TEST)) > 0.85


def test_pos_weight_and_smoothing_reach_the_loss(data):
    losses = {name: run(data, config=replace(CONFIG, epochs=1, **change))[0]["train_loss"][0]
              for name, change in {"plain": {}, "unweighted": {"pos_weight": None}, "hard": {"label_smoothing": 0.0}}.items()}
    assert losses["unweighted"] < losses["plain"] and len(set(losses.values())) == 3


# ---- the same bits


@pytest.mark.parametrize("name", MODELS)
def test_same_seed_same_weights(data, name):
    first = run(data, make(name))
    torch.rand(5), np.random.rand(5)  # whatever ran in between does not matter
    before = torch.random.get_rng_state()
    assert_same(first, run(data, make(name)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_another_seed_other_weights(data):
    assert run(data)[0]["train_loss"][0] != run(data, config=replace(CONFIG, seed=1))[0]["train_loss"][0]


def test_neither_bar_nor_folder_matters(data, tmp_path, capsys):
    assert_same(run(data), run(data, folder=tmp_path / "a", progress=True))
    assert "4/4" in capsys.readouterr().err


def test_only_the_rows_named_matter(data):
    """No image, row or label of the test part is looked at."""
    images, table, labels = data.images.copy(), data.table.copy(), data.labels.copy()
    images[TEST], table[TEST], labels[TEST] = 255 - images[TEST], -table[TEST], 1 - labels[TEST]
    assert_same(run(data), run(FusionData(images, table, labels)))


def test_killed_at_every_moment_of_an_epoch(tmp_path):
    """See killed_training.py: real SIGKILLs, also in the middle of writing a checkpoint."""
    script = Path(__file__).with_name("killed_training.py")

    def start(folder, out):
        done = subprocess.run([sys.executable, script, folder, out], capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return dict(np.load(out)), done.stdout

    (killed, kills), (whole, _) = (start(folder, tmp_path / f"{i}.npz") for i, folder in enumerate((tmp_path / "ckpt", "-")))
    assert int(kills) >= 12
    assert killed.keys() == whole.keys() and all(np.array_equal(killed[k], whole[k]) for k in whole)
    assert [f.name for f in (tmp_path / "ckpt").iterdir()] == ["best.safetensors"]


# ---- checkpoints


class Sick(torch.nn.Module):
    """Wraps a model; from the `healthy`-th training batch on its logits are NaN."""

    def __init__(self, model, healthy):
        super().__init__()
        self.model, self.left, self.uses_image = model, [healthy], True  # a list, so that it is no setting of the model

    def parameter_groups(self): return self.model.parameter_groups()

    def forward(self, image, table):
        self.left[0] -= self.training
        return {k: z if self.left[0] >= 0 else z * float("nan") for k, z in self.model(image, table).items()}


def test_nan_stops_and_the_last_good_checkpoint_stays(data, tmp_path):
    with pytest.raises(TrainingError, match=r"nan in epoch 3, batch 2 of 3, at a learning rate of 0.003.*epoch 2 stays") as e:
        run(data, Sick(make(), 3 + 3 + 1), folder=tmp_path)
    assert isinstance(e.value, DataError)
    # a healthy model goes on from there, to the end that it would have had anyway
    assert_same(run(data, Sick(make(), 99)), run(data, Sick(make(), 99), folder=tmp_path))


def stop_after(data, folder, epochs):
    """Leave the folder as a kill after so many epochs would."""
    with pytest.raises(TrainingError): run(data, Sick(make(), 3 * epochs), folder=folder)


@pytest.mark.parametrize("name", ["last", "best"])
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "foreign"])
def test_damaged_checkpoint(data, tmp_path, name, damage):
    stop_after(data, tmp_path, 2)
    file = tmp_path / f"{name}.safetensors"
    if damage == "foreign": save_file({"x": torch.ones(1)}, file)
    else: file.write_bytes({"cut": file.read_bytes()[:-9], "empty": b"", "garbage": b"\x00garbage" * 99}[damage])
    with pytest.raises(DataError, match=rf"Delete {file}: training then starts from the beginning"):
        run(data, Sick(make(), 99), folder=tmp_path)
    file.unlink()
    assert_same(run(data, Sick(make(), 99)), run(data, Sick(make(), 99), folder=tmp_path))


def test_no_pickle_and_plain_names(data, tmp_path):
    _, weights = run(data, folder=tmp_path)
    stored = load_file(tmp_path / "best.safetensors")
    assert stored.keys() == weights.keys() and all(torch.equal(stored[k], weights[k]) for k in weights)


@pytest.mark.parametrize("change", ["lr", "model", "first weights", "operation", "rows", "table", "image"])
def test_folder_of_another_training_is_refused(data, tmp_path, change):
    run(data, folder=tmp_path)
    model, config, images, table, rows = make(), CONFIG, data.images.copy(), data.table.copy(), TRAIN
    if change == "lr": config = replace(config, lr=0.1)
    if change == "model": model = make("feature_fusion")
    if change == "first weights": model = make(seed=1)
    if change == "operation": model.op = "add"
    if change == "rows": rows = TRAIN[1:]
    if change == "table": table[0, 0] += 1
    if change == "image": images[0, 0, 0, 0] += 1
    with pytest.raises(DataError, match="made with other data, another model or other settings"):
        fit(model, FusionData(images, table, data.labels), rows, VAL, config=config, folder=tmp_path, progress=False)


def test_folder_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file"): run(data, folder=tmp_path / "file" / "runs")


# ---- what is refused


def test_validation_of_one_class_is_refused_before_training(data, tmp_path):
    model = make()
    before = {k: t.clone() for k, t in model.state_dict().items()}
    with pytest.raises(DataError, match="validation cases of both classes.*0 positive and 2 negative"):
        fit(model, data, TRAIN, [55, 58], config=CONFIG, folder=tmp_path / "new")
    assert not (tmp_path / "new").exists() and all(torch.equal(before[k], t) for k, t in model.state_dict().items())


@pytest.mark.parametrize("setting", [{"schedule": "cosin"}, {"precision": "16"}, {"accelerator": "gpu0"}, {"pos_weight": "balancd"},
                                     {"epochs": 0}, {"lr": float("nan")}, {"label_smoothing": 1.0}, {"batch_size": 1}, {"seed": -1}])
def test_settings_that_cannot_be_meant(setting):
    with pytest.raises(DataError): TrainConfig(**setting)


# ---- several classes and stages

STAGED = replace(CONFIG, epochs=6, patience=6, augment=False, warmup=1, finetune=Finetune(backbone_lr=1e-3, frozen_epochs=2, stage_epochs=1))


@pytest.fixture(scope="module")
def three(data):
    """The same cases in three classes of 18, 27 and 45, of which the table knows something."""
    labels = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], [18, 27, 45]))
    return FusionData(data.images, data.table + np.eye(4, dtype="float32")[labels], labels)


def make_three(name="feature_fusion", **options): return make(name, n_classes=3, **{"dropout": 0.0, "hidden": (8,), **options})


def test_stages_are_twenty_lines_of_torch(three):
    """Three classes, weights, warm-up, two learning rates and thawing, against a loop written out here: the very same weights."""
    history, weights = run(three, make_three(), config=STAGED)
    model, states, losses = make_three(), [], []
    stages = list(model.encoder.stages)
    head, backbone = list(model.head.parameters()), list(model.encoder.parameters())
    optimizer = torch.optim.Adam([{"params": head}, {"params": backbone}], fused=True)
    weight = class_weights_of(three.labels[TRAIN], 3)
    for epoch, thawed in zip(range(1, 7), (0, 0, 1, 2, 3, 3)):
        model.train()
        for stage in stages[:3 - thawed]: stage.requires_grad_(False).eval()
        for stage in stages[3 - thawed:]: stage.requires_grad_(True)
        rise = 0.5 if epoch == 1 else 1.0
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.003 * rise, 0.001 * rise
        for rows in np.array_split(np.random.default_rng((0, epoch)).permutation(TRAIN), 3):
            image, table, label = (torch.tensor(x[rows]) for x in (three.images, three.table, three.labels))
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(image.float().div(255), table)["main"], label, torch.tensor(weight), label_smoothing=0.1).backward()
            optimizer.step()
        states.append({k: t.clone() for k, t in model.state_dict().items()})
        p = predict(model, three, VAL)
        losses.append(torch.nn.functional.cross_entropy(torch.tensor(p).log(), torch.tensor(three.labels[VAL]), torch.tensor(weight).double(), label_smoothing=0.1).item())
        known = {"auc": roc_auc_score(three.labels[VAL], p, multi_class="ovr"), "accuracy": accuracy_score(three.labels[VAL], p.argmax(1)),
                 "macro_f1": f1_score(three.labels[VAL], p.argmax(1), average="macro")}
        for name, value in known.items(): assert history[f"val_{name}"][epoch - 1] == pytest.approx(value, abs=1e-12)
    assert history["thawed"].tolist() == [0, 0, 1, 2, 3, 3] and history["lr"].tolist() == [0.0015] + 5 * [0.003]
    assert history["backbone_lr"].tolist() == [0.0005] + 5 * [0.001] and np.allclose(history["val_loss"], losses, atol=1e-12)
    best = max(range(6), key=lambda i: (history["val_auc"][i], -history["val_loss"][i]))
    assert all(torch.equal(weights[k], states[best][k]) for k in weights)


def test_a_frozen_encoder_stays_to_the_bit_statistics_included(three):
    model = make_three()
    before = {k: t.clone() for k, t in model.encoder.state_dict().items()}
    run(three, model, config=replace(STAGED, epochs=2))
    assert all(torch.equal(t, before[k]) for k, t in model.encoder.state_dict().items()) and all(p.requires_grad for p in model.parameters())
    first, *_, last = "stages.0.1.running_mean", "stages.2.1.running_mean"
    run(three, model, config=replace(STAGED, epochs=3, finetune=Finetune(1e-3, 1, 9), monitor="macro_f1"))
    after = model.encoder.state_dict()
    assert torch.equal(after[first], before[first]) and all(p.requires_grad for p in model.parameters())
    moved = make_three()  # so that this can fail
    run(three, moved, config=replace(STAGED, epochs=2, finetune=None))
    assert not torch.equal(moved.encoder.state_dict()[first], before[first]) and not torch.equal(moved.encoder.state_dict()[last], before[last])


def test_two_classes_are_thawed_too(data):
    history, _ = run(data, config=STAGED)
    assert history["thawed"].tolist() == [0, 0, 1, 2, 3, 3] and {"val_macro_f1", "train_accuracy"} <= set(history)
    plain, same = (run(data, make("table_only"), config=replace(STAGED, finetune=tune)) for tune in (STAGED.finetune, None))
    assert_same(plain, same)  # no encoder, nothing to thaw


@pytest.mark.parametrize("name", [*MODELS, "embedding_concat"])
def test_every_model_learns_three_classes(three, name):
    config = replace(CONFIG, epochs=40, patience=40, lr=0.01, augment=False, loss="focal", sampler="balanced", pos_weight=None)
    model = make(name, n_classes=3, hidden=(16, 8))
    history, _ = run(three, model, config=replace(config, epochs=2) if name == "image_only" else config)
    p = predict(model, three, TEST)
    assert p.shape == (20, 3) and np.allclose(p.sum(1), 1) and predict(model, three, []).shape == (0, 3)
    np.testing.assert_allclose(predict_from_embeddings(model, embed_images(model, three, TEST), three.table[TEST]), p, rtol=0, atol=1e-6)
    if name != "image_only": assert history["val_auc"].max() > 0.7 and history["train_loss"].iloc[-1] < history["train_loss"][0]


def test_monitor_decides_which_epoch_is_best(three):
    config = replace(CONFIG, epochs=15, patience=15, lr=0.03, augment=False)
    for monitor in ("auc", "macro_f1"):
        model = make_three()
        history, _ = run(three, model, config=replace(config, monitor=monitor))
        best = history.sort_values([f"val_{monitor}", "val_loss"], ascending=[False, True], kind="stable").iloc[0]
        p = predict(model, three, VAL)
        assert best["val_macro_f1"] == pytest.approx(f1_score(three.labels[VAL], p.argmax(1), average="macro"))
        assert best["val_auc"] == pytest.approx(roc_auc_score(three.labels[VAL], p, multi_class="ovr"))
    assert history["val_auc"].idxmax() != history["val_macro_f1"].idxmax(), "the two agree: this shows nothing"


def test_settings_reach_the_loss_of_several_classes(three):
    changes = {"plain": {}, "unweighted": {"pos_weight": None}, "given": {"pos_weight": (1.0, 2.0, 9.0)}, "hard": {"label_smoothing": 0.0},
               "focal": {"loss": "focal"}, "focus": {"loss": "focal", "focus": 5.0}, "drawn": {"pos_weight": None, "sampler": "balanced"}}
    losses = {name: run(three, make_three(), config=replace(CONFIG, augment=False, epochs=1, **change))[0]["train_loss"][0] for name, change in changes.items()}
    assert len(set(losses.values())) == len(changes) and losses["focus"] < losses["focal"] < losses["plain"]
    alike = run(three, make_three(), config=replace(CONFIG, augment=False, epochs=1, focus=7.0))[0]["train_loss"][0]
    assert alike == losses["plain"]  # without the focal loss its gamma counts for nothing


@pytest.mark.parametrize("which", ["staged", "bags"])
def test_other_trainings_killed_at_every_moment_of_an_epoch(tmp_path, which):
    """Real SIGKILLs, see killed_training.py: sampler, thawing, warm-up, augmentation, drawn patches, dropped modalities go on as if nothing had happened."""
    script, found = Path(__file__).with_name("killed_training.py"), []
    for folder, out in ((tmp_path / "ckpt", tmp_path / "killed.npz"), ("-", tmp_path / "whole.npz")):
        done = subprocess.run([sys.executable, script, folder, out, which], capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        found.append((dict(np.load(out)), done.stdout))
    (killed, kills), (whole, _) = found
    assert int(kills) >= 10 and killed["history"].shape[0] == 7
    assert killed.keys() == whole.keys() and all(np.array_equal(killed[k], whole[k]) for k in whole)


@pytest.mark.parametrize("epochs", range(1, 6))
def test_stopped_after_any_stage(three, tmp_path, epochs):
    config = replace(STAGED, sampler="balanced", pos_weight=None, augment=PatchAugment(colour=0.0))
    model = make_three()
    sick = Sick(model, 3 * epochs)
    sick.backbone_blocks = model.backbone_blocks
    with pytest.raises(TrainingError): run(three, sick, config=config, folder=tmp_path)
    assert all(p.requires_grad for p in model.parameters())
    healthy, undisturbed = (Sick(make_three(), 99) for _ in range(2))
    for each in (healthy, undisturbed): each.backbone_blocks = each.model.backbone_blocks
    assert_same(run(three, undisturbed, config=config), run(three, healthy, config=config, folder=tmp_path))


@pytest.mark.parametrize("freeze", [True, False])
def test_joined_branches_are_trained_resumed_and_frozen(three, tmp_path, freeze):
    image_model, table_model = make_three("image_only", hidden=()), make_three("table_only", batch_norm=True)
    for model in (image_model, table_model): run(three, model, config=replace(CONFIG, epochs=1))

    def joined(): return from_branches(image_model, table_model, hidden=(8,), freeze=freeze)

    fused = joined()
    result = run(three, fused, config=STAGED, folder=tmp_path)
    assert_same(result, run(three, joined(), config=STAGED))
    assert_same(result, run(three, joined(), config=STAGED, folder=tmp_path))
    same = [torch.equal(t, image_model.encoder.state_dict()[k]) for k, t in fused.encoder.state_dict().items()]
    assert all(same) == freeze and ("thawed" in result[0]) != freeze
    assert np.array_equal(embed_images(fused, three, TEST), embed_images(image_model, three, TEST)) == freeze


def test_what_several_classes_refuse(three, data):
    with pytest.raises(DataError, match=r"training cases of every class. Got \[\d+, \d+, 0\] of them"):
        fit(make_three(), three, np.flatnonzero(three.labels < 2), VAL, config=CONFIG)
    with pytest.raises(DataError, match="a model of 3 classes. Got one logit, of two classes. Build it with n_classes"): run(three)
    with pytest.raises(DataError, match=r"a model of 2 classes. Got logits \(B, 3\)"): run(data, make_three())
    for weight in (2.0, (1.0, 2.0)):
        with pytest.raises(DataError, match="a weight of each of 3 classes as pos_weight"): run(three, make_three(), config=replace(CONFIG, pos_weight=weight))
    with pytest.raises(DataError, match="a number as pos_weight"): run(data, config=replace(CONFIG, pos_weight=(1.0, 2.0)))


def test_a_model_without_its_modality_is_refused(three):
    records, pictures = replace(three, images=None), replace(three, table=np.empty((90, 0), "float32"))
    for ask in (lambda *a: run(*a), lambda data, model: predict(model, data, TEST)):
        with pytest.raises(DataError, match="images for a model that looks at them.*table_only"): ask(records, make_three())
        with pytest.raises(DataError, match="variables for a model that looks at them.*image_only"): ask(pictures, make_three("table_only"))
    assert predict(make_three("table_only"), records, TEST).shape == predict(make_three("image_only"), pictures, TEST).shape == (20, 3)


@pytest.mark.parametrize("setting, message", [
    ({"loss": "focl"}, "Did you mean 'focal'"), ({"sampler": "balance"}, "Did you mean 'balanced'"), ({"monitor": "macrof1"}, "Did you mean 'macro_f1'"),
    ({"focus": -1.0}, "focus of at least 0"), ({"warmup": -1}, "warmup of at least 0"), ({"sampler": "balanced"}, "Give pos_weight=None with sampler='balanced'"),
    ({"finetune": Finetune(), "devices": 2}, "one device for fine-tuning in stages")])
def test_new_settings_that_cannot_be_meant(setting, message):
    with pytest.raises(DataError, match=message): TrainConfig(**setting)


@pytest.mark.parametrize("setting", [{"backbone_lr": 0.0}, {"frozen_epochs": -1}, {"stage_epochs": -1}])
def test_stages_that_cannot_be_meant(setting):
    with pytest.raises(DataError): Finetune(**setting)


def test_stages_and_warm_up_follow_the_epoch():
    assert [Finetune(1e-4, 0, 0).thawed(e, 5) for e in (1, 2)] == [5, 5] and [Finetune(1e-4, 2, 0).thawed(e, 5) for e in (2, 3)] == [0, 5]
    assert [Finetune(1e-4, 2, 3).thawed(e, 2) for e in range(1, 9)] == [0, 0, 1, 1, 1, 2, 2, 2]
    config = TrainConfig(lr=1.0, epochs=9, warmup=3, schedule="step")
    np.testing.assert_allclose([learning_rate(config, e) for e in range(1, 8)], [.25, .5, .75, .1, .1, .1, .01])


# ---- prediction


@pytest.mark.parametrize("name", MODELS)
def test_embedding_once_gives_the_same_predictions(data, name):
    model = make(name)
    embedded = embed_images(model, data, TEST, batch_size=7)
    np.testing.assert_allclose(predict_from_embeddings(model, embedded, data.table[TEST]), predict(model, data, TEST), rtol=0, atol=1e-6)


def test_test_time_augmentation(data):
    model = make("image_only")
    copies = predict(model, data, TEST, tta=4, seed=3)
    assert np.array_equal(copies, predict(model, data, TEST, tta=4, seed=3))
    assert not np.array_equal(copies, predict(model, data, TEST, tta=4, seed=4))
    mirrored = FusionData(data.images[..., ::-1].copy(), data.table, data.labels)
    only_flip = Augment(flip=1.0, blur_or_contrast=0, elastic=0, scale=0, rotation=0)
    np.testing.assert_allclose(predict(model, data, TEST, tta=2, augment=only_flip), predict(model, mirrored, TEST), atol=1e-4)
    assert np.array_equal(predict(make("table_only"), data, TEST, tta=4), predict(make("table_only"), data, TEST))


def test_prediction_does_not_depend_on_the_mode(data):
    model = make().train()
    assert np.array_equal(predict(model, data, TEST), predict(model.eval(), data, TEST)) and len(predict(model, data, [])) == 0


# ---- precision and devices


def test_mixed_precision(data, tmp_path):
    config = replace(CONFIG, precision="bf16-mixed")
    mixed = run(data, config=config)
    assert_same(mixed, run(data, config=config, folder=tmp_path))
    exact = run(data)
    assert mixed[0]["train_loss"][0] != exact[0]["train_loss"][0]
    np.testing.assert_allclose(mixed[0]["train_loss"], exact[0]["train_loss"], atol=0.05)
    assert all(t.dtype != torch.bfloat16 for t in mixed[1].values())


@pytest.mark.slow
def test_two_processes(data, tmp_path):
    """Half a batch on each of two processes is the same step as a whole one (table only: batch norm would see other halves)."""
    config = replace(CONFIG, augment=False, batch_size=26, epochs=3)  # 2 batches of 25: halves of 13 and 12
    one = run(data, make("table_only", dropout=0.0), config=config)
    two = run(data, make("table_only", dropout=0.0), config=replace(config, devices=2), folder=tmp_path / "a")
    np.testing.assert_allclose(one[0]["train_loss"], two[0]["train_loss"], rtol=0.02)
    assert_same(two, run(data, make("table_only", dropout=0.0), config=replace(config, devices=2), folder=tmp_path / "again"))
    with pytest.raises(DataError, match="a folder for checkpoints, with 2 devices"): run(data, config=replace(config, devices=2))
    with pytest.raises(TrainingError, match="epoch 1, batch 2 of 2"):
        run(data, Sick(make("table_only"), 1), config=replace(config, devices=2), folder=tmp_path / "sick")
