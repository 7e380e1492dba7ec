"""Splits: properties over random tables, and the errors."""
import hashlib

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_nb.schema import DataError
from fusion_nb.splits import PARTS, check_splits, holdout, kfold, site_kfold, split_counts

LIGHT = settings(max_examples=15, deadline=None, derandomize=True)  # the same tables every time
LIGHTER = settings(LIGHT, max_examples=5)


@st.composite
def tables(draw):
    """40 to 150 patients with up to four cases each, of which a quarter to a half are positive; some patients have both labels."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n_groups, most = draw(st.integers(40, 150)), draw(st.integers(1, 4))
    group = np.repeat(np.arange(n_groups), rng.integers(1, most + 1, n_groups))
    positive = (np.arange(n_groups) < n_groups * draw(st.floats(0.25, 0.5)))[group]
    table = pd.DataFrame({"group": group, "label": (positive & (rng.random(len(group)) < 0.9)).astype(int)})
    table["case_id"] = [f"case{i:04d}" for i in range(len(table))]
    return table.sample(frac=1, random_state=draw(st.integers(0, 99))).reset_index(drop=True)


def parts_of(splits, table):
    return splits.merge(table, on="case_id")


@LIGHT
@given(table=tables(), seed=st.integers(0, 1000))
def test_kfold_keeps_groups_together_and_tests_every_case_once(table, seed):
    splits = kfold(table, seed=seed)
    rows = parts_of(splits, table)
    assert (rows.groupby(["fold", "group"])["split"].nunique() == 1).all()
    assert sorted(splits.loc[splits["split"] == "test", "case_id"]) == sorted(table["case_id"])
    assert (rows.groupby(["fold", "split"])["label"].nunique() == 2).all()
    assert (splits["case_id"].to_numpy().reshape(5, -1) == table["case_id"].to_numpy()).all()  # rows as in the table


@LIGHT
@given(table=tables(), seed=st.integers(0, 1000))
def test_kfold_parts_have_the_wanted_size_and_prevalence(table, seed):
    rows = parts_of(kfold(table, seed=seed), table)
    test, largest = rows[rows["split"] == "test"], table.groupby("group").size().max()
    assert np.abs(test.groupby("fold").size() - len(table) / 5).max() <= 1 + largest
    assert np.abs(test.groupby("fold")["label"].sum() - table["label"].sum() / 5).max() <= 1 + largest
    outside = rows[rows["split"] != "test"].groupby("fold")["group"].nunique()
    val = rows[rows["split"] == "val"].groupby("fold")["group"].nunique()
    assert np.abs(val - 0.15 * outside).max() <= 1


@LIGHT
@given(table=tables(), seed=st.integers(0, 1000))
def test_holdout_keeps_groups_together_in_the_wanted_shares(table, seed):
    rows = parts_of(holdout(table, fractions=(0.5, 0.2, 0.3), seed=seed), table)
    assert (rows.groupby("group")["split"].nunique() == 1).all()
    groups = rows.groupby("group").agg(split=("split", "first"), label=("label", "max"))
    for part, share in zip(PARTS, (0.5, 0.2, 0.3)):
        inside = groups[groups["split"] == part]
        assert abs(len(inside) - share * len(groups)) <= 1
        assert abs(inside["label"].sum() - share * groups["label"].sum()) <= 2


@LIGHT
@given(table=tables(), seed=st.integers(0, 1000), shuffle=st.integers(1, 1000))
@pytest.mark.parametrize("make", [holdout, kfold])
def test_a_split_depends_on_the_seed_and_not_on_the_order_or_type_of_the_ids(make, table, seed, shuffle):
    shuffled = table.sample(frac=1, random_state=shuffle).astype({"group": str})
    keys = ["fold", "case_id"]
    first, second = (make(t, seed=seed).sort_values(keys).reset_index(drop=True) for t in (table, shuffled))
    pd.testing.assert_frame_equal(first, second)
    assert not make(table, seed=seed + 1)["split"].equals(make(table, seed=seed)["split"])


@pytest.fixture
def table() -> pd.DataFrame:
    """40 patients with two cases each; every second patient has one case of each label."""
    group = np.repeat(np.arange(40), 2)
    return pd.DataFrame({"case_id": np.arange(80), "group": group, "label": np.arange(80) % 2 * (group % 2)})


def test_a_group_with_both_labels_counts_as_positive(table):
    groups = parts_of(holdout(table), table).groupby("group").agg(split=("split", "first"), label=("label", "max"))
    assert groups.groupby("split")["label"].agg(["size", "sum"]).T.to_dict("list") == {
        "train": [24, 12], "val": [4, 2], "test": [12, 6]}


def test_splitting_single_cases_is_put_into_words(table):
    splits = holdout(table, by_group=False)
    (note,) = check_splits(splits, table, by_group=False)
    assert "of 40 groups (patients) have cases in more than one part" in note
    with pytest.raises(DataError, match="each group .patient. in one part.*by_group=False"):
        check_splits(splits, table)
    single = table.drop_duplicates("group").assign(label=np.arange(40) % 2)
    assert check_splits(kfold(single, by_group=False), single, by_group=False) == ()


def test_counts_add_up(table):
    counts = split_counts(kfold(table), table)
    assert list(counts.columns) == ["fold", "split", "cases", "patients", "positives"] and len(counts) == 15
    assert (counts.groupby("fold")[["cases", "patients", "positives"]].sum() == [80, 40, 20]).all(axis=None)


@pytest.mark.parametrize("fractions", [(0.6, 0.1, 0.2), (60, 10, 30), (0.7, 0.3), (0.7, 0.0, 0.3), (1.2, -0.5, 0.3)])
def test_fractions_must_be_three_positive_ones_that_sum_to_one(table, fractions):
    with pytest.raises(DataError, match="three positive fractions that sum to 1"):
        holdout(table, fractions=fractions)


@pytest.mark.parametrize("val_fraction", [0, 1, 15])
def test_val_fraction_is_a_share(table, val_fraction):
    with pytest.raises(DataError, match="val_fraction between 0 and 1"):
        kfold(table, val_fraction=val_fraction)


@pytest.mark.parametrize("make", [holdout, kfold])
@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "1"])
def test_a_seed_that_numpy_does_not_take(table, make, seed):
    with pytest.raises(DataError, match=r"a seed that is a whole number from 0 to 2\*\*32 - 1"):
        make(table, seed=seed)
    make(table, seed=np.int64(2**32 - 1))


@pytest.mark.parametrize("n_splits", [0, 1, 2.5, 21, 1000])
def test_too_few_groups_for_the_folds(table, n_splits):
    with pytest.raises(DataError, match="no more folds than groups.*20 of label 1.*Use fewer folds"):
        kfold(table, n_splits=n_splits)


def test_too_few_positive_groups_for_three_parts(table):
    rare = table.assign(label=(table["group"] < 2).astype(int))
    with pytest.raises(DataError, match="enough groups .patients. of every class.*1 of label 1"):
        holdout(rare)
    with pytest.raises(DataError, match="of every class"):  # two positive patients cannot be in train, val and test
        kfold(rare, n_splits=2)


def test_a_fold_with_one_class_says_which(table):
    splits = kfold(table)
    val = (splits["fold"] == 3) & (splits["split"] == "val")
    none = table.assign(label=table["label"].where(~table["case_id"].isin(splits.loc[val, "case_id"]), 0))
    with pytest.raises(DataError, match=r"0 of label 1 in 'val' of fold 3.*Use fewer folds"):
        check_splits(splits, none)


@pytest.mark.parametrize("make", [holdout, kfold])
def test_a_target_of_one_class(table, make):
    with pytest.raises(DataError, match="at least two classes.*only label 0"):
        make(table.assign(label=0))


def test_the_index_of_the_table_does_not_matter(table):
    pd.testing.assert_frame_equal(kfold(table), kfold(table.set_index(np.zeros(80, int))))


@pytest.mark.parametrize("column, value", [("group", np.nan), ("group", None), ("label", np.nan), ("case_id", None)])
def test_every_case_needs_a_group_a_label_and_a_name(table, column, value):
    table = table.astype(object)
    table.loc[7, column] = value
    with pytest.raises(DataError, match=f"a {column} for every case.*1 of 80 cases"):
        kfold(table)


def test_a_missing_column_and_a_duplicate_case(table):
    with pytest.raises(DataError, match="the column 'group'.*Did you mean 'groups'"):
        holdout(table.rename(columns={"group": "groups"}))
    with pytest.raises(DataError, match="one row per case_id"):
        holdout(pd.concat([table, table[:1]]))


def test_a_split_made_elsewhere_is_checked(table):
    splits = holdout(table)
    with pytest.raises(DataError, match="every case of the table in fold 0.*3 cases in one place only"):
        check_splits(splits[:-3], table)
    with pytest.raises(DataError, match="every case of the table.*1 cases in one place only"):
        check_splits(splits, table[:-1])
    with pytest.raises(DataError, match="one row per case_id, fold"):
        check_splits(pd.concat([splits, splits[:1]]), table)
    with pytest.raises(DataError, match="known part of a split.*'valid'.*Did you mean 'val'"):
        check_splits(splits.replace({"split": {"val": "valid"}}), table)
    with pytest.raises(DataError, match="every case of the table"):  # numbers in one file, text in the other
        check_splits(splits.astype({"case_id": str}), table)


# ---- sites

@st.composite
def sited(draw):
    """25 to 50 hospitals of one to forty patients with up to three cases each, and shares of positives of their own; patients stay at one hospital."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    n_sites = draw(st.integers(25, 50))
    site = np.repeat(np.arange(n_sites), rng.integers(1, 41, n_sites))
    positive = rng.random(len(site)) < rng.uniform(.1, .6, n_sites)[site]
    patient = np.repeat(np.arange(len(site)), rng.integers(1, 4, len(site)))
    table = pd.DataFrame({"group": patient, "label": positive[patient].astype(int), "site": [f"S{i}" for i in site[patient]]})
    table["case_id"] = [f"case{i:04d}" for i in range(len(table))]
    return table.sample(frac=1, random_state=draw(st.integers(0, 99))).reset_index(drop=True)


@LIGHTER
@given(table=sited(), seed=st.integers(0, 1000))
def test_site_kfold_keeps_sites_and_patients_together_and_tests_every_case_once(table, seed):
    splits = site_kfold(table, seed=seed)
    rows = parts_of(splits, table)
    assert list(splits.columns) == list(kfold(table).columns) and set(splits["fold"]) == set(range(5))
    for unit in ("site", "group"):
        assert (rows.groupby(["fold", unit])["split"].nunique() == 1).all()
    assert sorted(splits.loc[splits["split"] == "test", "case_id"]) == sorted(table["case_id"])
    assert (rows.groupby(["fold", "split"])["label"].nunique() == 2).all()
    assert (splits["case_id"].to_numpy().reshape(5, -1) == table["case_id"].to_numpy()).all()
    assert check_splits(splits, table) == check_splits(splits, table.assign(group=table["site"])) == ()


@LIGHTER
@given(table=sited(), seed=st.integers(0, 1000))
def test_site_kfold_balances_as_well_as_whole_sites_allow(table, seed):
    rows = parts_of(site_kfold(table, seed=seed), table)
    largest = table.groupby("site").size().max()
    test = rows[rows["split"] == "test"].groupby("fold")["label"]
    assert np.abs(test.size() - len(table) / 5).max() <= largest
    assert np.abs(test.sum() - table["label"].sum() / 5).max() <= largest
    outside = rows[rows["split"] != "test"]
    share = (outside["split"] == "val").groupby([outside["fold"], outside["label"]]).mean()
    assert share.between(.07, .25).all()


@LIGHTER
@given(table=sited(), seed=st.integers(0, 1000), shuffle=st.integers(1, 1000))
def test_a_site_split_depends_on_the_seed_and_not_on_the_order_of_rows(table, seed, shuffle):
    keys = ["fold", "case_id"]
    shuffled = table.sample(frac=1, random_state=shuffle).astype({"group": str})
    first, second = (site_kfold(t, seed=seed).sort_values(keys).reset_index(drop=True) for t in (table, shuffled))
    pd.testing.assert_frame_equal(first, second)


@pytest.fixture
def hospitals() -> pd.DataFrame:
    """Twelve hospitals of ten patients, half of them positive; patient 0 was treated at hospitals 0 and 1, patient 10 at 1 and 2."""
    number = np.arange(120)
    group = np.where(number == 10, 0, np.where(number == 20, 11, number))
    return pd.DataFrame({"case_id": number, "group": group, "label": number % 2, "hospital": number // 10})


def test_sites_that_share_a_patient_are_one(hospitals):
    rows = parts_of(site_kfold(hospitals, site="hospital", n_folds=4), hospitals)
    linked = rows[rows["hospital"] <= 2]
    assert (linked.groupby("fold")["split"].nunique() == 1).all()
    assert (rows.groupby(["fold", "group"])["split"].nunique() == 1).all()


def test_plain_folds_do_not_keep_sites_together(hospitals):
    with pytest.raises(DataError, match="each group .patient. in one part"):
        check_splits(kfold(hospitals), hospitals.assign(group=hospitals["hospital"]))


def test_what_site_kfold_refuses(hospitals):
    with pytest.raises(DataError, match="no more folds than sites of the rarest class.*11 folds for sites 10 of label 0, 10 of label 1"):
        site_kfold(hospitals, site="hospital", n_folds=11)
    with pytest.raises(DataError, match="a hospital for every case. Got 2 of 120 cases without one, the first 3"):
        site_kfold(hospitals.assign(hospital=hospitals["hospital"].astype(float).mask(hospitals["case_id"].isin([3, 4]))), site="hospital")
    with pytest.raises(DataError, match="the column 'site' in the table of cases"):
        site_kfold(hospitals)
    with pytest.raises(DataError, match="val_fraction between 0 and 1"):
        site_kfold(hospitals, site="hospital", val_fraction=2)
    with pytest.raises(DataError, match="a seed that is a whole number"):
        site_kfold(hospitals, site="hospital", seed=-1)
    with pytest.raises(DataError, match="cases of every class in every part.*Use fewer folds"):
        site_kfold(hospitals.assign(label=hospitals["hospital"] < 4), site="hospital", n_folds=2, val_fraction=.01)


def test_the_splits_of_earlier_versions_come_back(table):
    """What a seed gave before there were sites: recorded studies stay reproducible."""
    def print_of(splits): return hashlib.sha256("".join(splits["split"]).encode()).hexdigest()[:16]
    several = table.assign(label=np.arange(80) % 3)
    assert [print_of(s) for s in (holdout(table), kfold(table, seed=3), holdout(several, seed=1), kfold(table, by_group=False))] == [
        "478af392eb2bfae8", "9b563c38e4348c20", "8b84171de3d48204", "ea6b86ddd0c3ea2d"]
