"""Expression files, barcodes and survival tables: every way round, every compression, every trap, and TCGA-BRCA as it is."""
import gzip
import zipfile

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fusion_nb.data.omics import omics_cohort, patient_of, read_expression, read_survival, read_tcga_brca, site_of
from fusion_nb.expression import ExpressionPreprocessor
from fusion_nb.schema import DataError, Variable
from fusion_nb.splits import check_splits, kfold, site_kfold
from fusion_nb.survival import harrell_c

BARCODES = [f"TCGA-{site}-A{i:03d}-01A-11R" for i, site in enumerate(["3C", "E2", "BH", "A2"])]
PATIENTS = ["TCGA-3C-A000", "TCGA-E2-A001", "TCGA-BH-A002", "TCGA-A2-A003"]


@pytest.fixture
def matrix() -> pd.DataFrame:
    """Four samples of three genes."""
    return pd.DataFrame(np.arange(12).reshape(4, 3) / 4, index=BARCODES, columns=["TP53", "ESR1", "XIST"])


def written(matrix, path):
    matrix.to_csv(path, sep="\t" if ".tsv" in path.name or ".txt" in path.name else ",", index_label="id")
    return path


# ---- barcodes

@pytest.mark.parametrize("barcode", ["TCGA-3C-A000", "TCGA-3C-A000-01A-11R-A41B-07", "TCGA-3C-A000-01Z-00-DX1.F6E9A5DF-D8FB.svs", " tcga.3c.a000.01A "])
def test_barcodes_of_patients_samples_and_slides(barcode):
    assert patient_of([barcode]).tolist() == ["TCGA-3C-A000"] and site_of([barcode]).tolist() == ["3C"]


def test_the_index_of_a_series_stays():
    series = pd.Series(BARCODES, index=list("dcba"))
    assert patient_of(series).to_dict() == dict(zip("dcba", PATIENTS)) and patient_of(pd.Index(BARCODES)).tolist() == PATIENTS
    assert patient_of([]).tolist() == []


@pytest.mark.parametrize("bad", ["TCGA-3C-A00", "TCGA-3C-A0000", "TCGA-3C", "3C-A000", "TCGA_3C_A000", "", None, np.nan, 7])
def test_what_is_no_barcode_is_counted_and_refused(bad):
    with pytest.raises(DataError, match="TCGA barcodes, such as.*at position 4, 2 of 6 that are none"):
        patient_of([*BARCODES, bad, bad])


# ---- expression

@pytest.mark.parametrize("name", ["m.csv", "m.tsv", "m.txt", "m.csv.gz", "m.tsv.gz", "m.csv.zip", "m.parquet"])
@pytest.mark.parametrize("genes", ["columns", "rows"])
def test_every_file_both_ways_round(matrix, tmp_path, name, genes):
    file = matrix if genes == "columns" else matrix.T
    if name.endswith("parquet"):
        file.to_parquet(tmp_path / name)
    else:
        written(file, tmp_path / name)
    got = read_expression(tmp_path / name, genes=genes)
    pd.testing.assert_frame_equal(got, matrix.set_axis(pd.Index(PATIENTS, name="patient")).astype(np.float32))
    assert got.attrs["notes"] == ()


def test_r_writes_one_name_less_and_a_byte_order_mark_is_no_name(matrix, tmp_path):
    lines = written(matrix, tmp_path / "m.tsv").read_text().splitlines()
    (tmp_path / "r.tsv").write_text("\n".join([lines[0].removeprefix("id\t"), *lines[1:]]) + "\n")
    (tmp_path / "bom.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    want = read_expression(tmp_path / "m.tsv")
    pd.testing.assert_frame_equal(read_expression(tmp_path / "r.tsv"), want)
    pd.testing.assert_frame_equal(read_expression(tmp_path / "bom.tsv", id_column="id"), want)


def test_ids_of_other_projects_stay_and_the_id_column_is_named(matrix, tmp_path):
    other = matrix.set_axis(["C3L-1", "C3L-2", "C3N-1", "007"]).reset_index(names="case")[["TP53", "case", "ESR1", "XIST"]]
    other.to_csv(tmp_path / "m.csv", index=False)
    assert read_expression(tmp_path / "m.csv", id_column="case").index.tolist() == ["C3L-1", "C3L-2", "C3N-1", "007"]
    with pytest.raises(DataError, match="a known column of m.csv.*'cases'.*Did you mean 'case'"):
        read_expression(tmp_path / "m.csv", id_column="cases")


def test_genes_by_prefix_or_suffix_and_the_rest_is_counted(matrix, tmp_path):
    wide = matrix.add_suffix("_rnaseq").join(matrix.iloc[:, :2].add_suffix("_cnv")).assign(age=50, city="Rome")
    got = read_expression(written(wide, tmp_path / "m.csv"), suffix="_rnaseq")
    assert got.columns.tolist() == ["TP53", "ESR1", "XIST"]
    assert got.attrs["notes"] == ("4 columns that are no genes left out: TP53_cnv, ESR1_cnv, age, city.",)
    assert read_expression(tmp_path / "m.csv", suffix="_cnv").shape == (4, 2)  # copy number
    assert read_expression(written(matrix.add_prefix("rna_"), tmp_path / "p.csv"), prefix="rna_").columns.tolist() == ["TP53", "ESR1", "XIST"]
    with pytest.raises(DataError, match=r"genes named rna_\.\.\.\. Got 3 names, such as TP53, ESR1, XIST"):
        read_expression(written(matrix, tmp_path / "q.csv"), prefix="rna_")


def test_columns_beside_barcodes_describe_genes(matrix, tmp_path):
    tall = matrix.T.assign(Entrez=[7157, 2099, 7503], kind="protein_coding")
    got = read_expression(written(tall, tmp_path / "m.tsv"), genes="rows")
    assert got.index.tolist() == PATIENTS and got.attrs["notes"] == ("2 columns that are no barcodes left out: Entrez, kind.",)


def test_the_wrong_way_round(matrix, tmp_path):
    with pytest.raises(DataError, match="genes as rows.*'TCGA-3C-A000-01A-11R'.*genes='columns'"):
        read_expression(written(matrix, tmp_path / "m.csv"), genes="rows")
    with pytest.raises(DataError, match="genes as columns.*genes='rows'"):
        read_expression(written(matrix.T, tmp_path / "t.csv"))
    with pytest.raises(DataError, match="known place of the genes.*Did you mean 'rows'"):
        read_expression(tmp_path / "m.csv", genes="row")


def test_two_samples_of_a_patient(matrix, tmp_path):
    normal = matrix.iloc[:1].set_axis(["TCGA-3C-A000-11A-11R"]) + 100
    path = written(pd.concat([matrix, normal]), tmp_path / "m.csv")
    with pytest.raises(DataError, match=r"each patient once. Got 1 of 4 patients more than once, the first 'TCGA-3C-A000' 2 times.*samples=\('01',\)"):
        read_expression(path)
    tumours = read_expression(path, samples=("01",))
    assert tumours.loc["TCGA-3C-A000", "TP53"] == 0 and tumours.attrs["notes"] == ("1 of 5 samples left out, of other types than 01.",)
    mean = read_expression(path, duplicates="mean")
    assert mean.loc["TCGA-3C-A000", "TP53"] == 50
    assert mean.attrs["notes"] == ("1 of 5 samples are of normal tissue (types 10 to 19): name the types to keep in `samples`.",
                                   "1 of 4 patients more than once: their mean was taken.")
    assert read_expression(path, duplicates="first").loc["TCGA-3C-A000", "TP53"] == 0
    with pytest.raises(DataError, match="samples of type 06. Got types 01, 11"):
        read_expression(path, samples=("06",))


@pytest.mark.parametrize("genes", ["columns", "rows"])
def test_a_gene_that_is_there_twice(matrix, tmp_path, genes):
    twice = pd.concat([matrix, matrix[["TP53"]] + 4], axis=1)
    path = written(twice if genes == "columns" else twice.T, tmp_path / "m.csv")
    with pytest.raises(DataError, match="each gene once. Got 1 of 3 genes more than once, the first 'TP53' 2 times.*duplicates='mean' or 'first'"):
        read_expression(path, genes=genes)
    mean = read_expression(path, genes=genes, duplicates="mean")
    assert mean.columns.tolist() == ["TP53", "ESR1", "XIST"] and np.allclose(mean["TP53"], matrix["TP53"] + 2) and (mean.dtypes == "float32").all()
    assert np.allclose(read_expression(path, genes=genes, duplicates="first"), matrix)
    assert mean.attrs["notes"] == ("1 of 3 genes more than once: their mean was taken.",)


def test_missing_values_are_counted_and_a_patient_without_any_stays(matrix, tmp_path):
    matrix = matrix.astype(object)
    matrix.iloc[0, 0], matrix.iloc[2, 0], matrix.iloc[3] = "NA", None, ""
    got = read_expression(written(matrix.rename(columns={"XIST": "1-Mar"}), tmp_path / "m.csv"))
    assert got.isna().to_numpy().sum() == 5
    assert got.attrs["notes"] == ("1 of 4 patients have no value at all, the first TCGA-A2-A003.",
                                  "2 single values are missing, of 1 genes in 2 patients.",
                                  "1 genes have names that look like dates, as a spreadsheet makes them of MARCH1 and SEPT2: 1-Mar.")


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_text_infinity_and_a_row_cut_short_are_named(matrix, tmp_path, suffix):
    text = matrix.astype(object)
    text.iloc[2, 1] = "high"
    with pytest.raises(DataError, match="numbers in a matrix.*'high' in m.csv.*line 4, column 'ESR1'"):
        read_expression(written(text, tmp_path / f"m{suffix}"))
    text.iloc[2, 1] = np.inf
    with pytest.raises(DataError, match="finite values.*inf of gene 'ESR1' in 'TCGA-BH-A002', 1 such"):
        read_expression(written(text, tmp_path / f"i{suffix}"))
    lines = written(matrix, tmp_path / "whole.csv").read_text()[:-9]
    (gzip.open if suffix.endswith("gz") else open)(tmp_path / f"cut{suffix}", "wt").write(lines)
    with pytest.raises(DataError, match="4 cells in every row.*line 5.*copied again"):
        read_expression(tmp_path / f"cut{suffix}")


def test_files_that_are_none(matrix, tmp_path):
    whole = written(matrix, tmp_path / "m.csv.gz").read_bytes()
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-12])
    (tmp_path / "no.csv.gz").write_bytes(b"id,TP53\n")
    (tmp_path / "no.csv.zip").write_bytes(b"id,TP53\n")
    (tmp_path / "no.parquet").write_bytes(b"id,TP53\n")
    (tmp_path / "latin.csv").write_bytes("id,Größe\na,1\n".encode("latin-1"))
    for name in ("cut.csv.gz", "no.csv.gz", "no.csv.zip", "no.parquet", "latin.csv"):
        with pytest.raises(DataError, match=f"a table that can be read in {name}|cells in every row"):
            read_expression(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        archive.writestr("a.csv", "id,TP53\n")
        archive.writestr("b.csv", "id,TP53\n")
    (tmp_path / "names.csv").write_text("id,TP53\n")
    (tmp_path / "m.xlsx").write_bytes(b"")
    for name, message in (("two.csv.zip", "one table in two.csv.zip. Got 2 files"), ("names.csv", "a row of names and at least one of values"),
                          ("m.xlsx", "a table as .csv, .tsv"), ("nowhere.csv", "no file 'nowhere.csv'")):
        with pytest.raises(DataError, match=message):
            read_expression(tmp_path / name)


def test_text_in_parquet_and_a_row_without_id(matrix, tmp_path):
    matrix.assign(city="Rome").to_parquet(tmp_path / "m.parquet")
    with pytest.raises(DataError, match="numbers in a matrix of expression in m.parquet.*'Rome'"):
        read_expression(tmp_path / "m.parquet")
    written(matrix.set_axis([*BARCODES[:3], None]), tmp_path / "m.csv")
    with pytest.raises(DataError, match="an id in every row|TCGA barcodes"):
        read_expression(tmp_path / "m.csv")


def test_a_matrix_of_full_width(tmp_path):
    row = "\t".join(map(str, range(12778)))
    (tmp_path / "m.tsv").write_text("id\t" + "\t".join(f"G{i}" for i in range(12778)) + "\n" + "".join(f"P{i}\t{row}\n" for i in range(40)))
    got = read_expression(tmp_path / "m.tsv")
    assert got.shape == (40, 12778) and (got.to_numpy() == np.arange(12778, dtype=np.float32)).all()


# ---- survival

@pytest.fixture
def followed() -> pd.DataFrame:
    """Forty patients, a quarter of them dead."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({"patient": [f"P{i}" for i in range(40)], "months": rng.uniform(1, 90, 40).round(2), "dead": np.arange(40) % 4 == 0, "age": 60})


CODINGS = [("dead", lambda dead: dead.astype(int), "event"), ("dead", lambda dead: dead, "event"), ("status", lambda dead: dead.astype(float), "event"),
           ("status", lambda dead: dead.map({True: "1", False: "0"}), "event"), ("censorship", lambda dead: 1 - dead, "censored"),
           ("censored", lambda dead: ~dead, "censored"), ("vital_status", lambda dead: dead.map({True: "Dead", False: "Alive"}), {"Dead": 1, "Alive": 0}),
           ("OS_STATUS", lambda dead: dead.map({True: "1:DECEASED", False: "0:LIVING"}), {"1:DECEASED": 1, "0:LIVING": 0}),
           ("state", lambda dead: dead + 1, {2: 1, 1: 0})]


@pytest.mark.parametrize("name, write, coded", CODINGS)
def test_every_coding_gives_the_same_events(followed, name, write, coded):
    table = followed.rename(columns={"dead": name}).assign(**{name: write(followed["dead"])})
    got = read_survival(table, time="months", event=name, coded=coded)
    assert got["event"].tolist() == followed["dead"].astype(int).tolist() and got["time"].tolist() == followed["months"].tolist()
    assert list(got.columns) == ["patient", "time", "event", "age"] and got.attrs["notes"] == ()


@pytest.mark.parametrize("name, coded, message", [
    ("censorship", "event", "agrees with the name 'censorship', after which 1 is censored. Got one by which 1 is an event"),
    ("is_censored", "event", "after which 1 is censored"), ("Censor", {1: 1, 0: 0}, "after which 1 is censored"), ("alive", "event", "after which 1 is censored"),
    ("death", "censored", "agrees with the name 'death', after which 1 is an event"), ("event_free", "event", "after which 1 is censored"),
    ("vital_status", {"Dead": 0, "Alive": 1}, "1 for the values of coded that are events.*0 for 'Dead'"),
    ("vital_status", {"LIVING": 1, "DECEASED": 1}, "1 for 'LIVING'"),
    ("censorship", None, "coded, which says what the column 'censorship' means. Got nothing.*coded='event' if 1 is an event"),
    ("status", "events", "known way to code events.*Did you mean 'event'"), ("status", {"Dead": "yes"}, "1 .event. or 0 .censored. for each value"), ("status", {}, "for each value")])
def test_a_coding_that_is_missing_or_contradicts_the_names(followed, name, coded, message):
    with pytest.raises(DataError, match=message):
        read_survival(followed.rename(columns={"dead": name}), time="months", event=name, coded=coded)


def test_values_that_the_coding_does_not_name(followed):
    table = followed.rename(columns={"dead": "status"}).assign(status=["Dead", "alive", *["Alive"] * 38])
    with pytest.raises(DataError, match="'Dead' or 'Alive' in the column 'status'. Got 'alive' in row 1, 1 such rows"):
        read_survival(table, time="months", event="status", coded={"Dead": 1, "Alive": 0})
    with pytest.raises(DataError, match="'1' or '0' in the column 'status'. Got 'Dead' in row 0, 40 such rows"):
        read_survival(table, time="months", event="status", coded="event")


def test_what_only_looks_odd_is_put_into_words(followed):
    def notes(**columns):
        return " ".join(read_survival(followed.assign(**columns), time="months", event="dead", coded="event").attrs["notes"])
    assert "98% of 40 patients have an event, which is rare: make sure that 1 does not mean censored" in notes(dead=np.arange(40) > 0)
    hundred = pd.concat([followed.assign(patient=followed["patient"] + str(i)) for i in range(5)]).assign(dead=[True, *[False] * 199])
    assert "0.5% of 200 patients have an event" in " ".join(read_survival(hundred, time="months", event="dead", coded="event").attrs["notes"])
    assert "Every event is later than every censored patient's last visit" in notes(months=np.where(followed["dead"], 50 + followed.index, 1 + followed.index))
    assert "The longest time is 9,000 months: make sure of its unit" in notes(months=np.where(followed.index == 3, 9000, 10.))
    assert notes(dead=np.arange(40) < 20) == ""


@pytest.mark.parametrize("times, count", [([0.0], "0 negative and 1 zero"), ([-3.0, 0.0, 0.0], "1 negative and 2 zero")])
def test_times_of_zero_and_below(followed, times, count):
    followed.loc[:len(times) - 1, "months"] = times
    with pytest.raises(DataError, match=f"times above 0. Got {times[0]:g} of 'P0'; {count}.*zero='drop'"):
        read_survival(followed, time="months", event="dead", coded="event")
    got = read_survival(followed, time="months", event="dead", coded="event", zero="drop")
    assert len(got) == 40 - len(times) and (got["time"] > 0).all()
    assert f"{times.count(0.0)} of {40 - sum(t < 0 for t in times)} rows left out, time 0" in " ".join(got.attrs["notes"])
    assert ("1 of 40 rows left out, time below 0, the first P0." in got.attrs["notes"]) == (-3.0 in times)


def test_missing_outcomes_are_counted(followed):
    followed = followed.astype({"dead": object})
    followed.loc[0, "months"], followed.loc[1, "dead"], followed.loc[2, "dead"] = np.nan, None, ""
    got = read_survival(followed, time="months", event="dead", coded="event")
    assert len(got) == 37 and got.attrs["notes"] == ("3 of 40 rows left out, time or event missing, the first P0.",)


def test_times_must_be_numbers_and_have_a_unit(followed):
    days = read_survival(followed.assign(months=365.25), time="months", event="dead", coded="event", unit="days")
    assert (days["time"] == 12).all()
    with pytest.raises(DataError, match="known unit of time.*'day'.*Did you mean 'days'"):
        read_survival(followed, time="months", event="dead", coded="event", unit="day")
    with pytest.raises(DataError, match="numbers in the column 'months'. Got 'ten' in row 0, 40 such rows"):
        read_survival(followed.assign(months="ten"), time="months", event="dead", coded="event")
    with pytest.raises(DataError, match="the column 'time' in the table of survival"):
        read_survival(followed, time="time", event="dead", coded="event")


def test_rows_of_one_patient_must_agree(followed):
    slides = pd.concat([followed, followed[:5]])
    got = read_survival(slides, time="months", event="dead", coded="event")
    assert len(got) == 40 and got.attrs["notes"] == ("45 rows of 40 patients: those of one patient agree in time and event.",)
    with pytest.raises(DataError, match="one time and one event per patient.*of 'P0'; 5 such patients"):
        read_survival(pd.concat([followed, followed[:5].assign(months=1)]), time="months", event="dead", coded="event")
    with pytest.raises(DataError, match="a patient in every row. Got 1 of 40"):
        read_survival(followed.assign(patient=[None, *followed["patient"][1:]]), time="months", event="dead", coded="event")


def test_no_event_at_all(followed):
    with pytest.raises(DataError, match="at least one event. Got 40 patients, all of them censored"):
        read_survival(followed.assign(dead=False), time="months", event="dead", coded="event")


@pytest.mark.parametrize("name", ["s.csv", "s.tsv.gz", "s.parquet"])
def test_survival_from_a_file(followed, tmp_path, name):
    if name.endswith("parquet"):
        followed.to_parquet(tmp_path / name)
    else:
        followed.to_csv(tmp_path / name, sep="\t" if "tsv" in name else ",", index=False)
    got = read_survival(tmp_path / name, time="months", event="dead", coded="event")
    pd.testing.assert_frame_equal(got, read_survival(followed, time="months", event="dead", coded="event"))
    with pytest.raises(DataError, match="no file 'nowhere.csv'"):
        read_survival(tmp_path / "nowhere.csv", time="months", event="dead", coded="event")


# ---- cohorts

@pytest.fixture
def clinical(followed) -> pd.DataFrame:
    return read_survival(followed, time="months", event="dead", coded="event").assign(subtype=["Basal", "Luminal"] * 20, site="A")


def genes_of(patients) -> pd.DataFrame:
    return pd.DataFrame({"TP53": 1.0, "ESR1": 2.0}, index=pd.Index(patients, name="patient"), dtype="float32")


def test_who_is_in_one_table_only_is_counted(clinical):
    rna = genes_of([f"P{i}" for i in range(2, 45)])
    both, every = (omics_cohort(rna, clinical, keep=keep) for keep in ("both", "any"))
    assert len(both) == 38 and both.survival and both.classes == ("censored", "event") and not both.table[["TP53", "ESR1"]].isna().any(axis=None)
    assert both.notes == ("2 of 40 patients have no expression: left out (P0, P1).",
                          "5 of 43 patients with expression are not in the clinical table: left out (P40, P41, P42 and 2 more).")
    assert len(every) == 40 and "2 of 40 patients have no expression: kept with an empty row of genes, to a network without a row of the table (P0, P1)" in every.notes[0]
    assert every.table.loc[:1, ["TP53", "ESR1"]].isna().all(axis=None) and not every.table.loc[2:, "TP53"].isna().any()
    assert (every.table["label"] == every.table["event"]).all() and (every.table["TP53"].dtype == np.float32)


def test_an_empty_row_of_expression_is_no_expression(clinical):
    rna = genes_of([f"P{i}" for i in range(40)])
    rna.iloc[7] = np.nan
    assert "1 of 40 patients have no expression: left out (P7)." in omics_cohort(rna, clinical).notes
    rna.iloc[8, 0] = np.nan  # a single gap is left to the preprocessor
    assert len(omics_cohort(rna, clinical)) == 39


def test_other_classes_and_missing_ones_are_counted(clinical):
    clinical.loc[:2, "subtype"] = ["Normal", "Normal", None]
    cohort = omics_cohort(genes_of(clinical["patient"]), clinical, target="subtype", classes=("Luminal", "Basal"), variables=(Variable("age", "continuous"),))
    assert cohort.notes == ("3 of 40 patients left out, subtype another than Luminal or Basal: Normal 2, missing 1.",)
    assert cohort.table["label"].tolist() == [0, *[1, 0] * 18] and [v.name for v in cohort.variables] == ["age", "TP53", "ESR1"]
    assert not cohort.survival and cohort.n_groups == 37


def test_the_site_is_read_from_barcodes_where_no_column_says_it(clinical):
    names = [f"TCGA-{site}-A{i:03d}" for i, site in enumerate(["3C", "E2", "BH", "A2"] * 10)]
    barcodes, rna = clinical.assign(patient=names), genes_of(names[:39])
    found = omics_cohort(rna, barcodes.drop(columns="site"))
    assert found.table["site"].tolist() == (["3C", "E2", "BH", "A2"] * 10)[:39] and found.notes[-1] == "The site was read from the TCGA barcodes: 4 hospitals."
    for said in (barcodes, clinical.drop(columns="site").assign(patient=["P0", *names[1:]])):  # a column that says it; a patient of another project
        other = omics_cohort(genes_of(said["patient"]), said)
        assert set(other.table.get("site", ["A"])) == {"A"} and not any("barcodes" in note for note in other.notes)


def test_numbers_and_text_name_the_same_patient(clinical):
    numbered = clinical.assign(patient=np.arange(40.0))
    assert len(omics_cohort(genes_of(map(str, range(40))), numbered)) == 40


def test_groups_and_slides_of_the_clinical_table_are_the_cohorts(clinical):
    cohort = omics_cohort(genes_of(clinical["patient"]), clinical.assign(group="family", image="a.tif; b.tif"))
    assert cohort.n_groups == 1 and (cohort.table["image"] == "a.tif; b.tif").all()


@pytest.mark.parametrize("change, message", [
    (lambda rna, c: (rna.set_axis("X" + rna.index), c), "patients that expression and clinical table share. Got XP0, XP1 and 38 more in the one and P0, P1 and 38 more"),
    (lambda rna, c: (pd.concat([rna, rna[:1]]), c), "one row per patient in the expression.*2 rows"),
    (lambda rna, c: (rna, pd.concat([c, c[:1]])), "one row per patient in the clinical table.*2 rows"),
    (lambda rna, c: (rna.rename(columns={"TP53": "age"}), c), "genes named otherwise than clinical columns. Got 'age' in both"),
    (lambda rna, c: (rna.rename(columns={"TP53": "label"}), c), "Got 'label' in both"),
    (lambda rna, c: (rna, c.drop(columns="event")), "the column 'event' in the clinical table"),
    (lambda rna, c: (rna, c.drop(columns="patient")), "the column 'patient' in the clinical table"),
    (lambda rna, c: (rna, c.assign(time=0)), "times above 0 in the cohort")])
def test_tables_that_do_not_join(clinical, change, message):
    rna, clinical = change(genes_of(clinical["patient"]), clinical)
    with pytest.raises(DataError, match=message):
        omics_cohort(rna, clinical)


def test_the_outcome_is_no_input(clinical):
    rna = genes_of(clinical["patient"])
    with pytest.raises(DataError, match="inputs that are not the outcome. Got the variable 'time'"):
        omics_cohort(rna, clinical, variables=(Variable("time", "continuous"),))
    with pytest.raises(DataError, match="classes, the values of 'subtype' by label"):
        omics_cohort(rna, clinical, target="subtype")
    with pytest.raises(DataError, match="known value of 'subtype'.*Did you mean 'Basal'"):
        omics_cohort(rna, clinical, target="subtype", classes=("Luminal", "Basel"))
    with pytest.raises(DataError, match="known choice of patients"):
        omics_cohort(rna, clinical, keep="all")


# ---- TCGA-BRCA, real rows

@pytest.fixture(scope="module")
def brca(data_dir):
    return data_dir / "tcga_brca_tabular"


@pytest.fixture(scope="module")
def subtype(brca):
    return read_tcga_brca(brca)


@pytest.fixture(scope="module")
def survival(brca):
    return read_tcga_brca(brca, outcome="survival", features=("rnaseq", "age"))


def test_counts_of_tcga_brca(subtype, survival):
    assert len(subtype) == subtype.n_groups == 895 and subtype.table["label"].value_counts().to_dict() == {0: 737, 1: 158}
    assert sum(v.kind == "expression" for v in subtype.variables) == len(subtype.variables) == 1558
    assert subtype.notes[0] == "1022 slides of 956 patients: one row per patient; slides are named, not read."
    assert subtype.notes[1].startswith("61 of 956 patients left out, oncotree_code another than IDC or ILC: MDLC 25")
    assert len(survival) == 956 and survival.survival and survival.table["slides"].sum() == 1022
    assert survival.table["event"].sum() == 130 and (survival.table["site"] == site_of(survival.table["case_id"])).all()
    assert not survival.synthetic and "Cancer Cell" in survival.source


def test_copy_number_and_mutations_by_request(brca):
    cohort = read_tcga_brca(brca, features=("cnv", "mut"))
    assert len(cohort.variables) == 1333 + 21 and {v.kind for v in cohort.variables} == {"continuous"}
    assert set(np.unique(cohort.table[[v.name for v in cohort.variables]])) == {-2, -1, 0, 1, 2}
    assert not cohort.table.columns.str.endswith("_rnaseq").any()
    with pytest.raises(DataError, match="known feature of TCGA-BRCA.*'rna'.*Did you mean 'rnaseq'"):
        read_tcga_brca(brca, features=("rna",))
    with pytest.raises(DataError, match="known outcome of TCGA-BRCA"):
        read_tcga_brca(brca, outcome="stage")


def test_the_same_genes_by_the_general_reader(brca, subtype):
    matrix = read_expression(brca / "tcga_brca_all_clean.csv.zip", id_column="case_id", suffix="_rnaseq", duplicates="first")
    assert matrix.shape == (956, 1558) and "50 of 956" not in matrix.attrs["notes"][1]
    assert "62 of 956 patients more than once: the first was taken." in matrix.attrs["notes"]
    assert (matrix.loc[subtype.table["case_id"], "TP53"].to_numpy() == subtype.table["TP53_rnaseq"].to_numpy()).all()


def test_age_alone_for_survival(survival):
    table = survival.table
    assert harrell_c(table["time"].to_numpy(), table["event"].to_numpy(), table["age"].to_numpy()) == pytest.approx(.64, abs=.01)


def test_read_the_wrong_way_round_the_censored_would_be_the_dead(brca):
    slides = pd.read_csv(brca / "tcga_brca_all_clean.csv.zip", usecols=["case_id", "survival_months", "censorship"])
    with pytest.raises(DataError, match="agrees with the name 'censorship'"):
        read_survival(slides, time="survival_months", event="censorship", coded="event", patient="case_id")
    renamed = read_survival(slides.rename(columns={"censorship": "status"}), time="survival_months", event="status", coded="event", patient="case_id")
    assert any(note.startswith("86% of 956 patients have an event, which is rare") for note in renamed.attrs["notes"])


def ridge_auc(cohort, splits) -> float:
    """Mean over folds of the test AUC of a plain ridge logistic regression on all genes; whatever does not test, trains."""
    label, aucs = cohort.table["label"].to_numpy(), []
    for _, rows in splits.groupby("fold"):
        test = (rows["split"] == "test").to_numpy()
        genes = ExpressionPreprocessor(cohort.variables).fit(cohort.table[~test]).transform(cohort.table)
        ridge = LogisticRegression(C=.01, max_iter=1000).fit(genes[~test], label[~test])
        aucs.append(roc_auc_score(label[test], ridge.decision_function(genes[test])))
    return np.mean(aucs)


def test_ductal_against_lobular_by_plain_ridge_regression(subtype):
    assert ridge_auc(subtype, kfold(subtype.table)) == pytest.approx(.899, abs=.01)


def test_site_preserving_folds_beside_plain_ones(subtype):
    splits = site_kfold(subtype.table)
    check_splits(splits, subtype.table)
    check_splits(splits, subtype.table.assign(group=subtype.table["site"]))
    assert .85 < ridge_auc(subtype, splits) < .93
