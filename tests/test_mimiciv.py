"""MIMIC-IV: the demo against pandas, invented hospitals for every source and every fault."""
import csv
import gzip
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from adbc_driver_postgresql import dbapi as postgresql

from fusion_nb.data import mimiciv
from fusion_nb.data.comorbidity import QUAN_2005
from fusion_nb.data.mimiciv import LABS, TREATMENTS, _stamp, read_flow, read_mimic
from fusion_nb.preprocess import TablePreprocessor
from fusion_nb.schema import DataError

TABLES = ("patients", "admissions", "diagnoses_icd", "prescriptions", "d_labitems", "labevents")


# ---- the demo, as it is

@pytest.fixture(scope="module")
def demo(data_dir):
    return data_dir/"mimic_iv_demo"


@pytest.fixture(scope="module")
def raw(demo):
    return {name: pd.read_csv(demo/"hosp"/f"{name}.csv.gz", low_memory=False) for name in TABLES}


@pytest.fixture(scope="module")
def everyone(demo):
    return read_mimic(demo, icd=None)


def test_counts_of_the_demo(demo, everyone):
    cohort = everyone.cohort
    assert len(cohort) == 275 and cohort.n_groups == 100 and cohort.table["label"].sum() == 15
    assert everyone.flow[["patients", "admissions"]].drop_duplicates().to_numpy().tolist() == [[100, 275]]
    assert cohort.table["image"].isna().all() and not cohort.synthetic and cohort.classes == ("survived", "died in hospital")
    assert read_flow(demo)["patients"].tolist() == [100, 100, 2, 2, 2, 2]
    assert read_flow(demo, icd={9: ("174",), 10: ("C50",)})["patients"].tolist() == [100, 100, 1, 1, 1, 1]  # the other is a man: 175.9


def test_breast_cancer_of_the_demo_has_one_class(demo):
    with pytest.raises(DataError, match=r"two classes of the outcome 'in_hospital_death'.*2 of 'survived'.*icd=None"): read_mimic(demo)


def test_a_race_that_is_no_race_is_counted(everyone):
    unknown = int(everyone.cohort.table["race"].isna().sum())
    assert unknown > 0 and any(note.endswith(f"taken as missing: {unknown}.") for note in everyone.notes)
    assert everyone.flow["step"].str.contains("UNKNOWN is a record").any()


def test_leaks_are_no_inputs(everyone):
    names = {v.name for v in everyone.cohort.variables}
    assert not names & {"discharge_location", "deathtime", "dod", "hospital_expire_flag", "dischtime"}
    assert any("coded at discharge" in note and "leak" in note for note in everyone.notes)
    assert set(everyone.cohort.table.columns) == {"case_id", "group", "label", "image", *names}


def test_demographics(raw, everyone):
    table = raw["admissions"].merge(raw["patients"], on="subject_id").set_index("hadm_id").loc[everyone.cohort.table["case_id"].astype(int)]
    ours = everyone.cohort.table.set_index(table.index)
    assert (ours["age"] == table["anchor_age"] + pd.to_datetime(table["admittime"]).dt.year - table["anchor_year"]).all()
    assert (ours["group"] == table["subject_id"].astype(str)).all() and (ours["gender"] == table["gender"]).all()
    assert (ours["insurance"] == table["insurance"]).all() and ours["marital_status"].isna().sum() == table["marital_status"].isna().sum() == 12
    assert ours["race"].value_counts(dropna=False).to_dict() == {"white": 182, "black": 51, "hispanic": 15, "other": 4, None: 23}
    assert (ours["language"].isna() == (table["language"] == "?")).all()


def test_comorbidities(raw, everyone):
    codes = raw["diagnoses_icd"].astype({"icd_code": str})
    ours = everyone.cohort.table.set_index(everyone.cohort.table["case_id"].astype(int))
    for group in QUAN_2005.itertuples():
        hit = [code.strip().startswith(group.icd9 if version == 9 else group.icd10) for code, version in zip(codes["icd_code"], codes["icd_version"])]
        assert (ours[group.name] == ours.index.isin(codes.loc[hit, "hadm_id"])).all(), group.name


def labs_by_pandas(raw, labs):
    """Mean, min, max by label in blood; events that name no admission by their time, row by row; units by majority."""
    items = raw["d_labitems"].query("fluid == 'Blood'")
    items = items[items["label"].isin(labs)]
    events = raw["labevents"].merge(items[["itemid", "label"]], on="itemid").dropna(subset="valuenum")
    stays = raw["admissions"].assign(begin=pd.to_datetime(raw["admissions"]["admittime"]), end=pd.to_datetime(raw["admissions"]["dischtime"]))
    lost, time = events["hadm_id"].isna(), pd.to_datetime(events["charttime"])
    for i in events.index[lost]:
        fits = stays[(stays["subject_id"] == events.at[i, "subject_id"]) & (stays["begin"] <= time[i]) & (time[i] <= stays["end"])]
        if len(fits): events.at[i, "hadm_id"] = fits.sort_values("begin")["hadm_id"].iloc[-1]
    events["valueuom"] = events["valueuom"].fillna("").str.lower()
    most = events.groupby("itemid")["valueuom"].agg(lambda unit: unit.value_counts().idxmax())
    events = events[events["valueuom"] == events["itemid"].map(most)]
    return events.groupby(["hadm_id", "label"])["valuenum"].agg(["mean", "min", "max"]), lost, events


def test_labs(raw, demo):
    labs = ("Creatinine", "Glucose", "Calcium, Total", "INR(PT)", "Lactate", "Hemoglobin", "MCHC")
    records = read_mimic(demo, icd=None, labs=labs)
    expected, lost, events = labs_by_pandas(raw, labs)
    ours = records.cohort.table.set_index(records.cohort.table["case_id"].astype(float))
    for lab in labs:
        theirs = expected.xs(lab, level="label").reindex(ours.index)
        np.testing.assert_allclose(ours[[f"{lab} {kind}" for kind in ("mean", "min", "max")]], theirs, rtol=1e-12, err_msg=lab)
    named = int((~lost).sum())
    assert any(f"name their admission: {named};" in note for note in records.notes)
    assert any("MCHC (itemid 51249) left out for their unit %" in note for note in records.notes)
    none = ours[[f"{lab} max" for lab in labs]].isna().all(axis=1)
    assert any(f"Admissions with none of the chosen labs: {none.sum()};" in note for note in records.notes)


def test_treatments(raw, everyone):
    ours = everyone.cohort.table.set_index(everyone.cohort.table["case_id"].astype(int))[list(TREATMENTS)]
    drugs = raw["prescriptions"].assign(drug=raw["prescriptions"]["drug"].str.strip().str.lower())
    by_name = {"insulin": ["insulin"], "anticoagulant": ["heparin", "heparin sodium", "warfarin", "enoxaparin sodium", "rivaroxaban", "apixaban"],
               "endocrine therapy": ["tamoxifen citrate"], "opioid": ["morphine sulfate", "hydromorphone (dilaudid)", "fentanyl citrate", "tramadol"]}
    for treatment, names in by_name.items():
        given = drugs.loc[drugs["drug"].isin(names), "hadm_id"].unique()
        assert len(given) and (ours.loc[given, treatment] == 1).all(), treatment
    only_flush = set(drugs.loc[drugs["drug"].str.contains("heparin flush"), "hadm_id"]) - set(
        drugs.loc[drugs["drug"].str.contains("heparin(?! flush)|warfarin|xaban|enoxa|dabiga|argatro|bivali|fonda|dalte"), "hadm_id"])
    assert only_flush and (ours.loc[list(only_flush), "anticoagulant"] == 0).all()
    assert (ours.loc[~ours.index.isin(drugs["hadm_id"])] == 0).all(axis=None)


def test_one_year_mortality(raw, demo):
    cohort = read_mimic(demo, icd=None, outcome="one_year_mortality", labs=()).cohort
    table = raw["admissions"].merge(raw["patients"], on="subject_id").set_index("hadm_id").loc[cohort.table["case_id"].astype(int)]
    days = (pd.to_datetime(table["dod"]) - pd.to_datetime(table["dischtime"]).dt.normalize()).dt.days
    assert cohort.table["label"].tolist() == ((days <= 365) | (table["hospital_expire_flag"] == 1)).astype(int).tolist()
    assert cohort.table["label"].sum() > 15 and any("censored one year after" in note for note in cohort.notes)


def test_families(raw, demo):
    icd = {"heart failure": {9: "428", 10: "I50"}, "sepsis": {9: ("038", "99591", "99592"), 10: ("A40", "A41")}}
    records = read_mimic(demo, icd=icd, outcome="icd_family", labs=())
    codes = raw["diagnoses_icd"].sort_values("seq_num").astype({"icd_code": str})
    first = {}
    for row in codes.itertuples():
        for number, prefixes in enumerate(icd.values()):
            if row.icd_code.startswith(prefixes[row.icd_version]): first.setdefault(str(row.hadm_id), number)
    assert records.cohort.table.set_index("case_id")["label"].to_dict() == first and records.cohort.classes == tuple(icd)
    assert "congestive heart failure" not in records.cohort.table and any("congestive heart failure" in note for note in records.notes)


def test_preprocesses(everyone):
    cohort = everyone.cohort
    matrix = TablePreprocessor(cohort.variables).fit(cohort.table).transform(cohort.table)
    assert len(matrix) == 275 and np.isfinite(matrix).all()


# ---- sources: the same demo by every door

@pytest.fixture(scope="module")
def database(demo, tmp_path_factory):
    path = tmp_path_factory.mktemp("db")/"mimic.duckdb"
    with duckdb.connect(path) as con:
        con.execute("CREATE SCHEMA mimiciv_hosp")
        for name in TABLES: con.execute(f"CREATE TABLE mimiciv_hosp.{name} AS SELECT * FROM read_csv('{demo/'hosp'/name}.csv.gz', sample_size=-1)")
    return path


def test_database_file_and_connection(database, everyone):
    pd.testing.assert_frame_equal(read_mimic(database, icd=None).cohort.table, everyone.cohort.table)
    with duckdb.connect(database, read_only=True) as con:
        pd.testing.assert_frame_equal(read_mimic(con, icd=None).cohort.table, everyone.cohort.table)
        assert con.execute("SELECT 1").fetchone() == (1,)  # it is the user's, and still open


def test_mixed_files_and_odd_folder_names(demo, tmp_path, everyone):
    place = tmp_path/"it's [1] * mix"
    place.mkdir()
    for name, suffix in zip(TABLES, (".csv", ".parquet", ".csv.gz", ".parquet", ".csv", ".parquet")):
        source = demo/"hosp"/f"{name}.csv.gz"
        if suffix == ".csv.gz": shutil.copy(source, place)
        elif suffix == ".csv": (place/f"{name}.csv").write_bytes(gzip.decompress(source.read_bytes()))
        else: duckdb.sql(f"COPY (SELECT * FROM read_csv('{source}', sample_size=-1)) TO '{tmp_path}/{name}.parquet'")
    for path in tmp_path.glob("*.parquet"): shutil.move(path, place)
    pd.testing.assert_frame_equal(read_mimic(place, icd=None).cohort.table, everyone.cohort.table)


def test_threads_and_memory_change_no_bit(demo, everyone):
    pd.testing.assert_frame_equal(read_mimic(demo, icd=None, threads=1, memory_limit="200MB").cohort.table, everyone.cohort.table, check_exact=True)


# ---- invented hospitals: one fault each

STAY = {"race": "WHITE", "insurance": "Other", "language": "ENGLISH", "marital_status": None, "admission_type": "URGENT", "admission_location": "PACU"}


def hospital():
    """Four admissions of three patients, all with breast cancer; the second died."""
    return {
        "patients": pd.DataFrame({"subject_id": [1, 2, 3], "gender": ["F", "F", "M"], "anchor_age": 60, "anchor_year": 2150, "dod": None}),
        "admissions": pd.DataFrame([{"subject_id": s, "hadm_id": h, "admittime": f"2150-0{m}-01 00:00:00", "dischtime": f"2150-0{m}-09 00:00:00",
                                     "hospital_expire_flag": died, **STAY} for s, h, m, died in [(1, 10, 1, 0), (1, 11, 3, 0), (2, 20, 1, 1), (3, 30, 1, 0)]]),
        "diagnoses_icd": pd.DataFrame({"subject_id": [1, 1, 2, 3], "hadm_id": [10, 11, 20, 30], "seq_num": 1, "icd_code": "C509", "icd_version": 10}),
        "prescriptions": pd.DataFrame({"hadm_id": [10], "drug": ["Letrozole"], "route": ["PO"]}),
        "d_labitems": pd.DataFrame({"itemid": [1, 2], "label": ["Creatinine", "Creatinine"], "fluid": "Blood"}),
        "labevents": pd.DataFrame({"subject_id": [1, 1, 2, 2], "hadm_id": [10, 11, 20, 20], "itemid": 1, "charttime": "2150-01-02 00:00:00",
                                   "valuenum": [1.0, 2.0, 3.0, 4.0], "valueuom": "mg/dL"}),
    }


def write(tables, folder):
    (folder/"hosp").mkdir(parents=True)
    for name, table in tables.items(): table.to_csv(folder/"hosp"/f"{name}.csv.gz", index=False)
    return folder


def read(folder, **kwargs):
    return read_mimic(folder, **{"labs": ("Creatinine",), **kwargs})


@pytest.fixture
def tables():
    return hospital()


def test_patient_without_labs_is_kept_and_counted(tables, tmp_path):
    records = read(write(tables, tmp_path))
    assert np.isnan(records.cohort.table.set_index("case_id").loc["30", "Creatinine mean"])
    assert "Admissions with none of the chosen labs: 1; patients with none at any of theirs: 1." in records.notes


def test_no_lab_rows_at_all(tables, tmp_path):
    tables["labevents"] = tables["labevents"].iloc[:0]
    records = read(write(tables, tmp_path))
    assert records.cohort.table["Creatinine max"].isna().all() and records.cohort.table["Creatinine max"].dtype == float
    assert "Admissions with none of the chosen labs: 4; patients with none at any of theirs: 3." in records.notes


@pytest.mark.parametrize("table", TABLES)
def test_missing_table(tables, tmp_path, table):
    folder = write(tables, tmp_path)
    (folder/"hosp"/f"{table}.csv.gz").unlink()
    with pytest.raises(DataError, match=rf"the table '{table}' in 'hosp'.*no such file"): read(folder)


@pytest.mark.parametrize("table, column", [("patients", "dod"), ("admissions", "race"), ("diagnoses_icd", "icd_version"), ("labevents", "valueuom")])
def test_missing_column(tables, tmp_path, table, column):
    folder = write({**tables, table: tables[table].drop(columns=column)}, tmp_path)
    with pytest.raises(DataError, match=rf"the column '{column}' in the table '{table}'\. Got columns "): read(folder)


@pytest.mark.parametrize("table", ["admissions", "labevents"])
def test_truncated_gzip(tables, tmp_path, table):
    folder = write({**tables, "labevents": pd.concat([tables["labevents"]] * 5000)}, tmp_path)
    path = folder/"hosp"/f"{table}.csv.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=rf"readable table '{table}'.*GZIP.*cut short, copy or download it again"): read(folder)


def test_gzip_cut_within_its_header_line(tables, tmp_path):
    path = write(tables, tmp_path)/"hosp"/"labevents.csv.gz"
    path.write_bytes(path.read_bytes()[:25])
    with pytest.raises(DataError, match="column names in the first line of 'labevents.csv.gz'.*cut short"): read(tmp_path)


def test_file_that_is_no_gzip(tables, tmp_path):
    (write(tables, tmp_path)/"hosp"/"labevents.csv.gz").write_text("<html>not found</html>")
    with pytest.raises(DataError, match="labevents"): read(tmp_path)


def test_row_cut_short_and_text_for_a_number(tables, tmp_path):
    folder = write(tables, tmp_path)
    path = folder/"hosp"/"labevents.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress((text + "1,10,1\n").encode()))
    with pytest.raises(DataError, match="readable table 'labevents'.*CSV Error on Line: 6"): read(folder)
    path.write_bytes(gzip.compress(text.replace("3.0", "three").encode()))
    with pytest.raises(DataError, match="readable table 'labevents'.*'three'"): read(folder)


@pytest.mark.parametrize("more, by_duckdb", [("", 0), ('"2","20","1","2150-01-02","9","mg/dL","",\n', 1)], ids=["quotes", "column too many"])
def test_gzipped_lab_events_read_as_plain_ones(tables, tmp_path, monkeypatch, more, by_duckdb):
    """Quoted numbers and empty values, line breaks and quotes within quotes, over several parts; a comma too many at the end, which only DuckDB reads, and then all of it."""
    monkeypatch.setattr(mimiciv, "_MEBIBYTE", 1 << 14)
    odd = tables["labevents"].assign(hadm_id=[10, 11, None, 20], valuenum=[.1, 2.5, None, 1e-3], comments=['a "b"\nc, d', " ", None, "x\r\n" * 400])
    text = pd.concat([odd.astype({"hadm_id": "Int64"})] * 1500).to_csv(index=False, quoting=csv.QUOTE_ALL) + more
    run, sums = mimiciv._run, []
    monkeypatch.setattr(mimiciv, "_run", lambda con, sql, *rest: sums.append("INTO sums" in sql) or run(con, sql, *rest))
    cohorts = []
    for name, data in (("labevents.csv", text.encode()), ("labevents.csv.gz", gzip.compress(text.encode()))):
        place, before = write(tables, tmp_path/name)/"hosp", sum(sums)
        (place/"labevents.csv.gz").unlink()
        (place/name).write_bytes(data)
        cohorts.append(read(place).cohort.table)
    assert len(data) < (2 << 20) < len(text) and cohorts[0]["Creatinine max"].dropna().tolist() == [.1, 2.5, 9 if more else 1e-3]
    pd.testing.assert_frame_equal(*cohorts, check_exact=True)
    assert sum(sums) - before == by_duckdb


@pytest.mark.parametrize("units, left_out", [(["mg/dL", "mg/dL", "mg/dL", "umol/L"], 1), (["mg/dL", "MG/DL", " mg / dl", "mg/dL"], 0), (["mg/dL", "mg/dL", "mg/dL", None], 1)])
def test_units_of_one_item(tables, tmp_path, units, left_out):
    tables["labevents"]["valueuom"] = units
    records = read(write(tables, tmp_path))
    said = [note for note in records.notes if "left out for their unit" in note]
    assert len(said) == left_out
    assert records.cohort.table.set_index("case_id").loc["20", "Creatinine max"] == (3 if left_out else 4)
    if left_out: assert said[0].startswith(f"Values of Creatinine (itemid 1) left out for their unit {units[3].lower() if units[3] else '(none)'}: 1; ")


def test_units_without_a_majority(tables, tmp_path):
    tables["labevents"]["valueuom"] = ["mg/dL", "mg/dL", "umol/L", "umol/L"]
    with pytest.raises(DataError, match=r"one unit for most values of the lab 'Creatinine' \(itemid 1\)\. Got mg/dl 2, umol/l 2\. Convert"): read(write(tables, tmp_path))


def test_items_of_one_label_join_by_unit(tables, tmp_path):
    tables["labevents"] = tables["labevents"].assign(itemid=[1, 2, 1, 1])
    assert read(write(tables, tmp_path/"same")).cohort.table["Creatinine mean"].tolist()[:3] == [1, 2, 3.5]
    tables["labevents"].loc[1, "valueuom"] = "umol/L"
    records = read(write(tables, tmp_path/"other"))
    assert np.isnan(records.cohort.table["Creatinine mean"][1]) and any("itemid 2) left out for their unit umol/l: 1" in n for n in records.notes)


def test_events_without_an_admission(tables, tmp_path):
    """During the first, on the last second of it, between the two, in the overlap of two, and of somebody else's admission."""
    tables["admissions"].loc[3, ["subject_id", "admittime", "dischtime"]] = [1, "2150-03-05 00:00:00", "2150-03-20 00:00:00"]
    tables["labevents"] = pd.DataFrame({"subject_id": 1, "hadm_id": [None, None, None, None, 20], "itemid": 1, "valueuom": "mg/dL", "valuenum": [1.0, 2.0, 4.0, 8.0, 16.0],
                                        "charttime": ["2150-01-03", "2150-01-09 00:00:00", "2150-02-01", "2150-03-06", "2150-01-03"]})
    records = read(write(tables, tmp_path))
    table = records.cohort.table.set_index("case_id")["Creatinine max"]
    assert table["10"] == 2 and np.isnan(table["11"]) and table["30"] == 8 and np.isnan(table["20"])
    assert any("that name none but were taken during one, and count there: 3; taken outside every admission, left out: 1." in n for n in records.notes)
    assert "Values of the chosen labs that name an admission which is not the patient's, left out: 1." in records.notes


@pytest.mark.parametrize("table, key", [("admissions", "hadm_id"), ("patients", "subject_id")])
def test_duplicates(tables, tmp_path, table, key):
    folder = write({**tables, table: pd.concat([tables[table], tables[table].iloc[1:2]])}, tmp_path)
    with pytest.raises(DataError, match=rf"one row per {key} in the table '{table}'\. Got 2 rows that share one, the first {tables[table][key][1]}\."): read(folder)


def test_incomplete_demographics_and_a_stranger_are_counted(tables, tmp_path):
    tables["patients"].loc[2, "gender"] = None
    tables["diagnoses_icd"] = pd.concat([tables["diagnoses_icd"], tables["diagnoses_icd"].assign(hadm_id=99).iloc[:1]])
    tables["patients"] = pd.concat([tables["patients"], tables["patients"].assign(subject_id=7).iloc[:1]])
    records = read(write(tables, tmp_path))
    assert records.flow["patients"].tolist() == [4, 3, 3, 3, 2, 2] and records.flow["admissions"].tolist() == [4, 4, 4, 4, 3, 3]
    assert "Admissions of the table 'diagnoses_icd' that are not in 'admissions', left out: 1." in records.notes


def test_folder_without_hosp(tmp_path):
    (tmp_path/"notes.txt").touch()
    with pytest.raises(DataError, match=r"a folder 'hosp' with MIMIC-IV's tables in .*Got notes\.txt\. Give the folder that holds hosp"): read(tmp_path)
    with pytest.raises(DataError, match="'nowhere', which does not exist"): read(tmp_path/"nowhere")


def test_nothing_left_after_the_filter(tables, tmp_path):
    with pytest.raises(DataError, match=r"at least one admission after the filter\. Got none .*ICD-9 140 at some admission: 0, 0\)\. Check the ICD prefixes"):
        read(write(tables, tmp_path), icd={9: ("140",)})


@pytest.mark.parametrize("icd", [{}, "C50", {8: ("174",)}, {9: (174,)}, {10: ()}, {"a": {10: ("",)}}])
def test_bad_filters(tables, tmp_path, icd):
    with pytest.raises(DataError, match=r"ICD.*Write \{9: \('174',\), 10: \('C50',\)\}"): read(write(tables, tmp_path), icd=icd)


def test_families_without_a_name_or_an_admission(tables, tmp_path):
    folder, heart = write(tables, tmp_path), {9: "4280", 10: "I50"}
    with pytest.raises(DataError, match="a name for every family of ICD codes.*Name all of them, or none"): read(folder, icd={"": {9: "174"}, "heart": heart}, outcome="icd_family")
    with pytest.raises(DataError, match="an admission of every family.*none of heart, nobody .*leave them out"):
        read(folder, icd={"breast": mimiciv.BREAST_CANCER, "heart": heart, "nobody": {9: "99999"}}, outcome="icd_family")


def test_expire_flag_of_another_value(tables, tmp_path):
    tables["admissions"].loc[0, "hospital_expire_flag"] = 2
    with pytest.raises(DataError, match="0 or 1 in hospital_expire_flag .* Got 2 for hadm_id 10"): read(write(tables, tmp_path))


def test_unknown_names(tables, tmp_path):
    folder = write(tables, tmp_path)
    with pytest.raises(DataError, match="a known outcome.*one_year_mortality"): read(folder, outcome="one_year_mortalty")
    with pytest.raises(DataError, match="a known lab in d_labitems.*'Hemoglobin'"): read_mimic(folder)
    with pytest.raises(DataError, match="at least two named families"): read(folder, outcome="icd_family")
    with pytest.raises(DataError, match="one row per itemid in the labs asked for"): read(folder, labs=("Creatinine", "Creatinine|Blood"))


def test_two_files_of_one_table(tables, tmp_path):
    tables["patients"].to_csv(write(tables, tmp_path)/"hosp"/"patients.csv", index=False)
    with pytest.raises(DataError, match=r"one file of the table 'patients'\. Got patients.csv.gz and patients.csv"): read(tmp_path)


def test_file_that_is_no_database(tmp_path):
    (tmp_path/"mimic.duckdb").write_text("hello" * 1000)
    with pytest.raises(DataError, match="a database of DuckDB in 'mimic.duckdb'"): read(tmp_path/"mimic.duckdb")


def test_database_without_the_tables(tmp_path):
    with duckdb.connect(tmp_path/"other.duckdb") as con: con.execute("CREATE TABLE patient (a INTEGER)")
    with pytest.raises(DataError, match=r"the table 'patients' in the schema mimiciv_hosp .*Did you mean 'patient'"): read(tmp_path/"other.duckdb")


# ---- a server of PostgreSQL

@pytest.fixture(scope="module")
def server():
    """The address of a server of our own, without a database's name; it is gone with the tests."""
    programs = next((Path(found).parent for found in [shutil.which("initdb"), *Path("/usr/lib/postgresql").glob("*/bin/initdb")] if found), None)
    if not programs: pytest.skip("no PostgreSQL on this machine")
    root = os.geteuid() == 0  # as which PostgreSQL refuses to run
    if root and subprocess.run(["id", "postgres"], capture_output=True).returncode: pytest.skip("root, and no user postgres")
    with tempfile.TemporaryDirectory(prefix="pg-") as folder, socket.socket() as free:
        if root: shutil.chown(folder, "postgres")
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()

        def run(program, *args): subprocess.run([*(["runuser", "-u", "postgres", "--"] if root else []), programs / program, "-D", f"{folder}/data", *args], check=True, stdout=subprocess.DEVNULL)
        Path(folder, "password").write_text("secret")
        run("initdb", "--auth=scram-sha-256", "--username=postgres", f"--pwfile={folder}/password", "--locale=C")
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1", "start")
        yield f"postgresql://postgres:secret@127.0.0.1:{port}"
        run("pg_ctl", "-m", "immediate", "stop")


TYPES = {"BIGINT": "INTEGER", "INTEGER": "SMALLINT", "DOUBLE": "DOUBLE PRECISION", "TIMESTAMP": "TIMESTAMP(0)", "VARCHAR": "VARCHAR(255)"}  # as the community's scripts have them


def fill(server, name, tables, *, schema="mimiciv_hosp"):
    """The address of a new database with the tables of the community's scripts; codes are padded with spaces there."""
    with postgresql.connect(f"{server}/postgres", autocommit=True) as con, con.cursor() as cursor: cursor.execute(f"CREATE DATABASE {name}")
    with postgresql.connect(f"{server}/{name}", autocommit=True) as con, con.cursor() as cursor:
        cursor.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
        for table, rows in tables.items():
            types = {column: "CHAR(7)" if column == "icd_code" else TYPES.get(kind, kind) for column, kind in mimiciv._TABLES[table].items() if column in rows}
            cursor.execute(f"CREATE TABLE {schema}.{table} (comments TEXT, {', '.join(f'{c} {kind}' for c, kind in types.items())})")
            cursor.adbc_ingest("raw", pa.table({c: pa.array([None if pd.isna(x) else str(x) for x in rows[c]], pa.string()) for c in types}), mode="replace")
            whole = ("INTEGER", "SMALLINT")  # 5.0 where a column of whole numbers has gaps
            cursor.execute(f"INSERT INTO {schema}.{table} SELECT 'none', {', '.join(f'{c}::numeric::{kind}' if kind in whole else f'{c}::{kind}' for c, kind in types.items())} FROM raw")
    return f"{server}/{name}"


def test_a_server_gives_what_the_files_give(server, raw, demo, everyone):
    address = fill(server, "demo", raw)
    records = read_mimic(address, icd=None)
    pd.testing.assert_frame_equal(records.cohort.table, everyone.cohort.table, check_exact=True)
    assert records.notes == everyone.notes and records.flow.equals(everyone.flow)
    assert read_flow(address).equals(read_flow(demo))


def test_a_server_with_plain_tables(server, tables, tmp_path):
    pd.testing.assert_frame_equal(read(fill(server, "plain", tables, schema="public")).cohort.table, read(write(tables, tmp_path)).cohort.table)


def test_a_server_that_lacks_something(server, tables):
    without = {name: table for name, table in tables.items() if name != "labevents"}
    with pytest.raises(DataError, match="the table 'labevents' in the schema mimiciv_hosp .*no such table"): read(fill(server, "no_labs", without))
    with pytest.raises(DataError, match="the column 'race' in the table 'admissions'.*columns comments, subject_id"):
        read(fill(server, "no_race", {**tables, "admissions": tables["admissions"].drop(columns="race")}))
    address = fill(server, "broken", tables)
    with postgresql.connect(address, autocommit=True) as con, con.cursor() as cursor:
        cursor.execute("ALTER TABLE mimiciv_hosp.patients RENAME TO p")
        cursor.execute("CREATE VIEW mimiciv_hosp.patients AS SELECT subject_id, gender, anchor_age, anchor_year / (anchor_year - anchor_year) AS anchor_year, dod FROM mimiciv_hosp.p")
        cursor.execute("CREATE ROLE guest LOGIN PASSWORD 'secret'")
    with pytest.raises(DataError, match="a readable table 'patients'.*division by zero.*Ask whoever runs the server"): read(address)
    with pytest.raises(DataError, match="a readable table 'patients'.*permission denied for schema mimiciv_hosp"): read(address.replace("postgres:secret", "guest:secret"))


def test_a_server_with_a_materialized_view(server, tables, tmp_path):
    address = fill(server, "views", tables)
    with postgresql.connect(address, autocommit=True) as con, con.cursor() as cursor:
        cursor.execute("ALTER TABLE mimiciv_hosp.labevents RENAME TO l")
        cursor.execute("CREATE MATERIALIZED VIEW mimiciv_hosp.labevents AS SELECT * FROM mimiciv_hosp.l")
    pd.testing.assert_frame_equal(read(address).cohort.table, read(write(tables, tmp_path)).cohort.table)


@pytest.mark.parametrize("address, said", [
    ("{}/nowhere", 'FATAL: *database "nowhere" does not exist'), ("{}/postgres?user=me", 'FATAL: *password authentication failed for user "me"'), ("postgresql://me:secret@localhost:1/mimic", "Connection refused"), ("postgresql://me:secret@:x/mimic", "none at the address given")])
def test_no_server_to_be_had_and_the_password_is_not_told(request, address, said):
    if "{}" in address: address = address.format(request.getfixturevalue("server"))
    with pytest.raises(DataError, match=f"a PostgreSQL server that answers. Got {said}") as error: read(address)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("address", ["host=h dbname=m password=secret", "postgresql+psycopg2://me:secret@host/m", "POSTGRESQL://me:secret@host", " postgresql://me:secret@host"])
def test_an_address_that_is_not_understood_is_not_repeated(address):
    with pytest.raises(DataError, match="a postgresql:// address.*an address of another kind") as error: read(address)
    assert "secret" not in str(error.value)


# ---- the cache

def test_cache_is_read_and_keyed_by_the_inputs(tables, tmp_path):
    folder, cache = write(tables, tmp_path/"a"), tmp_path/"cache"
    first = read(folder, cache=cache)
    kept = next(cache.glob("*.parquet"))
    changed = kept.stat().st_mtime_ns
    second = read(folder, cache=cache)
    pd.testing.assert_frame_equal(second.cohort.table, first.cohort.table)
    pd.testing.assert_frame_equal(second.flow, first.flow)
    assert second.notes == first.notes and second.cohort.variables == first.cohort.variables and kept.stat().st_mtime_ns == changed
    pd.testing.assert_frame_equal(first.cohort.table, read(folder).cohort.table)
    tables["labevents"].loc[0, "valuenum"] = 7.0
    tables["labevents"].to_csv(folder/"hosp"/"labevents.csv.gz", index=False)
    assert read(folder, cache=cache).cohort.table["Creatinine mean"][0] == 7 and len(list(cache.glob("*.parquet"))) == 2
    read(folder, cache=cache, outcome="in_hospital_death", icd=None)
    assert len(list(cache.glob("*.parquet"))) == 3 and not list(cache.glob(".duckdb-*"))


def test_stamp_sees_head_tail_size_and_time(tmp_path):
    path = tmp_path/"file"
    path.write_bytes(bytes(3 << 20))
    stamps = [_stamp(path)]
    for where in (0, (3 << 20) - 1):
        with path.open("r+b") as file:
            file.seek(where)
            file.write(b"x")
        stamps.append(_stamp(path))
    assert len({tuple(s) for s in stamps}) == 3 and len({s[3] for s in stamps}) == 3


def test_synthetic_marker(tables, tmp_path):
    (write(tables, tmp_path)/"synthetic.json").write_text("{}")
    assert read(tmp_path).cohort.synthetic and read(tmp_path, cache=tmp_path/"c").cohort.synthetic


def test_default_labs_are_in_the_demo(raw):
    assert set(LABS) <= set(raw["d_labitems"]["label"])
