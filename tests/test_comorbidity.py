"""Quan's Elixhauser groups against the maps of the R package icd (tests/oracles/comorbidity.R), and every bad input."""
import json
import string

import numpy as np
import pandas as pd
import pytest

from fusion_nb.data.comorbidity import QUAN_2005, comorbidities_of, elixhauser, flag_table
from fusion_nb.schema import DataError


@pytest.fixture(scope="module")
def oracle(repo):
    return json.loads((repo/"tests"/"oracles"/"comorbidity.json").read_text())


def found(codes, version):
    table = comorbidities_of(pd.DataFrame({"icd_code": codes, "icd_version": version}))
    return {code: set(rows) for code, rows in table.groupby("icd_code")["comorbidity"]}


@pytest.mark.parametrize("version", [9, 10])
def test_groups_of_codes_as_in_r(oracle, version):
    expected = oracle[f"icd{version}"]
    assert len(expected["groups"]) == 31 and len(expected["codes"]) > 300
    names, ours = QUAN_2005["name"].tolist(), found(expected["codes"], version)
    for code, member in zip(expected["codes"], expected["member"]):
        assert ours[code] == {names[i] for i in member}, code


@pytest.mark.parametrize("version", [9, 10])
def test_neighbours_of_every_range_are_out(version):
    """Codes that stand just beside an entry of the paper, by hand."""
    outside = {9: ["3989", "4275", "429", "173", "1739", "2031", "2961", "302", "3051", "7281", "25"],
               10: ["I46", "I460", "I14", "C35", "C42", "C44", "C59", "C86", "E15", "F17", "F170", "F21", "I421", "K712", "K752", "Z951"]}[version]
    inside = {9: {"428": "congestive heart failure", "1749": "solid tumour", "1950": "solid tumour", "1960": "metastatic cancer", "2030": "lymphoma"},
              10: {"C509": "solid tumour", "C760": "solid tumour", "C780": "metastatic cancer", "C97": "solid tumour", "I5023": "congestive heart failure"}}[version]
    assert found(outside, version) == {}
    assert found(list(inside), version) == {code: {name} for code, name in inside.items()}


def test_versions_are_not_mixed():
    """042 is HIV in ICD-9; E10 is diabetes in ICD-10 and an accident in ICD-9."""
    assert found(["042"], 9) == {"042": {"AIDS/HIV"}} and found(["042"], 10) == {}
    assert found(["E109"], 10) == {"E109": {"diabetes, uncomplicated"}} and found(["E1090"], 9) == {}


def test_points_spaces_case_and_version_as_text():
    codes = pd.DataFrame({"hadm_id": 5, "icd_code": [" c50.9 ", "428.0", "V42.0"], "icd_version": ["10", "9", "9"]})
    assert elixhauser(codes).loc[5].pipe(lambda row: set(row.index[row])) == {"solid tumour", "congestive heart failure", "renal failure"}


def test_whole_is_the_union_of_its_rows_in_any_order():
    rng = np.random.default_rng(0)
    version = rng.choice([9, 10], 2000)
    prefix = [rng.choice(QUAN_2005[f"icd{v}"].iloc[rng.integers(31)]) for v in version]
    codes = pd.DataFrame({"hadm_id": rng.integers(0, 200, 2000), "icd_version": version,
                          "icd_code": [p + rng.choice(["", "0", "91"]) for p in prefix]})
    whole = elixhauser(codes)
    pd.testing.assert_frame_equal(elixhauser(codes.sample(frac=1, random_state=1)), whole)
    by_hand = {}
    for admission, rows in codes.groupby("hadm_id"):
        for row in rows.itertuples():
            for group in QUAN_2005.itertuples():
                if row.icd_code.startswith(getattr(group, f"icd{row.icd_version}")): by_hand.setdefault(admission, set()).add(group.name)
    assert {a: set(whole.columns[whole.loc[a]]) for a in whole.index} == by_hand


def test_prefixes_are_codes():
    for version, first in ((9, string.digits + "EV"), (10, string.ascii_uppercase)):
        for prefixes in QUAN_2005[f"icd{version}"]:
            assert len(set(prefixes)) == len(prefixes) and all(p[0] in first and p[1:].isdigit() and 3 <= len(p) <= 5 for p in prefixes)


def test_hierarchy_drops_the_lesser_alone():
    codes = pd.DataFrame({"hadm_id": [1, 1, 2], "icd_code": ["4019", "40300", "4019"], "icd_version": 9})
    kept = elixhauser(codes, hierarchy=True)
    assert kept["hypertension, uncomplicated"].tolist() == [False, True] and kept["hypertension, complicated"].tolist() == [True, False]
    assert elixhauser(codes)["hypertension, uncomplicated"].tolist() == [True, True]


def test_no_codes_and_no_groups():
    empty = pd.DataFrame({"hadm_id": pd.Series(dtype=int), "icd_code": pd.Series(dtype=str), "icd_version": pd.Series(dtype=int)})
    assert elixhauser(empty).shape == (0, 31)
    assert flag_table(pd.DataFrame({"hadm_id": [], "comorbidity": []}), pd.Series([3, 1])).sum().sum() == 0


@pytest.mark.parametrize("change, message", [
    ({"icd_code": [42, 43]}, r"codes as text in the column 'icd_code'\. Got .*42.* in row 0\. .*leading zeros"),
    ({"icd_code": ["042", None]}, r"codes as text.*None in row 1"),
    ({"icd_version": [9, 11]}, r"9 or 10 in the column 'icd_version'\. Got .*11.* in row 1 \(1 such rows\)"),
    ({"icd_version": [9, np.nan]}, r"9 or 10 .*nan.* in row 1"),
])
def test_bad_codes(change, message):
    codes = pd.DataFrame({"hadm_id": [1, 2], "icd_code": ["042", "043"], "icd_version": [9, 9]}).assign(**change)
    with pytest.raises(DataError, match=message): elixhauser(codes)


def test_missing_column():
    with pytest.raises(DataError, match="the column 'icd_version' in the table of diagnosis codes"): elixhauser(pd.DataFrame({"hadm_id": [1], "icd_code": ["042"]}))
