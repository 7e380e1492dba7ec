"""Splits: properties over random tables, and the errors."""
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion_nb.schema import DataError
from fusion_nb.splits import PARTS, check_splits, holdout, kfold, split_counts

LIGHT = settings(max_examples=15, deadline=None, derandomize=True)  # the same tables every time


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
