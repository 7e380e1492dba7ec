"""Training and studies on bags of patches, genes and survival: the same bits, patients counted once, missing modalities, and what is refused.

That a training on bags may be killed at any moment is shown by test_train.py."""
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from fusion_nb.bag_fusion import BAG_MODELS, build_bag_model
from fusion_nb.batches import FusionData, PatchAugment, seeded
from fusion_nb.fusion import build_model
from fusion_nb.importance import permutation_importance
from fusion_nb.schema import Cohort, DataError, Variable
from fusion_nb.slide_features import bags_of
from fusion_nb.splits import kfold
from fusion_nb.study import OutOfFold, Recipe, cross_fit, cross_fits, make_fold, on_validation, seed_estimates, train_model
from fusion_nb.survival import average_by_group, harrell_c
from fusion_nb.survival_losses import cox_loss, hazard_bins, patient_c, survival_of
from fusion_nb.train import TrainConfig, embed_images, fit, predict, predict_from_embeddings

GENES = [f"G{i}" for i in range(6)]
TRAIN, VAL, TEST = np.split(np.arange(120), [66, 90])
COX = TrainConfig(lr=.003, batch_size=22, epochs=3, loss="cox", monitor="harrell_c", accelerator="cpu")
HAZARD, CLASSES = replace(COX, loss="hazard"), replace(COX, loss="cross_entropy", monitor="auc")
SMALL = {"dim": 8, "gene_hidden": (8,)}


def world(n=120, seed=0, missing=False):
    """Two of three patients have one case, the others two; the hazard follows from the tissue and from a gene."""
    rng = np.random.default_rng(seed)
    groups = np.arange(n) // 4 * 3 + np.minimum(np.arange(n) % 4, 2)
    tissue, genes = rng.normal(size=n)[groups], rng.normal(size=(n, 6)).astype("float32")[groups]
    time, event = (1 + rng.exponential(9, n)[groups] * np.exp(-tissue - genes[:, 0])).round(1), (rng.random(n) < .6)[groups]
    sizes = rng.integers(1, 7, n) * ~(missing & (np.arange(n) % 6 == 5))
    if missing: genes[np.arange(n) % 6 == 1] = np.nan
    bags = bags_of([tissue[i] + rng.normal(size=(k, 5)) for i, k in enumerate(sizes)], bag_size=3)
    return FusionData(bags, genes, np.stack([time, event], 1).astype("float32"), groups)


@pytest.fixture(scope="module")
def data(): return world()


@pytest.fixture(scope="module")
def gaps(): return world(missing=True)


def as_classes(data): return replace(data, labels=data.labels[:, 1].copy(), groups=None)


def make(name="cross_attention", **options): return build_bag_model(name, token_dim=5, table_dim=6, **SMALL | options)


def run(data, model=None, **options):
    """History and weights after a training."""
    model = model or make()
    history = fit(model, data, TRAIN, VAL, **{"config": COX, "progress": False, **options})
    return history, {k: t.clone() for k, t in model.state_dict().items()}


def same(a, b): return a[0].equals(b[0]) and a[1].keys() == b[1].keys() and all(torch.equal(t, b[1][k]) for k, t in a[1].items())


# ---- batches

def test_bags_are_drawn_in_training_and_whole_in_evaluation(data):
    drawn, again, other = (list(data.batches(TRAIN, batch_size=22, shuffle_seed=1, bag_seed=(0, epoch))) for epoch in (1, 1, 2))
    assert all(b["image"].tokens.shape[1] <= 3 for b in drawn)
    assert all(torch.equal(a["image"].tokens, b["image"].tokens) and torch.equal(a["image"].mask, b["image"].mask) for a, b in zip(drawn, again))
    assert not any(torch.equal(a["image"].tokens, b["image"].tokens) for a, b in zip(drawn, other))
    for batch in data.batches(TRAIN, batch_size=22):
        for row, tokens, mask in zip(batch["row"], *batch["image"]):
            at = slice(data.images.offsets[row], data.images.offsets[row + 1])
            assert np.array_equal(tokens[mask], data.images.features[at])


def test_a_patch_drawn_is_one_of_the_case_and_does_not_depend_on_the_batch(data):
    one = {int(b["row"][0]): b["image"] for b in data.batches(TRAIN, batch_size=1, bag_seed=(0, 1))}
    for batch in data.batches(TRAIN[::-1], batch_size=30, bag_seed=(0, 1)):
        for row, tokens, mask in zip(batch["row"].tolist(), *batch["image"]):
            assert torch.equal(tokens[mask], one[row].tokens[0][one[row].mask[0]])
            assert set(map(tuple, tokens[mask].tolist())) <= set(map(tuple, data.images.features[data.images.offsets[row]:data.images.offsets[row + 1]].tolist()))


def test_processes_share_bags_and_patients(data):
    whole, *shares = (list(data.batches(TRAIN, batch_size=16, shuffle_seed=(0, 3), bag_seed=(0, 3), **kw)) for kw in ({}, *({"rank": r, "world": 2} for r in (0, 1))))
    for batch, *parts in zip(whole, *shares):
        for key in ("row", "group", "label", "table"): assert torch.equal(batch[key], torch.cat([p[key] for p in parts]))


def test_large_bags_come_in_smaller_batches(monkeypatch, data):
    monkeypatch.setattr("fusion_nb.batches._MOST", 5 * 10)  # ten patches of five numbers
    parts = list(data.batches(VAL, batch_size=24))
    assert torch.cat([p["row"] for p in parts]).tolist() == VAL.tolist() and len(parts) > 5
    assert all(p["image"].tokens.numel() <= 50 or len(p["row"]) == 1 for p in parts)
    torch.testing.assert_close(predict(make(), data, VAL), predict(make(), data, VAL, batch_size=3), rtol=1e-5, atol=1e-6)


def test_bags_travel_with_patients(gaps):
    sent = pickle.loads(pickle.dumps(gaps))
    assert np.array_equal(sent.groups, gaps.groups) and np.array_equal(sent.table, gaps.table, equal_nan=True) and np.array_equal(sent.images.features, gaps.images.features)


@pytest.mark.parametrize("change, message", [
    ({"table": "some"}, "nan in row 0, column 2"), ({"table": "all"}, "nan in row 0, column 0"), ({"labels": "half"}, "an event 0 or 1"),
    ({"labels": "zero"}, "a time above 0"), ({"groups": "others"}, "one time and event of all cases of a patient. Got others in row 1, 88 such rows"),
    ({"groups": "short"}, "images, table, labels and groups of the same cases"), ({"groups": "text"}, "groups as int64")])
def test_arrays_that_cannot_be(data, change, message):
    (name, how), = change.items()
    wrong = {"some": lambda a: np.where(np.arange(6) == 2, np.nan, a).astype("float32"), "all": lambda a: np.full_like(a, np.nan),
             "half": lambda a: a / 2, "zero": lambda a: a * np.float32([0, 1]), "others": lambda a: np.arange(len(a)) // 4,
             "short": lambda a: a[1:], "text": lambda a: a.astype(float)}[how](getattr(data, name))
    with pytest.raises(DataError, match=message): replace(data, **{name: wrong})


# ---- the loop

def test_same_as_a_loop_in_plain_torch(data):
    """The very same weights, patches drawn by `draw` and each patient once in the loss."""
    history, weights = run(data, config=replace(COX, epochs=2))
    model, losses = make(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=.003, fused=True)
    scores = []
    for epoch in (1, 2):
        model.train()
        with seeded(0, epoch, 0):
            patients = np.unique(data.groups[TRAIN])
            patients = np.random.default_rng((0, epoch)).permutation(patients)
            cases = [TRAIN[data.groups[TRAIN] == patient] for patient in patients]
            ends = np.cumsum([len(c) for c in cases])
            for rows in np.split(np.concatenate(cases), [ends[np.abs(ends - third).argmin()] for third in (22, 44)]):
                batch = next(data.batches(rows, batch_size=99, bag_seed=(0, epoch)))
                loss = cox_loss(model(batch["image"], batch["table"])["main"], *torch.tensor(data.labels[rows]).T, group=torch.tensor(data.groups[rows]), above_chance=True)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        known = average_by_group(*data.labels[VAL].T, predict(model, data, VAL), data.groups[VAL])
        scores.append((harrell_c(*known), {k: t.clone() for k, t in model.state_dict().items()}))
    assert history["train_loss"].tolist() == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])], abs=1e-7)
    assert history["val_harrell_c"].tolist() == pytest.approx([c for c, _ in scores], abs=1e-12)
    best = 1 + int(history.sort_values(["val_harrell_c", "val_loss"], ascending=[False, True]).index[0])
    assert all(torch.equal(weights[k], t) for k, t in scores[best - 1][1].items())


@pytest.mark.parametrize("name, config", [("cross_attention", COX), ("gated_product", HAZARD), ("bag_attention", COX), ("genes", COX), ("co_attention", CLASSES)])
def test_same_seed_same_bits(gaps, name, config):
    """With modality dropout and missing modalities, whatever was drawn in between."""
    seen = as_classes(gaps) if config is CLASSES else gaps
    make_it = lambda: make(name, modality_dropout=.3, n_outputs=4 if config is HAZARD else 1)
    first = run(seen, make_it(), config=config)
    torch.rand(5), np.random.rand(5)
    assert same(first, run(seen, make_it(), config=config))
    assert not same(first, run(seen, make_it(), config=replace(config, seed=1)))


@pytest.mark.parametrize("config", [COX, HAZARD])
def test_only_the_rows_named_matter(gaps, config):
    """Patches, genes and outcomes of the test part are replaced: not a bit of the weights changes, nor a bin of time."""
    bags, table, labels = gaps.images, gaps.table.copy(), gaps.labels.copy()
    features = bags.features.copy()
    features[bags.offsets[TEST[0]]:] = 1e6
    table[TEST], labels[TEST] = 1e6, [1e6, 1]
    outputs = {"n_outputs": 4} if config is HAZARD else {}
    other = FusionData(replace(bags, features=features, key="other"), table, labels, gaps.groups)
    assert same(*(run(d, make(modality_dropout=.2, **outputs), config=config) for d in (gaps, other)))


def test_bins_come_from_the_training_part_each_patient_once(data, monkeypatch):
    asked = []
    monkeypatch.setattr("fusion_nb.train.hazard_bins", lambda *args: asked.append(args) or hazard_bins(*args))
    run(data, make(n_outputs=4), config=replace(HAZARD, epochs=1))
    (time, event, n), = asked
    known = average_by_group(*data.labels[TRAIN].T, np.zeros(len(TRAIN)), data.groups[TRAIN])
    assert n == 4 and sorted(time) == pytest.approx(sorted(known[0])) and event.sum() == known[1].sum() and len(time) < len(TRAIN)


def test_batches_without_events_are_counted_and_teach_nothing(data):
    """Few events in small batches."""
    labels = data.labels.copy()
    rare = np.isin(data.groups, data.groups[TRAIN][::13])
    labels[TRAIN, 1] = rare[TRAIN]
    few = replace(data, labels=labels)
    config = replace(COX, batch_size=6, epochs=2)
    history, weights = run(few, config=config)
    for epoch in (1, 2):
        batches = [b["row"].numpy() for b in few.batches(TRAIN, batch_size=6, shuffle_seed=(0, epoch))]
        assert len(batches) == 11 and history["eventless_batches"][epoch - 1] == sum(not labels[rows, 1].any() for rows in batches) > 0
    assert np.isfinite(history).all(axis=None) and all(t.isfinite().all() for t in weights.values())


def test_cases_of_a_patient_are_one(data):
    """Validation ranks patients; taken for patients, the cases give another history."""
    apart = replace(data, groups=np.arange(120))
    assert not run(data)[0].equals(run(apart)[0])
    pd.testing.assert_frame_equal(run(apart)[0], run(replace(data, groups=None))[0], rtol=1e-3, atol=1e-4)  # sums in another order


def test_predictions_are_risks(data):
    model, hazards = make(), make(n_outputs=4)
    batch = next(data.batches(TEST, batch_size=99))
    with torch.no_grad(): logits, bins = (m.eval()(batch["image"], batch["table"])["main"].double() for m in (model, hazards))
    assert np.array_equal(predict(model, data, TEST), logits) and np.allclose(predict(hazards, data, TEST), -survival_of(bins).sum(1), atol=1e-12)
    assert predict(model, as_classes(data), TEST) == pytest.approx(logits.sigmoid().numpy()) and predict(model, data, []).shape == (0,)


@pytest.mark.parametrize("config, n_outputs", [(COX, 1), (HAZARD, 4)])
def test_it_learns(data, config, n_outputs):
    model = make("bag_joint_mean", dropout=0., n_outputs=n_outputs)
    run(data, model, config=replace(config, epochs=30, patience=30, lr=.01))
    assert patient_c(predict(model, data, TEST), data.labels[TEST], data.groups[TEST]) > .7


def test_bf16(data): assert run(data, config=replace(COX, precision="bf16-mixed"))[0]["val_loss"].notna().all()


# ---- missing modalities

@pytest.mark.parametrize("name", BAG_MODELS)
def test_modality_dropout_accepts_what_others_refuse(gaps, name):
    history, _ = run(gaps, model := make(name, modality_dropout=.3), config=replace(COX, epochs=1))
    assert np.isfinite(history).all(axis=None) and np.isfinite(predict(model, gaps, TEST)).all()
    what = "bag" if name.startswith("bag_") and name in ("bag_mean", "bag_attention") else "table"
    with pytest.raises(DataError, match=f"a {what} of every case, for a model without modality dropout. Got none of 11 of 66 cases, the first in row {5 if what == 'bag' else 1}"):
        run(gaps, make(name))


def test_pixel_models_refuse_rows_of_nan(gaps):
    model = build_model("table_only", table_dim=6, hidden=(8,))
    with pytest.raises(DataError, match="a table of every case"): run(gaps, model)
    with pytest.raises(DataError, match="a table of every case.*first in row 91"): predict(model, gaps, TEST)
    assert np.isfinite(predict(model, gaps, TEST[~np.isnan(gaps.table[TEST, 0])])).all()


# ---- what is refused

@pytest.mark.parametrize("setting, message", [
    ({"monitor": "auc"}, "'harrell_c' with a loss of survival"), ({"loss": "focal"}, "another with one of classes"), ({"sampler": "balanced", "pos_weight": None}, "shuffle"),
    ({"ties": "exact"}, "known ties"), ({"hazard_bins": 2}, "at least 3")])
def test_settings_that_cannot_be_meant(setting, message):
    with pytest.raises(DataError, match=message): replace(COX, **setting)


@pytest.mark.parametrize("rows, part", [(TRAIN, "training"), (VAL, "validation")])
def test_a_part_without_events_is_named(data, rows, part, tmp_path):
    labels = data.labels.copy()
    labels[rows, 1] = 0
    with pytest.raises(DataError, match=f"an event in the {part} part that another patient outlived. Got 0 events among {len(rows)} cases"):
        run(replace(data, labels=labels), folder=tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("ask, message", [
    (lambda d: run(d, config=CLASSES), "a loss of survival for such labels. Got loss='cross_entropy'"), (lambda d: run(as_classes(d)), "a loss of classes for such labels"),
    (lambda d: run(d, config=replace(COX, augment=PatchAugment())), "no augmentation of bags"), (lambda d: predict(make(), d, TEST, tta=2), "tta=0 for bags"),
    (lambda d: embed_images(make(), d, TEST), "Got bags of patches"), (lambda d: run(d, config=HAZARD), r"outputs \(B, 4\)"), (lambda d: run(d, make(n_outputs=3)), r"outputs \(B,\)"),
    (lambda d: run(replace(d, images=None)), "images for a model that looks at them")])
def test_questions_that_make_no_sense(data, ask, message):
    with pytest.raises(DataError, match=message): ask(data)


def test_a_folder_of_other_bags_or_patients_is_refused(data, tmp_path):
    run(data, folder=tmp_path)
    for other in (replace(data, images=replace(data.images, key="other")), replace(data, images=replace(data.images, bag_size=2)), replace(data, groups=None)):
        with pytest.raises(DataError, match="made with other data"): run(other, folder=tmp_path)


# ---- studies

def people_of(data, survival=True):
    """The cohort of a world: genes as counts, patients without RNA all NaN."""
    counts = pd.DataFrame(2 ** (data.table.astype(float) + 5) - 1, columns=GENES)
    event = data.labels[:, 1].astype(int)
    table = counts.assign(case_id=[f"C{i}" for i in range(len(data))], group=[f"P{g}" for g in data.groups], image=None, time=data.labels[:, 0].astype(float), event=event, label=event)
    return Cohort("made", table, tuple(Variable(g, "expression") for g in GENES), ("censored", "event"), "by number", synthetic=True, survival=survival)


@pytest.fixture(scope="module")
def study(gaps):
    """A cohort with missing modalities, its bags, and two folds by patient."""
    people = people_of(gaps)
    return people, gaps.images, kfold(people.table, n_splits=2, val_fraction=.3, seed=0)


DROP = SMALL | {"modality_dropout": .2}
JOINT = Recipe(models=("bag_mean", "genes", "cross_attention"), options=DROP, config=replace(COX, lr=.01), tta=3)


@pytest.fixture(scope="module")
def found(study, tmp_path_factory): return cross_fit(*study, replace(JOINT, seeds=(0, 1)), folder=tmp_path_factory.mktemp("found"), progress=False)


def test_survival_predictions_of_every_case(study, found):
    pred, histories = found
    people, _, splits = study
    assert [c for c in pred if c.startswith("score_")] == ["score_risk"] and not {"label"} & set(pred) and np.isfinite(pred["score_risk"]).all()
    assert len(pred) == 3 * 2 * 2 * len(people) and set(histories) == {"epoch", "train_loss", "eventless_batches", "val_loss", "val_harrell_c", "lr", "model", "fold", "run"}
    for column in ("time", "event", "group"): assert (pred["case_id"].map(people.table.set_index("case_id")[column]) == pred[column]).all()
    best = on_validation(pred[pred["run"] == 0], harrell_c)
    assert best.keys() == {(m, f) for m in JOINT.models for f in (0, 1)} and all(.2 < c < 1 for c in best.values())


def test_history_is_that_of_the_predictions(found):
    """C of patients on validation, by the statistics module."""
    pred, histories = found
    best = histories.groupby(["model", "fold", "run"])["val_harrell_c"].max()
    for key, rows in pred[pred["split"] == "val"].groupby(["model", "fold", "run"]):
        c = harrell_c(*average_by_group(*(rows[name].to_numpy() for name in ("time", "event", "score_risk", "group"))))
        assert best[key] == pytest.approx(c, abs=1e-6)


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_side_by_side_or_again_the_same(study, found, tmp_path, jobs):
    recipe = replace(JOINT, seeds=(0, 1))
    pred, _ = cross_fit(*study, recipe, folder=tmp_path, jobs=jobs, progress=False)
    assert pred.equals(found[0]) and cross_fit(*study, recipe, folder=tmp_path, progress=False)[0].equals(pred)


def test_seed_estimates_compare_within_folds_only(found):
    pred = found[0].assign(score_risk=lambda t: t["score_risk"] + 1e6 * t["fold"])  # another scale in each fold changes nothing
    for level, merged in (("case", False), ("patient", True)):
        table = seed_estimates(pred, level=level).set_index(["model", "run"])["estimate"]
        for key, rows in pred[pred["split"] == "test"].groupby(["model", "run"]):
            won = pairs = 0
            for _, fold in rows.groupby("fold"):
                time, event, risk = (fold[c].to_numpy() for c in ("time", "event", "score_risk"))
                if merged: time, event, risk = average_by_group(time, event, risk, fold["group"].to_numpy())
                later = (time[None] > time[:, None]) | ((time[None] == time[:, None]) & (np.asarray(event)[None] == 0))
                asked = later & (np.asarray(event) == 1)[:, None]
                won, pairs = won + (asked * ((risk[:, None] > risk[None]) + .5 * (risk[:, None] == risk[None]))).sum(), pairs + asked.sum()
            assert table[key] == pytest.approx(won / pairs, abs=1e-12)
    with pytest.raises(DataError, match="level"): seed_estimates(pred, level="slide")


def test_every_form_of_study(study, data, tmp_path):
    """Classes with bags, survival with genes alone, hazards, clinical variables by a plain network, and several at once."""
    people, bags, splits = study
    whole = people_of(data)
    classes, genes = Recipe(models=("bag_attention", "gated_product"), options=DROP, config=CLASSES), Recipe(models=("genes", "table_only"), hidden=(8,), options=SMALL, config=COX)
    tasks = {"classes": (replace(people, survival=False), bags, splits, classes), "genes": (whole, None, splits, genes),
             "hazard": (whole, data.images, splits, Recipe(models=("co_attention",), options=SMALL, config=HAZARD)),
             "image": (replace(whole, variables=()), data.images, splits, Recipe(models=("bag_mean",), options=SMALL, config=COX))}
    done = cross_fits(tasks, folder=tmp_path, progress=False)
    assert done["classes"][0]["score_event"].between(0, 1).all() and "val_auc" in done["classes"][1]
    assert set(done["genes"][0]["model"]) == {"genes", "table_only"} and (done["hazard"][0]["score_risk"] < 0).all() and np.isfinite(done["image"][0]["score_risk"]).all()
    assert set(seed_estimates(done["classes"][0])["metric"]) == {"auc"}


def test_corrupt_test_rows_change_nothing_that_is_fitted(study, tmp_path):
    """Expression, patches, times and events of the test part: neither the preprocessing, nor the bins, nor a weight."""
    people, bags, splits = study
    fold = make_fold(people, bags, splits, 0)

    def fitted(people, bags, place, config):
        fold = make_fold(people, bags, splits, 0)
        recipe = Recipe(models=("cross_attention",), options=DROP, config=config)
        model, history = train_model(recipe, "cross_attention", fold, seed=0, folder=tmp_path / place)
        return fold.preprocessor.to_json(), (history, {k: t.clone() for k, t in model.state_dict().items()})

    def corrupt(rows):
        table, features = people.table.copy(), bags.features.copy()
        table.loc[rows, GENES], table.loc[rows, "time"] = 3e5, 1e4 + rows
        for column in ("event", "label"): table.loc[rows, column] = np.arange(len(rows)) % 2
        for row in rows: features[bags.offsets[row]:bags.offsets[row + 1]] = -50
        first = table.groupby("group").transform("first")  # one outcome of a patient
        return replace(people, table=table.assign(**{c: first[c] for c in ("time", "event", "label")})), replace(bags, features=features, key=str(len(rows)))

    for name, config in (("cox", COX), ("hazard", HAZARD)):
        clean = fitted(people, bags, f"{name} clean", config)
        bad = fitted(*corrupt(fold.rows("test")), f"{name} bad", config)
        assert clean[0] == bad[0] and same(clean[1], bad[1])
        other = fitted(*corrupt(fold.rows("train")[:4]), f"{name} other", config)
        assert clean[0] != other[0] and not same(clean[1], other[1])  # so that this can fail


def test_early_fusion_starts_from_the_trained_genes_of_its_fold(study, data, tmp_path):
    people, splits = people_of(data), study[2]
    genes = Recipe(models=("genes",), options=SMALL, config=COX)
    early = Recipe(models=("bag_early",), options=SMALL, branches=(genes,), config=COX)
    cross_fit(people, data.images, splits, early, folder=tmp_path, progress=False)
    assert len(list(tmp_path.glob("genes-*"))) == 2
    fold = make_fold(people, data.images, splits, 0)
    (whole, _), (branch, _) = train_model(early, "bag_early", fold, seed=0, folder=tmp_path), train_model(genes, "genes", fold, seed=0, folder=tmp_path)
    kept = [(a, b) for (k, a), b in zip(branch.genes.state_dict().items(), whole.genes.encoder.state_dict().values())]
    assert kept and all(torch.equal(a, b) for a, b in kept)
    with pytest.raises(DataError, match="branches=\\(a recipe with models=\\('genes',\\)\\)"): replace(early, branches=(genes, genes))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_fold_part_without_events_is_refused_by_name(study, part):
    people, bags, splits = study
    there = people.table["case_id"].isin(splits.query("fold == 1 and split == @part")["case_id"])
    event = people.table["event"].where(~there, 0)
    with pytest.raises(DataError, match=f"an event in the {part} part of fold 1 that another patient outlived. Got 0 events"):
        make_fold(replace(people, table=people.table.assign(event=event, label=event)), bags, splits, 1)


@pytest.mark.parametrize("models, lacking, message", [
    (("cross_attention",), "images", "need no images.*Got cross_attention. Give models=\\('genes',\\)"), (("genes",), "variables", "need no variables.*Give models=\\('bag_mean',\\)"),
    (("image_only",), "", "models that look at bags of patches. Got image_only. Choose among BAG_MODELS")])
def test_models_of_what_is_not_there_are_refused(study, tmp_path, models, lacking, message):
    people, bags, splits = study
    who, seen = (replace(people, variables=()) if lacking == "variables" else people), (None if lacking == "images" else bags)
    with pytest.raises(DataError, match=message): cross_fit(who, seen, splits, replace(JOINT, models=models), folder=tmp_path, progress=False)


def test_bag_models_refuse_pixels(study, tmp_path):
    people, _, splits = study
    with pytest.raises(DataError, match="models that look at images of pixels. Got bag_mean, cross_attention. Choose among MODELS"):
        cross_fit(people, np.zeros((len(people), 1, 8, 8), np.uint8), splits, JOINT, folder=tmp_path, progress=False)


def test_options_that_no_model_has_are_refused(study, tmp_path):
    with pytest.raises(DataError, match="option of a bag model.*'dim'"): cross_fit(*study, replace(JOINT, options={"dims": 8}), folder=tmp_path, progress=False)


def test_fits_of_other_bags_or_options_have_another_folder(study, tmp_path):
    people, bags, splits = study
    one = replace(JOINT, models=("genes",))
    for recipe, seen in ((one, bags), (one, replace(bags, key="other")), (replace(one, hidden=(1,)), bags)): train_model(recipe, "genes", make_fold(people, seen, splits, 0), seed=0, folder=tmp_path)
    assert len(list(tmp_path.glob("genes-*"))) == 2, "genes do not look at bags"
    for key in ("a", "b"): train_model(replace(one, models=("bag_mean",)), "bag_mean", make_fold(people, replace(bags, key=key), splits, 0), seed=0, folder=tmp_path)
    assert len(list(tmp_path.glob("bag_mean-*"))) == 2


def test_genes_are_asked_again_one_fold_at_a_time(data, study, tmp_path):
    """Permutation importance of a survival model of genes."""
    people, splits = people_of(data), study[2]
    recipe = Recipe(models=("genes",), options=SMALL | {"dropout": 0.}, config=replace(COX, epochs=25, patience=25, lr=.01))
    folds = [make_fold(people, None, splits, number) for number in (0, 1)]
    models = [train_model(recipe, "genes", fold, seed=0, folder=tmp_path)[0] for fold in folds]
    ask = OutOfFold(models[:1], folds[:1])
    assert np.allclose(ask(ask.donor), predict(models[0], folds[0].data, folds[0].rows("test")), atol=1e-6)
    drops = permutation_importance(ask, ask.donor, ask.label, columns_of=ask.columns_of, n_repeats=5, metric="harrell_c")
    assert drops.groupby("variable")["drop_percent"].median().idxmax() == "G0"
    with pytest.raises(DataError, match="one fold at a time for survival"): OutOfFold(models, folds)
    assert predict_from_embeddings(models[0], None, folds[0].data.table[:3]).max() <= 1


def test_real_patients_of_tcga(data_dir, tmp_path):
    """Genes of real breast cancers: the survival loss trains, and ranks unseen patients no worse than chance allows."""
    omics = pytest.importorskip("fusion_nb.data.omics")
    people = omics.read_tcga_brca(data_dir / "tcga_brca_tabular", outcome="survival")
    splits = kfold(people.table, n_splits=5, val_fraction=.2, seed=0)
    recipe = Recipe(models=("genes",), options={"gene_hidden": (32,)}, preprocess={"expression": {"n_genes": 200}}, config=replace(COX, batch_size=128, lr=1e-3, epochs=3))
    fold = make_fold(people, None, splits, 0, preprocess=recipe.preprocess)
    model, history = train_model(recipe, "genes", fold, seed=0, folder=tmp_path)
    c = patient_c(predict(model, fold.data, fold.rows("test")), fold.data.labels[fold.rows("test")], fold.data.groups[fold.rows("test")])
    assert fold.data.table.shape[1] == 200 and .3 < c < .9 and history["eventless_batches"].notna().all()
