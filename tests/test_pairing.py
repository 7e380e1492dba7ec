"""Pairs of two cohorts: never across parts, the same from the same seed, nothing lost silently, and every refusal says how many."""
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from fusion_nb.pairing import POLICIES, pair_cohorts, repair
from fusion_nb.schema import Cohort, DataError, Variable
from fusion_nb.splits import holdout, kfold

MAP = {"mitosis": "died", "tumor": "survived", "non_tumor": "survived"}


def made_images(n=90, n_groups=30, seed=0) -> Cohort:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"case_id": [f"p{i:03d}" for i in range(n)], "group": [f"case {i % n_groups}" for i in range(n)],
                          "label": rng.permutation(np.arange(n_groups) % 3)[np.arange(n) % n_groups], "image": "slide.png", "x": rng.random(n)})
    return Cohort("patches", table, (), ("mitosis", "tumor", "non_tumor"), "none", notes=("3 dots at the border",), source="images of A")


def made_records(n=60, seed=1, **columns) -> Cohort:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"case_id": [f"{1000 + i}" for i in range(n)], "group": [f"s{i // 2}" for i in range(n)], "label": rng.permutation(np.arange(n) % 2),
                          "image": None, "age": rng.normal(60, 9, n), "sex": rng.choice(["F", "M", None], n), **columns})
    return Cohort("admissions", table, (Variable("age", "continuous"), Variable("sex", "categorical")), ("survived", "died"), "none", synthetic=True, source="records of B")


@pytest.fixture(scope="module")
def world():
    images, records = made_images(), made_records()
    return images, records, (holdout(images.table), holdout(records.table, fractions=(.5, .2, .3)))


def part_of(splits): return splits.set_index("case_id")["split"]


@pytest.mark.parametrize("policy", ["random", "label_matched"])
@pytest.mark.parametrize("seed", range(5))
def test_a_record_meets_images_of_its_own_part_only(world, policy, seed):
    images, records, parts = world
    cohort, splits = pair_cohorts(images, records, policy=policy, parts=parts, label_map=MAP if policy == "label_matched" else None, seed=seed)
    table = cohort.table
    mine, theirs = part_of(splits).loc[table["case_id"]].to_numpy(), part_of(parts[1]).loc[table["record_id"]].to_numpy()
    assert (mine == theirs).all() and set(mine) == {"train", "val", "test"}
    assert len(cohort) == len(images) and pd.testing.assert_frame_equal(table[images.table.columns.tolist()], images.table) is None
    pd.testing.assert_frame_equal(splits, parts[0][["case_id", "fold", "split"]].reset_index(drop=True))
    source = records.table.set_index("case_id").loc[table["record_id"]].reset_index()
    for column, origin in (("age", "age"), ("sex", "sex"), ("record_group", "group"), ("record_label", "label")):
        pd.testing.assert_series_equal(table[column], source[origin], check_names=False)
    key = table["label"].map(lambda i: MAP[images.classes[i]] == "died").astype(int) if policy == "label_matched" else 0
    if policy == "label_matched": assert (table["record_label"] == key).all()
    # as evenly as the numbers allow: within a part (and class) the counts differ by one at most, unused records among them
    pool = records.table.assign(part=part_of(parts[1]).loc[records.table["case_id"]].to_numpy(), used=records.table["case_id"].map(table["record_id"].value_counts()).fillna(0))
    for _, rows in pool.groupby(["part", "label"] if policy == "label_matched" else ["part"]): assert rows["used"].max() - rows["used"].min() <= 1


@pytest.mark.parametrize("policy", ["random", "label_matched"])
def test_same_seed_same_pairs_whatever_the_order(world, policy):
    images, records, parts = world
    def pairs(images, records, parts, seed=3):
        cohort, _ = pair_cohorts(images, records, policy=policy, parts=parts, label_map=MAP, seed=seed)
        return cohort.table.set_index("case_id")["record_id"].sort_index()
    def mixed(table): return table.sample(frac=1, random_state=7).reset_index(drop=True)
    want = pairs(images, records, parts)
    got = pairs(replace(images, table=mixed(images.table)), replace(records, table=mixed(records.table)), tuple(map(mixed, parts)))
    pd.testing.assert_series_equal(want, got)
    assert (pairs(images, records, parts, seed=4) != want).mean() > .5


def test_random_pairs_know_nothing_of_the_label_or_the_order_of_rows():
    images, records = made_images(900, 300), made_records(600)
    parts = holdout(images.table), holdout(records.table)
    tables = [pair_cohorts(images, records, policy="random", parts=parts, seed=s)[0].table for s in range(20)]
    agree = np.mean([((t["label"] == 0) == (t["record_label"] == 1)).mean() for t in tables])
    assert agree == pytest.approx(.5, abs=.02)
    assert abs(np.mean([np.corrcoef(np.arange(900), t["record_id"].astype(int))[0, 1] for t in tables])) < .03


def test_the_sentence_says_what_happened(world):
    images, records, parts = world
    for policy in ("random", "label_matched"):
        cohort, _ = pair_cohorts(images, records, policy=policy, parts=parts, label_map=MAP)
        used = cohort.table["record_id"].value_counts()
        said = cohort.pairing
        assert f"'{policy}': {POLICIES[policy]}" in said and f"{len(images)} images of {images.n_groups} groups (patches)" in said
        assert f"{len(used)} of {len(records)} records of {cohort.table['record_group'].nunique()} patients (admissions)" in said
        assert f"{len(records) - len(used)} records were not used" in said and f"used {used.min()} {'or' if used.max() == used.min() + 1 else 'to'} {used.max()} times each" in said
        assert "within the same part of the same fold" in said and "not that of its patient" in said
        assert ("mitosis with died" in said) == (policy == "label_matched")
        assert cohort.synthetic and cohort.notes[0] == "3 dots at the border" and cohort.source == "images of A; records of B"
        assert any("used several times" in n for n in cohort.notes)
        assert cohort.classes == images.classes and [v.name for v in cohort.variables] == ["age", "sex"]


def test_groups_of_records_across_parts_are_told(world):
    images, records, parts = world
    singly = parts[0], holdout(records.table, by_group=False)
    cohort, _ = pair_cohorts(images, records, policy="random", parts=singly)
    met = cohort.table.assign(part=part_of(singly[0]).loc[cohort.table["case_id"]].to_numpy()).groupby("record_group")["part"].nunique()
    assert f"{(met > 1).sum()} groups (patients) of the records have rows in more than one part" in " ".join(cohort.notes)
    assert not any("more than one part" in n for n in pair_cohorts(images, records, policy="random", parts=parts)[0].notes)


def test_fold_by_fold(world):
    images, records, _ = world
    a, b = kfold(images.table, n_splits=3), kfold(records.table, n_splits=3)
    with pytest.raises(DataError, match="one fold for the images.*3 folds.*fold by fold"): pair_cohorts(images, records, policy="random", parts=(a, b))
    tested = []
    for k in range(3):
        cohort, splits = pair_cohorts(images, records, policy="random", parts=(a[a["fold"] == k], b[b["fold"] == k]))
        assert (part_of(splits).loc[cohort.table["case_id"]].to_numpy() == part_of(b[b["fold"] == k]).loc[cohort.table["record_id"]].to_numpy()).all()
        assert set(splits["fold"]) == {k}
        tested += splits.loc[splits["split"] == "test", "case_id"].tolist()
    assert sorted(tested) == sorted(images.table["case_id"])
    with pytest.raises(DataError, match="the same fold of both splits.*fold 0 of the images and 1"):
        pair_cohorts(images, records, policy="random", parts=(a[a["fold"] == 0], b[b["fold"] == 1]))


def test_same_class_names_need_no_map(world):
    _, records, _ = world
    images = made_images()
    two = replace(images, table=images.table.assign(label=images.table["label"] % 2), classes=("died", "survived"))  # the names count, not their order
    parts = holdout(two.table), holdout(records.table)
    table = pair_cohorts(two, records, policy="label_matched", parts=parts)[0].table
    assert (table["record_label"] == 1 - table["label"]).all()


def test_refusals_of_label_matched(world):
    images, records, parts = world
    with pytest.raises(DataError, match="a label_map.*images mitosis, tumor, non_tumor; records survived, died"): pair_cohorts(images, records, policy="label_matched", parts=parts)
    with pytest.raises(DataError, match="in label_map. Got none for 'non_tumor'"): pair_cohorts(images, records, policy="label_matched", parts=parts, label_map={"mitosis": "died", "tumor": "died"})
    with pytest.raises(DataError, match="Did you mean 'died'"): pair_cohorts(images, records, policy="label_matched", parts=parts, label_map={**MAP, "mitosis": "dead"})
    with pytest.raises(DataError, match="known class of the images. Got 'mitose'"): pair_cohorts(images, records, policy="label_matched", parts=parts, label_map={**MAP, "mitose": "died"})
    keep = (part_of(parts[1]).loc[records.table["case_id"]].to_numpy() != "val") | (records.table["label"] == 0).to_numpy()
    few = records.subset(keep)
    with pytest.raises(DataError, match=r"the class 'died' in 'val' of fold 0. Got \d+ images that need one, and none among \d+ records"):
        pair_cohorts(images, few, policy="label_matched", parts=(parts[0], parts[1][parts[1]["case_id"].isin(few.table["case_id"])]), label_map=MAP)
    train = parts[1].assign(split="train")
    with pytest.raises(DataError, match=r"a record of any kind in 'test' of fold 0. Got \d+ images .* none among 0 records"):
        pair_cohorts(images, records, policy="random", parts=(parts[0], train))


def test_other_refusals(world):
    images, records, parts = world
    with pytest.raises(DataError, match="Did you mean 'random'"): pair_cohorts(images, records, policy="randon", parts=parts)
    with pytest.raises(DataError, match="splits of the records"): pair_cohorts(images, records, policy="random", parts=(parts[0], None))
    with pytest.raises(DataError, match="a whole number from 0"): pair_cohorts(images, records, policy="random", parts=parts, seed=-1)
    with pytest.raises(DataError, match="every case of the table in fold 0.*1 cases"): pair_cohorts(images, records, policy="random", parts=(parts[0].iloc[1:], parts[1]))
    with pytest.raises(DataError, match="Got 'x' in both"):
        both = replace(records, table=records.table.assign(x=1.0), variables=(*records.variables, Variable("x", "continuous")))
        pair_cohorts(images, both, policy="random", parts=parts)
    with pytest.raises(DataError, match="records with variables. Got none in 'admissions'"): pair_cohorts(images, replace(records, variables=()), policy="random", parts=parts)


# ---- true pairs

@pytest.fixture(scope="module")
def patients():
    """Thirty patients: three patches each, and one record of each patient, two records of nobody."""
    images, records = made_images(), made_records(32, group=[f"s{i}" for i in range(32)])
    number = images.table["group"].str.removeprefix("case ").astype(int)
    pairs = pd.DataFrame({"case_id": images.table["case_id"], "hadm_id": 1000 + number})  # numbers, as a file of pairs has them
    return images, records, pairs


def test_true_pairs(patients):
    images, records, pairs = patients
    splits = kfold(images.table, n_splits=3)
    cohort, out = pair_cohorts(images, records, policy="patient", parts=(splits, None), pairs=pairs.sample(frac=1, random_state=0))
    assert (cohort.table["record_id"].astype(int).to_numpy() == pairs["hadm_id"]).all() and out["fold"].nunique() == 3
    assert "30 of 32 records" in cohort.pairing and "2 records were not used" in cohort.pairing and "3 times each" in cohort.pairing
    assert "not that of its patient" not in cohort.pairing and not any("several times" in n for n in cohort.notes)


def test_true_pairs_across_parts_are_refused(patients):
    images, records, pairs = patients
    mine = holdout(images.table, seed=0)
    other = holdout(records.table, seed=1)
    theirs = dict(zip(pairs["hadm_id"].astype(str), part_of(mine).loc[pairs["case_id"]]))
    fitting = other.assign(split=[theirs.get(i, s) for i, s in zip(other["case_id"], other["split"])])
    pair_cohorts(images, records, policy="patient", parts=(mine, fitting), pairs=pairs)
    wrong = (part_of(mine).loc[pairs["case_id"]].to_numpy() != part_of(other).loc[pairs["hadm_id"].astype(str)].to_numpy()).sum()
    with pytest.raises(DataError, match=f"{wrong} pairs that are not, the first image 'p.*'.* of fold 0.*None"):
        pair_cohorts(images, records, policy="patient", parts=(mine, other), pairs=pairs)


def test_ids_that_do_not_match_are_refused_with_counts(patients):
    images, records, pairs = patients
    parts = holdout(images.table), None
    def pair(pairs, images=images): return pair_cohorts(images, records, policy="patient", parts=parts, pairs=pairs)
    with pytest.raises(DataError, match="a table of pairs.*none"): pair(None)
    with pytest.raises(DataError, match="two columns in the table of pairs"): pair(pairs.assign(more=1))
    with pytest.raises(DataError, match="the column 'case_id'"): pair(pairs.rename(columns={"case_id": "image"}))
    with pytest.raises(DataError, match="5 of the images without a pair, the first 'p000'"): pair(pairs.iloc[5:])
    with pytest.raises(DataError, match="2 paired ids that no record has, the first '7'"): pair(pairs.assign(hadm_id=pairs["hadm_id"].where(pairs.index > 1, [7, 8] + [0] * 88)))
    with pytest.raises(DataError, match="1 paired ids that no image has, the first 'z'"): pair(pd.concat([pairs, pd.DataFrame({"case_id": ["z"], "hadm_id": [1000]})]))
    with pytest.raises(DataError, match="1 of the images with several records, the first 'p000'"): pair(pd.concat([pairs, pd.DataFrame({"case_id": ["p000"], "hadm_id": [1009]})]))
    with pytest.raises(DataError, match="2 groups of the records with images of several groups|groups of the images with records of several groups"):
        pair(pairs.assign(hadm_id=pairs["hadm_id"].replace({1001: 1000})).assign(hadm_id=lambda t: t["hadm_id"].where(t.index != 2, 1003)))
    with pytest.raises(DataError, match="1 groups of the records with images of several groups, the first 's0' with 2"): pair(pairs.assign(hadm_id=pairs["hadm_id"].replace({1001: 1000})))
    pair(pd.concat([pairs, pairs.iloc[:3]]))  # the same pair twice says nothing new


# ---- predictions

def scored(n, model, seed=0, **columns) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"study": "s", "model": model, "run": 0, "fold": np.arange(n) % 2, "case_id": [f"{model[0]}{i}" for i in range(n)], "group": None,
                         "split": np.where(np.arange(n) < n // 3, "val", "test"), "label": rng.integers(0, 2, n), "score_positive": rng.random(n), **columns})


@pytest.mark.parametrize("policy", ["random", "label_matched"])
def test_scores_move_within_their_part_only(policy):
    a = scored(60, "image")
    b = a.assign(model="table", score_positive=np.arange(60) / 100)
    got = repair(a, b, policy, seed=5)
    assert got["model"].eq("table").all() and got.drop(columns=["model", "score_positive"]).equals(a.drop(columns=["model", "score_positive"]))
    source = b.set_index("score_positive").loc[got["score_positive"]]
    for column in ("fold", "split", *(["label"] if policy == "label_matched" else [])): assert (source[column].to_numpy() == a[column]).all()
    assert sorted(got["score_positive"]) == sorted(b["score_positive"]) and not got["score_positive"].equals(b["score_positive"])
    if policy == "random": assert (source["label"].to_numpy() != a["label"]).any()
    mixed = repair(a.sample(frac=1, random_state=0), b.sample(frac=1, random_state=1), policy, seed=5)
    assert mixed.set_index("case_id")["score_positive"].to_dict() == got.set_index("case_id")["score_positive"].to_dict()


def test_scores_of_another_cohort():
    a, b = scored(90, "image"), scored(40, "table", seed=2)
    got = repair(a, b, "label_matched")
    used = got.groupby(["fold", "split", "label"])["score_positive"].agg(lambda s: s.value_counts().agg(["min", "max"]).diff().iloc[-1])
    assert used.max() <= 1 and set(got["score_positive"]) <= set(b["score_positive"])
    with pytest.raises(DataError, match=r"none for \d+ cases, the first 'i\d+'"): repair(a, b, "patient")
    with pytest.raises(DataError, match="Did you mean 'label_matched'"): repair(a, b, "label-matched")
    with pytest.raises(DataError, match="one row per case_id"): repair(a, pd.concat([b, b]), "random")


def test_several_classes_and_true_pairs():
    a = scored(30, "image", score_positive=.5)
    classes = {f"score_{c}": np.random.default_rng(i).random(30) for i, c in enumerate("abc")}
    a, b = (a.drop(columns="score_positive").assign(model=m, **classes) for m in ("image", "table"))
    same = repair(a, b.iloc[::-1], "patient")
    pd.testing.assert_frame_equal(same.reset_index(drop=True), b.reset_index(drop=True))
    moved = repair(a, b, "random")
    rows = {tuple(r) for r in b[list(classes)].to_numpy()}
    assert all(tuple(r) in rows for r in moved[list(classes)].to_numpy())  # the scores of a case stay together


def test_sentences_have_whole_numbers(world):
    images, records, parts = world
    said = pair_cohorts(images, records, policy="random", parts=parts)[0].pairing
    assert not re.search(r"\d\.\d", said) and said.endswith(".")
