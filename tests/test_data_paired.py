"""Images + table -> cohort: every kind of bad input is refused with a message that says where and what to do."""
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fusion_nb.data.paired import Columns, read_paired, read_table
from fusion_nb.schema import DataError

COLUMNS = Columns(id="id", image="file", group="patient", target="outcome", classes=("benign", "malignant"), continuous=["age"],
                  categorical=["density"], ordinal={"stage": ["I", "II", "III"]}, multi=["signs"], missing=["not known"],
                  exclude={"normal": "no lesion"}, leaks={"birads": "the verdict"}, feature_sets={"history": ["age", "signs"]},
                  image_folder="images")


@pytest.fixture
def table():
    return pd.DataFrame({"id": ["a1", "a2", "b1", "c1"], "patient": ["a", "a", "b", "c"], "file": ["a1.png", "a2.png", "b1.png", "c1.png"],
                         "age": ["51", "", "62.5", "not known"], "density": ["fatty", "dense", "not known", "dense"],
                         "stage": ["I", "II", "III", ""], "signs": ["no", "palpable & redness", "palpable", "not known"],
                         "birads": ["2", "4", "5", "1"], "outcome": ["benign", "malignant", "malignant", "normal"]})


@pytest.fixture
def clinic(tmp_path, table):
    (tmp_path / "images").mkdir()
    for file in table["file"]: Image.new("L", (8, 6)).save(tmp_path / "images" / file)
    return tmp_path


def read(clinic, table, columns=COLUMNS, file="table.csv", **options):
    write = {"csv": table.to_csv, "xlsx": table.to_excel, "parquet": table.to_parquet}[file.split(".")[1]]
    write(clinic / file, index=False)
    return read_paired(clinic, file, columns, **options)


def refused(*words):
    """A `DataError` whose message holds all `words`, in this order."""
    return pytest.raises(DataError, match="(?s)" + ".*".join(map(re.escape, words)))


@pytest.mark.parametrize("file", ["table.csv", "table.xlsx", "table.parquet"])
def test_good_table_in_every_format(clinic, table, file):
    cohort = read(clinic, table, file=file)
    rows = cohort.table
    assert rows["case_id"].tolist() == ["a1", "a2", "b1"] and rows["group"].tolist() == ["a", "a", "b"]
    assert rows["label"].tolist() == [0, 1, 1] and cohort.classes == ("benign", "malignant")
    np.testing.assert_array_equal(rows["age"], [51, np.nan, 62.5])
    assert rows["signs"].tolist() == [("no",), ("palpable", "redness"), ("palpable",)]
    assert rows["density"].tolist() == ["fatty", "dense", None] and rows["stage"].tolist() == ["I", "II", "III"]
    assert cohort.notes == ("1 row left out, outcome normal: no lesion.",)
    assert "birads" not in rows and Image.open(rows["image"][0]).size == (8, 6)


def test_integer_ids_that_excel_made_floats(clinic, table):
    table["id"], table["patient"] = [1.0, 2.0, 3.0, 4.0], [10.0, 10.0, 11.0, 12.0]
    for file in ("table.xlsx", "table.parquet"):
        rows = read(clinic, table, file=file).table
        assert rows["case_id"].tolist() == ["1", "2", "3"] and rows["group"].tolist() == ["10", "10", "11"]


def test_codes_keep_their_zeros_and_letters(clinic, table):
    table["id"], table["density"] = ["001", "01", "1", "NA"], "NA"
    rows = read(clinic, table).table
    assert rows["case_id"].tolist() == ["001", "01", "1"] and (rows["density"] == "NA").all()


def test_whole_number_classes(clinic, table):
    table["outcome"] = [0, 1, 1.0, 0]
    for file in ("table.csv", "table.xlsx"):
        assert read(clinic, table.astype({"outcome": int}), replace(COLUMNS, classes=(0, 1), exclude={}), file).table["label"].tolist() == [0, 1, 1, 0]


def test_no_group_is_noted(clinic, table):
    cohort = read(clinic, table, replace(COLUMNS, group=None))
    assert cohort.n_groups == 3 and "No column names the patient" in cohort.notes[-1]


def test_image_by_pattern_of_the_id(clinic, table):
    cohort = read(clinic, table.drop(columns="file"), replace(COLUMNS, image="{id}.png"))
    assert len(cohort) == 3 and "'{id}.png'" in cohort.pairing


# ---- tables

def test_row_numbers_are_those_of_a_spreadsheet(clinic, table):
    table.loc[2, "age"] = "old"
    table = pd.concat([table[:1], pd.DataFrame([{}]), table[1:]])  # a blank row between
    for file in ("table.csv", "table.xlsx"):
        with refused("finite number", "'old'", f"in {file}, row 5, column 'age'", "missing"): read(clinic, table, file=file)


@pytest.mark.parametrize("content, words", [
    ("", ["column names in the first row of t.csv"]),
    ("id,age\n", ["at least one row", "0 rows"]),
    ("id,age\n\n,\n", ["at least one row", "0 rows"]),
    ("id,age\n1,5\n2\n", ["2 cells in every row of t.csv", "1 cell in row 3"]),
    ("id,age\n1,5,6\n", ["3 cells in row 2"]),
    ("id,age,id\n1,5,1\n", ["every column name once", "'id' more than once"]),
    ("id,,age\n1,x,5\n", ["a name for every column", "column 2"]),
    ('id,age\n"1,5\n', ["a CSV table in t.csv", "quotation marks"]),
])
def test_malformed_csv(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(content)
    with refused(*words): read_table(tmp_path / "t.csv")


def test_other_files(tmp_path):
    (tmp_path / "latin.csv").write_bytes("id,name\n1,Müller\n".encode("latin1"))
    (tmp_path / "t.xls").write_bytes(b"old")
    for name in ("t.xlsx", "t.parquet"): (tmp_path / name).write_bytes(b"PK\x03\x04 not what it says")
    with refused("UTF-8", "0xfc", "latin.csv", "CSV UTF-8"): read_table(tmp_path / "latin.csv")
    with refused(".csv, .xlsx or .parquet", "t.xls"): read_table(tmp_path / "t.xls")
    with refused("Excel workbook in t.xlsx"): read_table(tmp_path / "t.xlsx")
    with refused("Parquet table in t.parquet"): read_table(tmp_path / "t.parquet")
    with refused("a table", "no file 'none.csv'"): read_table(tmp_path / "none.csv")


def test_empty_tables_of_every_format(tmp_path):
    empty = pd.DataFrame({"id": [], "age": []})
    empty.to_excel(tmp_path / "t.xlsx", index=False)
    empty.to_parquet(tmp_path / "t.parquet")
    for name in ("t.xlsx", "t.parquet"):
        with refused("at least one row", "0 rows"): read_table(tmp_path / name)


def test_sheets(tmp_path, table):
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        pd.DataFrame({"note": ["see sheet 2"]}).to_excel(book, sheet_name="read me", index=False)
        table.to_excel(book, sheet_name="Cases", index=False)
    assert read_table(tmp_path / "t.xlsx").columns.tolist() == ["note"]
    assert len(read_table(tmp_path / "t.xlsx", sheet="Cases")) == 4
    with refused("sheet of t.xlsx", "'cases'", "'Cases'"): read_table(tmp_path / "t.xlsx", sheet="cases")


def test_parquet_whose_index_is_the_id(tmp_path, table):
    table.set_index("id").to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet")["id"].tolist() == table["id"].tolist()


def test_byte_order_mark_and_spaces_in_the_header(tmp_path):
    (tmp_path / "t.csv").write_bytes("\ufeffid , age\n1,5\n".encode())
    assert read_table(tmp_path / "t.csv").columns.tolist() == ["id", "age"]


# ---- ids, patients, outcome, values: (column, row, value) -> the words of the message

@pytest.mark.parametrize("column, row, value, words", [
    ("id", 2, "a1", ["each id once", "'a1' in table.csv, rows 2, 4"]),
    ("id", 2, "", ["an id in every row", "an empty cell in table.csv, row 4, column 'id'"]),
    ("id", 2, "a 1", ["one spelling", "'a1' and 'a 1' in table.csv, rows 2 and 4"]),
    ("id", 2, " a1\u00a0", ["each id once", "'a1' in table.csv, rows 2, 4"]),
    ("patient", 2, "a\u00a0", None),
    ("patient", 2, "", ["a patient in every row", "row 4, column 'patient'", "declare no group"]),
    ("outcome", 0, "bening", ["'benign', 'malignant', 'normal'", "'bening' in table.csv, row 2, column 'outcome'", "Did you mean 'benign'?"]),
    ("outcome", 0, "", ["'benign', 'malignant'", "an empty cell in table.csv, row 2, column 'outcome'", "exclude"]),
    ("outcome", 0, "malignant", ["at least two classes", "3 cases, all of them malignant"]),
    ("age", 0, "inf", ["a finite number", "'inf' in table.csv, row 2, column 'age'"]),
    ("age", 0, "nan", ["a finite number", "'nan' in table.csv, row 2"]),
    ("age", 0, "51,5", ["with a point for decimals", "'51,5'"]),
    ("age", 0, "1_0_5", ["a finite number", "'1_0_5' in table.csv, row 2"]),
    ("stage", 1, "IV", ["one of the levels I, II, III", "'IV' in table.csv, row 3, column 'stage'"]),
])
def test_bad_cell(clinic, table, column, row, value, words):
    table.loc[row, column] = value
    if words is None: assert read(clinic, table).n_groups == 1  # white space around a name is nobody's intention
    else:
        with refused(*words): read(clinic, table)


def test_patient_spelt_twice(clinic, table):
    table["patient"] = ["p 1", "p1", "p2", "p3"]
    with refused("one spelling of each value in column 'patient'", "'p 1' and 'p1'", "rows 2 and 3"): read(clinic, table)


def test_several_bad_cells_are_counted(clinic, table):
    table["age"] = "old"
    with refused("'old' in table.csv, row 2", "and 2 more rows like it"): read(clinic, table)  # the excluded row is not read


def test_missing_outcome_can_be_excluded(clinic, table):
    table.loc[0, "outcome"], table.loc[2, "outcome"] = "", "benign"
    cohort = read(clinic, table, replace(COLUMNS, exclude={"": "not yet known", "normal": "no lesion"}))
    assert len(cohort) == 2 and cohort.notes[0] == "1 row left out, outcome missing: not yet known."


def test_every_row_excluded(clinic, table):
    table["outcome"] = "normal"
    with refused("at least two classes", "0 cases"): read(clinic, table)


# ---- names of columns, leaks

def test_unknown_names(clinic, table):
    with refused("the column 'age'", "'Age'"): read(clinic, table.rename(columns={"age": "Age"}))
    with refused("the column 'birads'"): read(clinic, table.drop(columns="birads"))  # a leak mistyped would protect nothing
    with refused("variable or feature set", "'agee'", "'age'"): read(clinic, table, features=["agee"])
    with refused("leak that was declared", "'BIRADS'", "'birads'"): read(clinic, table, allow_leaks=["BIRADS"])


def test_leaks_have_to_be_asked_for_twice(clinic, table):
    leaky = replace(COLUMNS, continuous=["age", "birads"])
    assert [v.name for v in read(clinic, table, leaky).variables] == ["age", "density", "signs", "stage"]
    with refused("'birads': the verdict", "allow_leaks=['birads']"): read(clinic, table, leaky, features=["history", "birads"])
    cohort = read(clinic, table, leaky, features=["history", "birads"], allow_leaks=["birads"])
    assert [v.name for v in cohort.variables] == ["age", "signs", "birads"] and "birads is an input although it leaks" in cohort.notes[0]


@pytest.mark.parametrize("change, words", [
    (dict(continuous=["age", "outcome"]), ["one meaning", "'outcome' as target and as continuous variable"]),
    (dict(categorical=["patient"]), ["one meaning", "'patient' as group and as categorical variable"]),
    (dict(categorical=["age"]), ["one meaning", "'age'"]),
    (dict(categorical=["label"]), ["names of their own", "'label'", "rename"]),
    (dict(target="id"), ["one meaning", "'id' as id and as target"]),
    (dict(classes=("benign",)), ["two or more different classes"]),
    (dict(exclude={"benign": "why"}), ["'benign' as both"]),
    (dict(continuous="age"), ["a list for 'continuous'", "'age'"]),
    (dict(ordinal={"stage": "I"}), ["a list for 'ordinal: stage'"]),
    (dict(ordinal={"stage": ["I"]}), ["at least two levels", "'stage'"]),
    (dict(feature_sets={"history": ["agee"]}), ["feature set 'history'", "'agee'", "'age'"]),
    (dict(leaks=["birads"]), ["a value each for 'leaks'"]),
    (dict(target=3), ["a text for 'target'", "3"]),
    (dict(separator=""), ["a text for 'separator'"]),
    (dict(expect_size=224), ["[width, height]", "224"]),
    (dict(synthetic="no"), ["true or false for 'synthetic'", "'no'"]),
])
def test_malformed_declaration(change, words):
    with refused(*words): replace(COLUMNS, **change)


def test_columns_json(tmp_path):
    path = tmp_path / "columns.json"
    full = replace(COLUMNS, expect_size=(8, 6), synthetic=True, ignore=["*_mask.png"], replace={"signs": {"a": "b"}})
    full.to_json(path)
    assert Columns.from_json(path) == full
    for text, words in {'{"id": "id",': ["columns.json", "line 1"], "[]": ["an object", "list"], '{"idd": "x"}': ["key in columns.json", "'id'"],
                        '{"id": "x"}': ["the key 'image' in columns.json"]}.items():
        path.write_text(text)
        with refused(*words): Columns.from_json(path)


# ---- images

def test_ids_in_one_place_only(clinic, table):
    (clinic / "images" / "a2.png").unlink()
    Image.new("L", (8, 6)).save(clinic / "images" / "z9.png")
    table.loc[2, "file"], table.loc[0, "outcome"] = "", "malignant"
    (clinic / "images" / "b1.png").unlink()
    table.loc[3, "outcome"] = "benign"
    with refused("an image for every row", "2 of 4 rows of table.csv without image (the first is row 3: 'images/a2.png')",
                 "1 of 3 images without row (the first is 'images/z9.png')", "allow_unmatched=True"): read(clinic, table)
    cohort = read(clinic, table, allow_unmatched=True)
    assert cohort.table["case_id"].tolist() == ["a1", "c1"] and "2 of 4 rows" in cohort.notes[0] and "'images/z9.png'" in cohort.notes[0]


def test_each_direction_alone_is_refused(clinic, table):
    Image.new("L", (8, 6)).save(clinic / "images" / "z9.png")
    with refused("Got 1 of 5 images without row"): read(clinic, table)
    assert len(read(clinic, table, replace(COLUMNS, ignore=["z*.png"])).table) == 3
    (clinic / "images" / "z9.png").rename(clinic / "images" / ".hidden.png")
    (clinic / "images" / "a1.png").unlink()
    with refused("Got 1 of 3 rows of table.csv without image"): read(clinic, table)


def test_images_in_hidden_folders_are_nobodys(clinic, table):
    (clinic / "images" / ".ipynb_checkpoints" / "sub").mkdir(parents=True)
    Image.new("L", (8, 6)).save(clinic / "images" / ".ipynb_checkpoints" / "sub" / "a1-checkpoint.png")
    assert len(read(clinic, table)) == 3


def test_image_of_an_excluded_row_is_nobodys_loss(clinic, table):
    (clinic / "images" / "c1.png").unlink()
    assert len(read(clinic, table)) == 3


@pytest.mark.parametrize("name", ["../../out.png", "/etc/out.png", r"..\..\out.png", r"C:\out.png", "link.png", "linked/out.png"])
def test_path_that_leaves_the_folder(clinic, table, name, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    Image.new("L", (8, 6)).save(outside / "out.png")
    (clinic / "images" / "link.png").symlink_to(outside / "out.png")
    (clinic / "images" / "linked").symlink_to(outside)
    table.loc[1, "file"] = name
    with refused("below the folder", repr(name), "table.csv, row 3", "leads out"): read(clinic, table, allow_unmatched=True)


def test_image_folder_that_leaves_the_folder(clinic, table):
    with refused("below the folder", "leads out"): read(clinic, table, replace(COLUMNS, image_folder="../x"), allow_unmatched=True)


@pytest.mark.parametrize("name", ["x" * 300 + ".png", "a\0.png"])
def test_impossible_file_name(clinic, table, name):
    table.loc[1, "file"] = name
    with refused("the name of a file", "table.csv, row 3"): read(clinic, table)


def test_windows_paths_and_links_inside_serve(clinic, table):
    (clinic / "images" / "sub").mkdir()
    (clinic / "images" / "a1.png").rename(clinic / "images" / "sub" / "a1.png")
    (clinic / "images" / "a1.png").symlink_to(clinic / "images" / "sub" / "a1.png")
    table.loc[0, "file"] = r"sub\a1.png"
    assert len(read(clinic, table)) == 3


def test_one_image_of_two_patients(clinic, table):
    table["file"] = ["a1.png", "a1.png", "b1.png", "c1.png"]
    assert len(read(clinic, table, allow_unmatched=True)) == 3  # two cases of one patient may share an image
    table["file"] = ["a1.png", "a2.png", "a1.png", "c1.png"]
    with refused("an image of one patient only", "'a1.png' in table.csv, rows 2 and 4"): read(clinic, table, allow_unmatched=True)


def test_bad_images_stop_the_reading(clinic, table):
    with refused("an image of mode RGB in a1.png", "mode L"): read(clinic, table, replace(COLUMNS, expect_mode="RGB"))
    with refused("an image of size (9, 9) in a1.png", "size (8, 6)"): read(clinic, table, replace(COLUMNS, expect_size=(9, 9)))
    assert len(read(clinic, table, replace(COLUMNS, expect_mode="L", expect_size=[8, 6]))) == 3
    (clinic / "images" / "b1.png").write_text("not an image")
    with refused("a whole image", "in b1.png"): read(clinic, table)


def test_missing_in_a_multi_value(clinic, table):
    table["signs"] = ["palpable&not known", "not known & not known", "b&a&b", "no"]
    assert read(clinic, table).table["signs"].tolist() == [("palpable",), None, ("b", "a")]


def test_replace_comes_before_missing(clinic, table):
    table.loc[0, "signs"] = "signs: not known"
    assert read(clinic, table, replace(COLUMNS, replace={"signs": {"signs: ": ""}})).table["signs"][0] is None
