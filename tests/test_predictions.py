"""The prediction table: what it refuses, and that files come back as they went."""
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from sklearn.metrics import roc_auc_score

from fusion_nb.predictions import (Scores, _fit_cox, best_run, check_predictions, ensemble, late_fusion, prediction_rows, read_predictions,
                                   read_scores, score_matrix, write_predictions)
from fusion_nb.schema import DataError


def table(models=("image_only", "table_only"), runs=(0, 1), folds=(0, 1), seed=0) -> pd.DataFrame:
    """Two folds of ten cases of eight patients: val and test swap places, as in a cross-validation."""
    rng = np.random.default_rng(seed)
    cases = pd.DataFrame({"case_id": [f"c{i}" for i in range(10)], "group": [f"p{i}" for i in (0, 0, 1, 2, 3, 4, 4, 5, 6, 7)],
                          "label": [0, 1] * 5})
    part = lambda fold: np.where((np.arange(10) < 5) == (fold == 0), "val", "test")
    return pd.concat([prediction_rows(cases.assign(split=part(f)), rng.random(10), model=m, run=r, fold=f, positive="malignant")
                      for m in models for r in runs for f in folds], ignore_index=True)


def graded(models=("image_only", "table_only"), runs=(0, 1), seed=0) -> pd.DataFrame:
    """Three classes; ten cases for validation, ten for test."""
    rng = np.random.default_rng(seed)
    cases = pd.DataFrame({"case_id": [f"c{i:02d}" for i in range(20)], "label": [0, 1, 2, 2, 1] * 4, "split": ["val"] * 10 + ["test"] * 10})
    p = lambda: pd.DataFrame(rng.dirichlet([1, 1, 1], 20), columns=["low", "middle", "high"])
    return pd.concat([prediction_rows(cases, p(), model=m, run=r) for m in models for r in runs], ignore_index=True)


def followed(models=("image_only", "table_only"), runs=(0, 1), seed=0) -> pd.DataFrame:
    """Times to an event, half of them censored."""
    rng = np.random.default_rng(seed)
    cases = pd.DataFrame({"case_id": [f"c{i}" for i in range(10)], "time": rng.exponential(30, 10).round(2), "event": [1, 0] * 5, "split": "test",
                          "group": [f"p{i // 2}" for i in range(10)]})
    return pd.concat([prediction_rows(cases, rng.normal(size=10), model=m, run=r) for m in models for r in runs], ignore_index=True)


KINDS = {"binary": table, "multiclass": graded, "survival": followed}


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
@pytest.mark.parametrize("kind", KINDS)
def test_files_come_back_as_they_went(tmp_path, name, kind):
    pred = KINDS[kind]()
    assert read_predictions(write_predictions(pred, tmp_path / name)).equals(pred)
    again = (tmp_path / name).read_bytes()
    write_predictions(pred, tmp_path / name)
    assert (tmp_path / name).read_bytes() == again


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_ids_stay_text_and_unknown_patients_stay_unknown(tmp_path, name):
    cases = pd.DataFrame({"case_id": ["007", "010"], "label": [0, 1], "split": "test"})
    pred = read_predictions(write_predictions(prediction_rows(cases, [.1, .9], model="a"), tmp_path / name))
    assert pred["case_id"].tolist() == ["007", "010"]
    assert score_matrix(pred).group is None


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_predictions(table(), tmp_path / "p.parquet")
    before = path.read_bytes()
    with pytest.raises(DataError): write_predictions(table().assign(label=3), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def spoilt(column, value, row=3, make=table):
    pred = make()
    pred[column] = pred[column].astype(object).where(pred.index != row, value)
    return pred.infer_objects()


@pytest.mark.parametrize("pred, says", [
    (lambda: spoilt("score_malignant", np.nan), "finite scores.*nan for case 'c3' of model 'image_only'"),
    (lambda: spoilt("score_malignant", np.inf), "finite scores.*inf"),
    (lambda: spoilt("label", 2), "labels 0 or 1.*Got 2 in 1 rows, the first that of case 'c3'"),
    (lambda: spoilt("label", 0), "one label for each case.*'c3'"),
    (lambda: spoilt("group", "p9"), "one group for each case.*'c3'"),
    (lambda: spoilt("group", None), "a group .patient. in every row.*1 rows without"),
    (lambda: spoilt("split", "Test"), "split.*Did you mean 'test'"),
    (lambda: spoilt("case_id", "c4"), "one row per .*case_id"),
    (lambda: table().drop(columns="fold"), "the column 'fold'"),
    (lambda: table().drop(columns="score_malignant"), "one column score_"),
    (lambda: table().assign(score_benign=.5), "one column score_.*Of two classes keep the positive one's column"),
    (lambda: spoilt("score_malignant", "high"), "finite scores.*high for case 'c3'"),
    (lambda: table().drop(columns="label"), "the column 'label'"),
    (lambda: table().assign(time=1, event=1), "one outcome.*label beside time and event"),
    (lambda: spoilt("label", 3, make=graded), r"labels 0 to 2 \(low, middle, high\).*Got 3 in 1 rows, the first that of case 'c03'"),
    (lambda: spoilt("label", "high", make=graded), "labels 0 to 2.*Got 'high'"),
    (lambda: spoilt("label", np.nan, make=graded), "labels 0 to 2.*Got nan"),
    (lambda: spoilt("label", 1, make=graded), "one label for each case.*'c03'"),
    (lambda: spoilt("score_middle", np.nan, make=graded), "finite scores.*nan for case 'c03' of model 'image_only'"),
    (lambda: spoilt("score_high", -.1, make=graded), "probabilities of 0 or more in the column 'score_high'.*-0.1 for case 'c03'"),
    (lambda: graded().drop(columns="score_low"), "three or more.*'score_middle', 'score_high'.*Of two classes"),
    (lambda: spoilt("time", -1.0, make=followed), "finite times of 0 or more.*Got -1.0 in 1 rows, the first that of case 'c3'"),
    (lambda: spoilt("time", np.nan, make=followed), "finite times.*Got nan"),
    (lambda: spoilt("time", np.inf, make=followed), "finite times.*Got inf"),
    (lambda: spoilt("time", "long", make=followed), "finite times.*Got 'long'"),
    (lambda: spoilt("event", 2, make=followed), "events 0 or 1.*Got 2 in 1 rows, the first that of case 'c3'"),
    (lambda: spoilt("event", np.nan, make=followed), "events 0 or 1.*Got nan"),
    (lambda: spoilt("event", 1, make=followed), "one event for each case.*'c3'"),
    (lambda: spoilt("time", 1.0, make=followed), "one time for each case.*'c3'"),
    (lambda: followed().assign(event=0), "an event or more.*40 cases, all of them censored"),
    (lambda: followed().drop(columns="event"), "the column 'event'"),
    (lambda: followed().rename(columns={"score_risk": "score_death"}), "the one column score_risk.*'score_death'"),
])
def test_a_broken_contract_is_refused(pred, says):
    with pytest.raises(DataError, match=says): check_predictions(pred())


def test_scores_that_are_no_probabilities_are_noted():
    with pytest.warns(UserWarning, match="image_only: scores outside 0 to 1"): check_predictions(spoilt("score_malignant", 1.5))


@pytest.mark.filterwarnings("error")
def test_probabilities_of_several_classes_need_not_sum_to_one_and_risks_need_no_bounds():
    check_predictions(graded().assign(score_low=.9, score_high=3))
    assert followed()["score_risk"].min() < 0 and check_predictions(followed()) is not None


def test_prediction_rows_of_a_censored_fold():
    cases = pd.DataFrame({"case_id": ["a"], "time": [3], "event": [False], "split": "test"})
    rows = prediction_rows(cases, [2], model="m", positive="death")
    assert rows[["time", "event", "score_risk"]].values.tolist() == [[3, 0, 2]] and rows["event"].dtype == np.int64
    with pytest.raises(DataError, match="1 cases, all of them censored"): score_matrix(rows)


def test_prediction_rows_keeps_the_order_of_classes_not_of_the_index():
    cases = pd.DataFrame({"case_id": ["a", "b"], "label": [2, 0], "split": "test"}, index=[7, 3])
    p = pd.DataFrame([[.1, .2, .7], [.5, .3, .2]], columns=["z", "a", 1], index=[3, 7])
    rows = prediction_rows(cases, p, model="m")
    assert rows.columns[-4:].tolist() == ["label", "score_z", "score_a", "score_1"]
    assert rows.iloc[:, -4:].values.tolist() == [[2, .1, .2, .7], [0, .5, .3, .2]]
    with pytest.raises(DataError, match=r"an array of shape \(2, 3\).*columns=classes"): prediction_rows(cases, p.to_numpy(), model="m")
    with pytest.raises(DataError, match="Of two classes"): prediction_rows(cases, p[["z", "a"]], model="m")


def test_prediction_rows_refuses_another_length():
    cases = pd.DataFrame({"case_id": ["a", "b"], "label": [0, 1], "split": "test"})
    with pytest.raises(DataError, match="3 scores of 'm' for 2 cases"): prediction_rows(cases, [1, 2, 3], model="m")
    with pytest.raises(DataError, match="the column 'split'"): prediction_rows(cases.drop(columns="split"), [1, 2], model="m")


@pytest.mark.parametrize("options, says", [
    ({"run": "x"}, "a whole number for run. Got run='x'"), ({"run": None}, "run=None"), ({"run": 1.5}, "run=1.5"), ({"run": np.nan}, "run=nan"),
    ({"fold": "1"}, "a whole number for fold. Got fold='1'"), ({"score": ["low", "high"]}, "numbers for the scores.*low"),
    ({"score": pd.DataFrame({"x": ["low", 1], "y": 1, "z": 1})}, "numbers for the scores.*low"),
])
def test_prediction_rows_refuses_what_is_no_number(options, says):
    cases = pd.DataFrame({"case_id": ["a", "b"], "label": [0, 1], "split": "test"})
    with pytest.raises(DataError, match=says): prediction_rows(**({"cases": cases, "score": [.1, .2], "model": "m"} | options))
    rows = prediction_rows(cases, [0, 1], model="m", run=np.int32(3), fold=2.0)
    assert rows[["run", "fold"]].values.tolist() == [[3, 2]] * 2 and (rows.dtypes[["run", "fold"]] == np.int64).all()


@pytest.mark.parametrize("text, says", [
    ("y_true,y_prob\n1,0.5\n", "the column 'label'"),
    ("labels,score\n1,0.5\n", "Did you mean 'labels'"),
    ("label,score\n1,0.5\n0,high\n", "finite numbers in the column 'score'.*'high' in row 3"),
    ("label,score\n1,0.5\n0,\n", "finite numbers in the column 'score'.*nan in row 3"),
    ("label,score\n1,0.5\n0,inf\n", "finite numbers in the column 'score'.*inf in row 3"),
    ("label,score\n1,0.5\nmalignant,.1\n", "finite numbers in the column 'label'.*'malignant' in row 3"),
    ("label,score\n1,0.5\n2,.1\n", "labels 0 or 1 in the column 'label'.*Got 2 in row 3"),
    ("label,score\n1,0.5\n0,.1,7,8\n", "a readable csv file.*line 3"),
    ('label,score\n1,"0.5\n', "a readable csv file"),
    ("label,score\n", "rows of scores.*header only"),
    ("label;score\n1;0.5\n0;0.1\n", "columns separated by commas in .*the one column 'label;score': its separator looks like ';'"),
    ("label;score\n1;0,5\n0;0,1\n", "its separator looks like ';'.*points in the numbers"),
    ("label;score\n1;5\n0;0,1\n", "its separator looks like ';'"),
    ("label\tscore\n1\t0.5\n", r"its separator looks like '\\t'"),
    ("label,score,score\n1,0.5,0.4\n0,0.1,0.2\n", "each column once in .*the column 'score' 2 times"),
    ("label,score,x,x,x\n1,0.5,0,0,0\n", "the column 'x' 3 times"),
    ("label,score\n1,0.5,0.4\n0,0.1,0.2\n", "as many values in a row as names in the header.*2 names and more values"),
    ("label,score\n1,0.5,\n0,0.1,\n", "remove a comma at the end of the rows"),
    ("", "a readable csv file"),
])
def test_bad_score_files(tmp_path, text, says):
    (tmp_path / "theirs.csv").write_text(text)
    with pytest.raises(DataError, match=f"(?s){says}"): read_scores(tmp_path / "theirs.csv")


def test_a_table_of_one_column_and_unnamed_columns_are_no_error_of_the_header(tmp_path):
    (tmp_path / "one.csv").write_text("score\n1\n")
    with pytest.raises(DataError, match="the column 'label' in .*columns score"): read_scores(tmp_path / "one.csv")
    (tmp_path / "index.csv").write_text(",label,score,,score.1\n0,1,.5,x,.3\n1,0,.2,y,.4\n")
    assert read_scores(tmp_path / "index.csv")["score_positive"].tolist() == [.5, .2]


@pytest.mark.parametrize("path, options, says", [
    (5, {}, "the path of a file, or a list of paths. Got 5"), (None, {}, "Got None"), (["a.csv", 5], {}, "Got 5"),
    ("a.csv", {"label": None}, "the name of a column, or a tuple of names, for label. Got label=None"), ("a.csv", {"score": 5}, "Got score=5"),
    ("a.csv", {"label": ("time", None)}, r"Got label=\['time', None\]"), ("a.csv", {"model": 5}, "a tuple of names of models. Got 5"),
    ("a.csv", {"score": "label"}, "a column of its own for the label, the score and each id. Got the column 'label' for two"),
    ("a.csv", {"label": ("time", "time")}, "the column 'time' for two"), ("a.csv", {"group": "label"}, "the column 'label' for two"),
    ("a.csv", {"case_id": "score"}, "the column 'score' for two"), ("a.csv", {"label": "b", "score": ("a", "b", "c")}, "the column 'b' for two"),
])
def test_arguments_that_name_no_file_and_no_column(tmp_path, monkeypatch, path, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").write_text("label,score\n1,.5\n0,.4\n")
    with pytest.raises(DataError, match=says): read_scores(path, **options)


def test_a_case_may_be_its_own_patient(tmp_path):
    (tmp_path / "a.csv").write_text("id,label,score\nx,1,.5\ny,0,.4\n")
    pred = read_scores(tmp_path / "a.csv", group="id", case_id="id")
    assert pred["group"].tolist() == pred["case_id"].tolist() == ["x", "y"]


@pytest.mark.parametrize("name", ["folder.csv", "folder"])
def test_a_folder_is_called_a_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    for read in (read_scores, read_predictions):
        with pytest.raises(DataError, match=f"{name}, which is a folder. Name a file in it"): read(tmp_path / name)


def test_bad_score_files_of_other_kinds(tmp_path):
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    (tmp_path / "fake.parquet").write_text("label,score\n")
    (tmp_path / "gap.csv").write_text("label,score,id\n1,.5,a\n0,.4,\n")
    (tmp_path / "twice.csv").write_text("label,score,id\n1,.5,a\n0,.4,a\n")
    for name, options, says in (("image.csv", {}, "a readable csv file"), ("fake.parquet", {}, "a readable parquet file"),
                                ("none.csv", {}, "not there"), ("scores.txt", {}, "suffix"),
                                ("gap.csv", {"case_id": "id"}, "a value in every row in the column 'id'.*nan in row 3"),
                                ("twice.csv", {"case_id": "id"}, "one row per"), ("gap.csv", {"group": "idd"}, "Did you mean 'id'")):
        with pytest.raises(DataError, match=f"(?s){says}"): read_scores(tmp_path / name, **options)


def test_files_are_matched_by_case_id_or_by_row(tmp_path):
    (tmp_path / "a.csv").write_text("id,who,label,score\n1,x,1,.9\n2,x,0,.2\n3,y,0,.4\n")
    (tmp_path / "b.csv").write_text("id,who,label,score\n3,y,0,.3\n1,x,1,.8\n2,x,0,.1\n")
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    matched = score_matrix(pd.concat([read_scores(f, case_id="id", group="who") for f in files]))
    assert matched.models == ("a", "b") and matched.scores.tolist() == [[.9, .8], [.2, .1], [.4, .3]]
    assert matched.group.tolist() == ["x", "x", "y"]
    with pytest.raises(DataError, match="(?s)one label for each case.*'row 1'.*matched by row"):
        score_matrix(pd.concat([read_scores(f) for f in files]))


def test_models_on_other_cases_are_refused():
    pred = table(runs=(0,))
    with pytest.raises(DataError, match="2 of 10 cases without a score of 'table_only', the first 'c8'"):
        score_matrix(pred[~((pred["model"] == "table_only") & pred["case_id"].isin(["c8", "c9"]))])
    with pytest.raises(DataError, match=r"best_run\(\) or ensemble\(\) first"): score_matrix(table())
    with pytest.raises(DataError, match="split"): score_matrix(pred, split="train")


@pytest.mark.parametrize("kind", KINDS)
def test_score_matrix_of_every_kind(kind):
    pred = KINDS[kind](runs=(0,))
    columns = [c for c in pred if c.startswith("score_")]
    scores = score_matrix(pred.sample(frac=1, random_state=0).sort_values("model"))
    assert scores.kind == kind and scores.models == ("image_only", "table_only") and scores.scores.flags["C_CONTIGUOUS"]
    test = pred[pred["split"] == "test"].set_index("case_id")
    for m, model in enumerate(scores.models):
        rows = test[test["model"] == model].loc[scores.cases["case_id"]]
        assert np.array_equal(scores.scores[:, m].reshape(len(scores), -1), rows[columns])
        for values, column in zip(scores.outcome, ["time", "event"] if kind == "survival" else ["label"]): assert np.array_equal(values, rows[column])
    assert scores.classes == (("low", "middle", "high") if kind == "multiclass" else None)
    with pytest.raises(DataError, match="2 of .* cases without a score of 'table_only'"):
        score_matrix(pred[~((pred["model"] == "table_only") & pred["case_id"].isin(scores.cases["case_id"][-2:]))])


CASES = pd.DataFrame({"case_id": list("abcd"), "group": list("ppqr"), "fold": 0, "label": [0, 1, 1, 0]})
SURVIVAL = CASES.drop(columns="label").assign(time=[1.0, 2, 3, 4], event=[0, 1, 1, 0])


@pytest.mark.parametrize("make, says", [
    (lambda: Scores(CASES, ("a",), np.zeros((3, 1))), r"scores of shape \(4, 1\), cases by models.*Got \(3, 1\)"),
    (lambda: Scores(CASES, ("a", "b"), np.zeros((4, 1))), r"scores of shape \(4, 2\)"),
    (lambda: Scores(CASES, ("a",), np.zeros((4, 1, 3))), r"Got \(4, 1, 3\).*Name the classes"),
    (lambda: Scores(CASES, ("a",), np.zeros((4, 1)), ("x", "y", "z")), r"scores of shape \(4, 1, 3\), cases by models by classes"),
    (lambda: Scores(CASES, ("a",), np.zeros((4, 1, 2)), ("x", "y")), "three classes or more.*Of two classes"),
    (lambda: Scores(CASES, ("a", "a"), np.zeros((4, 2))), "each model once"),
    (lambda: Scores(CASES, ("a",), np.array([[0], [0], [np.nan], [0]])), "finite scores.*nan for case 'c' of model 'a'"),
    (lambda: Scores(CASES, ("a",), np.full((4, 1, 3), -.1), ("x", "y", "z")), "probabilities of 0 or more.*-0.1 for case 'a' of model 'a', 12"),
    (lambda: Scores(CASES.assign(label=2), ("a",), np.zeros((4, 1))), "labels 0 or 1 in the cases of Scores"),
    (lambda: Scores(CASES.assign(label=3), ("a",), np.zeros((4, 1, 3)), ("x", "y", "z")), r"labels 0 to 2 \(x, y, z\)"),
    (lambda: Scores(CASES.assign(group=["p", None, "q", "r"]), ("a",), np.zeros((4, 1))), "a group .patient. in every row"),
    (lambda: Scores(CASES.drop(columns="fold"), ("a",), np.zeros((4, 1))), "the column 'fold'"),
    (lambda: Scores(CASES.drop(columns="label"), ("a",), np.zeros((4, 1))), "the column 'label'"),
    (lambda: Scores(CASES.assign(time=1, event=1), ("a",), np.zeros((4, 1))), "one outcome"),
    (lambda: Scores(SURVIVAL, ("a",), np.zeros((4, 1, 3)), ("x", "y", "z")), "no classes beside time and event"),
    (lambda: Scores(SURVIVAL.assign(event=0), ("a",), np.zeros((4, 1))), "an event or more"),
    (lambda: Scores(SURVIVAL.drop(columns="event"), ("a",), np.zeros((4, 1))), "the column 'event'"),
    (lambda: Scores(SURVIVAL, ("a",), np.zeros((4, 1))).label, "scores of classes.*Use .outcome"),
    (lambda: Scores(SURVIVAL, ("a",), np.zeros((4, 1))).at(.5), "binary scores for a threshold.*survival"),
    (lambda: Scores(CASES, "ab", np.zeros((4, 2))), r"a tuple of models. Got 'ab'. One alone is written \('ab',\)"),
    (lambda: Scores(CASES, 5, np.zeros((4, 1))), "a tuple of models. Got 5"),
    (lambda: Scores(CASES, ("a",), np.zeros((4, 1, 3)), "xyz"), "a tuple of classes. Got 'xyz'"),
    (lambda: Scores(CASES, ("a",), [[0], [0], ["high"], [0]]), "numbers for the scores. Got list: .*high"),
    (lambda: Scores(CASES, ("a",), [[0], [0], [0, 1], [0]]), "numbers for the scores. Got list"),
    (lambda: Scores(CASES, ("a",), {"a": 1}), "numbers for the scores. Got dict"),
    (lambda: Scores(CASES, ("a",), None), r"scores of shape \(4, 1\)"),
    (lambda: Scores(CASES, ("a",), [[0], [0], [None], [0]]), "finite scores.*nan for case 'c'"),
    (lambda: Scores(CASES, ("image",), pd.DataFrame({"imge": range(4)})), "the column 'image' in the table of scores.*Did you mean 'imge'"),
    (lambda: Scores(CASES, ("a",), pd.DataFrame({"a": range(4)}, index=list("bacd"))), "in the order of the cases"),
    (lambda: Scores(CASES, ("a",), np.zeros((4, 1)), thresholds="high"), "numbers for the thresholds. Got str"),
    (lambda: Scores(CASES, ("a",), np.zeros((4, 1))).at("high"), "numbers for the threshold of 'a'. Got str"),
    (lambda: Scores(CASES, ("a",), np.zeros((4, 1)), thresholds=np.zeros(4)), r"thresholds of shape \(4, 1\).*Got \(4,\)"),
])
def test_scores_that_do_not_belong_together(make, says):
    with pytest.raises(DataError, match=says): make()


def test_lists_and_tables_of_scores_are_taken_as_numbers():
    values = [[.1, 1], [.2, 0], [.3, 1], [.4, 0]]
    frame = pd.DataFrame(values, columns=["a", "b"])
    for given in (values, np.array(values, np.float32), np.array(values).astype(str), frame, frame[["b", "a"]], frame.astype(object),
                  frame.set_axis(list("abcd"), axis=0)):
        scores = Scores(CASES, ["a", "b"], given, thresholds=[[.5, .5]] * 4)
        assert scores.scores.dtype == np.float64 and np.allclose(scores.scores, values, rtol=0, atol=1e-7) and scores.models == ("a", "b")
        assert scores.thresholds.shape == (4, 2) and replace(scores, models=("a",), scores=scores.scores[:, :1], thresholds=None).models == ("a",)
    assert Scores(CASES, ("a",), np.full((4, 1, 3), 1), ["x", "y", "z"]).classes == ("x", "y", "z")
    whole = np.zeros((4, 2))
    assert Scores(CASES, ("a", "b"), whole).scores is whole  # what is right is not copied


@pytest.mark.parametrize("group, unit, n_groups", [
    (list("qqpr"), [0, 0, 1, 2], 3), (None, [0, 1, 2, 3], np.nan), ([np.nan] * 4, [0, 1, 2, 3], np.nan), ([7, 7, 7, 7], [0, 0, 0, 0], 1),
    (np.array([1, "b", 1, "a"], object), [0, 1, 0, 2], 3), (pd.Categorical(list("qqpr"), categories=list("zpqr")), [0, 0, 1, 2], 3),
])
def test_patients_are_counted_whatever_their_type(group, unit, n_groups):
    scores = Scores(CASES.assign(group=group), ("a",), np.zeros((4, 1)))
    assert scores.unit.tolist() == unit and scores.unit.dtype == np.int64
    assert np.array_equal(scores.n_groups, n_groups, equal_nan=True) and isinstance(scores.n_groups, float)


def test_thresholds_are_laid_beside_the_scores():
    scores = Scores(CASES, ("a", "b"), np.zeros((4, 2)))
    assert np.array_equal(scores.at(.3).thresholds, np.full((4, 2), .3)) and scores.thresholds is None
    assert np.array_equal(scores.at({"b": [1, 2, 3, 4], "a": 0}).thresholds, [[0, 1], [0, 2], [0, 3], [0, 4]])
    assert np.array_equal(scores.at(.3).at(np.arange(4)).thresholds, np.repeat(np.arange(4), 2).reshape(4, 2))
    assert scores.at(np.inf).thresholds.min() == np.inf  # nobody is called positive
    for wrong, says in (({"a": .5}, "none for 'b'"), ({"a": .5, "b": .5, "bb": .5}, "Did you mean 'b'"),
                        ({"a": .5, "b": [1, 2]}, r"'b'.*shape \(2,\)"), (np.nan, "8 of 8 without one"),
                        ({"a": .5, "b": [.5, np.nan, .5, .5]}, "1 of 8 without one")):
        with pytest.raises(DataError, match=says): scores.at(wrong)


def test_labels_of_other_types_are_taken_as_numbers():
    for label in ([False, True, True, False], [0.0, 1.0, 1.0, 0.0], np.array([0, 1, 1, 0], object)):
        scores = Scores(CASES.assign(label=label), ("a",), np.zeros((4, 1)))
        assert scores.label.dtype == np.int64 and scores.outcome[0].tolist() == [0, 1, 1, 0]
    assert replace(scores, cases=CASES.assign(group=None)).group is None and scores.group.tolist() == list("ppqr") and len(scores) == 4


def test_score_matrix_does_not_depend_on_the_order_of_rows():
    pred = table(runs=(0,))
    shuffled = pred.sample(frac=1, random_state=0)
    a, b = score_matrix(pred), score_matrix(shuffled)
    assert np.array_equal(a.scores, b.scores[:, [b.models.index(m) for m in a.models]]) and a.cases.equals(b.cases)


def test_best_run_looks_at_validation_only():
    pred = table(runs=(0, 1, 2))
    test_rows = pred["split"] == "test"
    chosen = best_run(pred)
    spoilt_test = best_run(pred.assign(score_malignant=pred["score_malignant"].where(~test_rows, 1 - pred["score_malignant"])))
    keys = ["model", "fold", "run"]
    assert chosen[keys].drop_duplicates().equals(spoilt_test[keys].drop_duplicates())
    assert len(chosen) == 2 * 2 * 10


def test_best_run_takes_the_highest_auc_and_the_smallest_of_equals():
    pred = table(models=("m",), runs=(0, 1, 2), folds=(0,))
    pred["score_malignant"] = np.where(pred["run"] == 0, .5, pred["label"] * .8 + .1)
    assert best_run(pred)["run"].unique().tolist() == [1]
    with pytest.raises(DataError, match="validation rows.*none for .*'model': 'm'"): best_run(pred[pred["split"] == "test"])
    with pytest.raises(DataError, match="1 of 2 classes for .*'model': 'm'"): best_run(pred[(pred["split"] == "test") | (pred["label"] == 1)])


def test_best_run_of_several_classes_has_the_highest_macro_auc():
    pred = graded(models=("a", "b", "c"), runs=range(5), seed=1)
    chosen = best_run(pred)
    for model, rows in pred[pred["split"] == "val"].groupby("model"):
        auc = {run: roc_auc_score(r["label"], r.filter(like="score_"), multi_class="ovr", average="macro") for run, r in rows.groupby("run")}
        assert chosen.loc[chosen["model"] == model, "run"].unique().tolist() == [max(auc, key=auc.get)]
    with pytest.raises(DataError, match="2 of 3 classes"): best_run(pred[(pred["split"] == "test") | (pred["label"] > 0)])
    with pytest.raises(DataError, match="labels, to choose runs.*C-index"): best_run(followed())


@pytest.mark.parametrize("kind", ["multiclass", "survival"])
def test_ensemble_of_other_kinds(kind):
    pred = KINDS[kind](runs=(0, 1, 2))
    mean = check_predictions(ensemble(pred))
    columns = [c for c in pred if c.startswith("score_")]
    assert mean.columns.tolist() == pred.columns.tolist() and len(mean) == len(pred) / 3
    expected = pred.groupby(["model", "case_id"])[columns].mean()
    assert np.allclose(mean.set_index(["model", "case_id"])[columns].loc[expected.index], expected, rtol=0, atol=1e-15)


def test_ensemble_is_the_mean_over_runs():
    pred = table()
    mean = ensemble(pred)
    assert (mean["run"] == -1).all() and len(mean) == len(pred) / 2
    one = pred.query("model == 'table_only' and fold == 1 and case_id == 'c4'")["score_malignant"]
    assert mean.query("model == 'table_only' and fold == 1 and case_id == 'c4'")["score_malignant"].item() == one.mean()
    with pytest.raises(DataError, match="every run"): ensemble(pred.iloc[1:])


def test_late_fusion():
    pred = table()
    fused = late_fusion(pred, name="late")
    check_predictions(pd.concat([pred, fused]))
    logit = lambda p: np.log(p / (1 - p))
    wide = pred.pivot(index=["run", "fold", "case_id"], columns="model", values="score_malignant")
    got = fused.set_index(["run", "fold", "case_id"])["score_malignant"].reindex(wide.index)
    assert np.allclose(logit(got), logit(wide).mean(axis=1))
    with pytest.raises(DataError, match="Did you mean 'image_only'"): late_fusion(pred, models=("image-only", "table_only"))
    with pytest.raises(DataError, match="a tuple of models. Got 'image_only'"): late_fusion(pred, models="image_only")
    with pytest.raises(DataError, match="the same runs"): late_fusion(pred.iloc[1:])
    with pytest.raises(DataError, match="probabilities from 0 to 1"): late_fusion(spoilt("score_malignant", 3.0))
    assert np.isfinite(late_fusion(spoilt("score_malignant", 1.0))["score_malignant"]).all()


def test_late_fusion_of_several_classes_is_the_geometric_mean():
    pred = graded()
    fused = check_predictions(late_fusion(pred, name="late"))
    columns = ["score_low", "score_middle", "score_high"]
    p = {m: rows.set_index(["run", "case_id"])[columns] for m, rows in pred.groupby("model")}
    expected = np.sqrt(p["image_only"] * p["table_only"])
    expected = expected.div(expected.sum(axis=1), axis=0)
    assert np.allclose(fused.set_index(["run", "case_id"])[columns].loc[expected.index], expected, rtol=0, atol=1e-12)
    sure = pred.copy()
    sure[columns] = np.where((sure["model"] == "image_only").to_numpy()[:, None], [1, 0, 0], [0, 1, 0])
    assert np.allclose(late_fusion(sure)[columns], [.5, .5, 0], rtol=0, atol=.001)  # neither has the last word
    assert late_fusion(pred, models=("table_only",), name="same")[columns].shape == (40, 3)
    with pytest.raises(DataError, match="the same runs"): late_fusion(pred.iloc[1:])
    with pytest.raises(DataError, match="probabilities from 0 to 1"): late_fusion(spoilt("score_low", 3.0, make=graded))
    with pytest.raises(DataError, match="validation rows of every run and fold, for the scale of the scores. Got none in run 0 of fold 0"): late_fusion(followed(), how="mean")
    with pytest.raises(DataError, match="risks of survival, which share no scale. Say how: 'mean' .* or 'regression'"): late_fusion(followed())


def survived(n=120, folds=(0, 1), slides=1, seed=0) -> pd.DataFrame:
    """Two risks on scales that differ by fold, of which the image's says twice as much; val and test rows."""
    rng, parts = np.random.default_rng(seed), []
    image, genes = np.repeat(rng.normal(size=(2, n)), slides, axis=1) + rng.normal(size=(2, n * slides)) * (slides > 1)
    time, event = rng.exponential(np.exp(-image[::slides] - genes[::slides] / 2)), rng.integers(0, 4, n) > 0
    cases = pd.DataFrame({"case_id": np.arange(n * slides).astype(str), "group": np.repeat([f"p{i}" for i in range(n)], slides),
                          "time": np.repeat(time, slides), "event": np.repeat(event, slides).astype(int)})
    for fold in folds:
        split = np.where(np.arange(n * slides) // slides % 2 == fold, "val", "test")
        for model, risk in (("image_only", image), ("table_only", genes)):
            parts.append(prediction_rows(cases.assign(split=split), rng.normal() + rng.uniform(.1, 50) * risk, model=model, fold=fold))
    return pd.concat(parts, ignore_index=True)


def both(pred, fold, split):
    """The two models' scores of one part, and its outcome."""
    rows = pred[(pred["fold"] == fold) & (pred["split"] == split)]
    wide = rows.pivot(index="case_id", columns="model", values=[c for c in rows if c.startswith("score_")][0])
    return wide, rows.drop_duplicates("case_id").set_index("case_id").loc[wide.index]


def test_mean_risk_is_in_deviations_of_the_validation_part():
    pred = survived()
    fused = late_fusion(pred, how="mean").set_index(["fold", "case_id"])["score_risk"]
    for fold in (0, 1):
        val, test = both(pred, fold, "val")[0], both(pred, fold, "test")[0]
        expected = ((test - val.mean()) / val.std(ddof=0)).mean(axis=1)
        assert np.allclose(fused.loc[fold].loc[test.index], expected, rtol=0, atol=1e-12)
    moved = pred.assign(score_risk=np.where(pred["model"] == "image_only", 7 * pred["score_risk"] - 3, pred["score_risk"]))
    assert np.allclose(late_fusion(moved, how="mean")["score_risk"], late_fusion(pred, how="mean")["score_risk"], rtol=0, atol=1e-9)
    dead = pred.assign(score_risk=np.where(pred["model"] == "image_only", 0.3, pred["score_risk"]))  # says nothing: the other decides
    for how in ("mean", "regression"):
        rows = late_fusion(dead, how=how).query("fold == 0").set_index("case_id")["score_risk"]
        genes = dead.query("fold == 0 and model == 'table_only'").set_index("case_id")["score_risk"].loc[rows.index]
        assert rows.corr(genes) > 1 - 1e-9


@pytest.mark.parametrize("slides", [1, 3])
def test_cox_late_fusion_minimises_the_written_loss(slides):
    """Efron's partial likelihood per patient with a ridge on the slopes in deviations, each patient once, whatever its number of slides."""
    pred = survived(slides=slides, folds=(0,))
    fused = late_fusion(pred, how="regression").set_index("case_id")["score_risk"]
    scores, cases = both(pred, 0, "val")
    mean, sd = scores.mean(), scores.std(ddof=0)
    z = ((scores - mean) / sd).groupby(cases["group"]).mean()
    outcome = cases.groupby("group")[["time", "event"]].first().loc[z.index]
    unit, order = z.std().to_numpy(), np.argsort(-outcome["time"].to_numpy())
    x, died = (z / z.std()).to_numpy()[order], outcome["event"].to_numpy()[order] == 1

    def loss(beta):
        risk = x @ beta
        return -(risk - np.logaddexp.accumulate(risk))[died].sum() / len(x) + .01 / 2 * beta @ beta
    found = minimize(loss, np.zeros(2), tol=1e-12).x / unit
    test = both(pred, 0, "test")[0]
    assert np.allclose(fused.loc[test.index], ((test - mean) / sd) @ found, rtol=0, atol=2e-4)
    assert 1.2 < found[0] / found[1] < 4 or slides > 1


@pytest.mark.parametrize("fold, made", [(0, "plain"), (0, "tied_times"), (0, "tied_both")])
def test_cox_with_a_ridge_equals_r(fold, made):
    folder = Path(__file__).parent / "oracles"
    rows, answers = pd.read_csv(folder / "survival_groups.csv"), json.loads((folder / "survival_groups_r.json").read_text())
    val = rows[(rows["case"] == made) & (rows["part"] == "val") & (rows["fold"] == fold)]
    one, other = (val[val["slide"] == s].reset_index(drop=True) for s in (0, 1))
    patients = one[["time", "event"]].assign(**{"0": one["risk"] / one["risk"].std(), "1": other["risk"] / other["risk"].std()})
    assert np.allclose(_fit_cox(patients, ["0", "1"]), answers["cases"][made]["slopes"], rtol=0, atol=1e-7)  # where R stops


@pytest.mark.parametrize("make", [table, graded])
def test_logistic_late_fusion(make):
    pred = make()
    grown = pd.concat([pred.assign(case_id=pred["case_id"] + f"_{k}", split=split) for k, split in enumerate(("val", "val", "test"))], ignore_index=True)
    fused = check_predictions(late_fusion(grown, how="regression"))
    columns = [c for c in fused if c.startswith("score_")]
    assert len(fused) == len(grown) / 2 and (len(columns) == 1 or np.allclose(fused[columns].sum(axis=1), 1))
    assert fused[columns].to_numpy().min() > 0 and fused[columns].to_numpy().max() < 1
    if len(columns) == 1:  # the gradient of the written loss is 0
        rows = grown[(grown["run"] == 0) & (grown["fold"] == 0) & (grown["split"] == "val")]
        wide = rows.pivot(index="case_id", columns="model", values=columns[0])
        odds = np.log(wide / (1 - wide))
        z, label = (odds - odds.mean()) / odds.std(ddof=0), rows.drop_duplicates("case_id").set_index("case_id")["label"].loc[wide.index]
        p = fused.query("run == 0 and fold == 0 and split == 'val'").set_index("case_id")[columns[0]].loc[wide.index]
        slope = np.linalg.lstsq(np.column_stack([z, np.ones(len(z))]), np.log(p / (1 - p)), rcond=None)[0]
        assert np.allclose(z.T @ (p - label) / len(z) + .01 * slope[:2], 0, atol=1e-5) and abs((p - label).mean()) < 1e-5


@pytest.mark.parametrize("how", ["mean", "regression"])
def test_late_fusion_never_looks_at_the_test_rows(how):
    pred = survived(folds=(0,))
    test = pred["split"] == "test"
    spoilt = pred.assign(time=np.where(test, 1.0, pred["time"]), event=np.where(test, 1, pred["event"]),
                         score_risk=np.where(test & (pred["case_id"] == "1"), 1e6, pred["score_risk"]))
    a, b = (late_fusion(p, how=how).set_index("case_id")["score_risk"].drop("1") for p in (pred, spoilt))
    assert np.array_equal(a, b.loc[a.index])


def test_late_fusion_with_too_little_to_fit():
    pred, labels = survived(folds=(0,)), table()
    with pytest.raises(DataError, match="a known way of late fusion. Got 'cox'"): late_fusion(pred, how="cox")
    few = pred.assign(event=np.where(pred["split"] == "val", pred["case_id"].isin(["0", "2", "4"]), pred["event"]).astype(int))
    with pytest.raises(DataError, match="6 events or more in the validation part, to weigh 2 models. Got 3 in run 0 of fold 0. Use how='mean'"):
        late_fusion(few, how="regression")
    with pytest.raises(DataError, match="validation rows of every run and fold"): late_fusion(pred[pred["split"] == "test"], how="regression")
    one = labels.assign(split="val", label=(labels["case_id"] == "c1").astype(int))
    with pytest.raises(DataError, match="6 cases of each class or more in the validation part"): late_fusion(one, how="regression")


def test_late_fusion_of_two_classes_is_a_geometric_mean_too():
    a, b = np.random.default_rng(0).random((2, 50)) * .98 + .01
    cases = pd.DataFrame({"case_id": np.arange(50).astype(str), "label": [0, 1] * 25, "split": "test"})
    fused = late_fusion(pd.concat([prediction_rows(cases, a, model="image_only"), prediction_rows(cases, b, model="table_only")]))
    yes, no = np.sqrt(a * b), np.sqrt((1 - a) * (1 - b))
    assert np.allclose(fused.set_index("case_id").loc[cases["case_id"], "score_positive"], yes / (yes + no), rtol=0, atol=1e-12)


def write(folder, **files):
    """name -> text, as files; `a__b` is b in the folder a."""
    paths = []
    for name, text in files.items():
        paths.append(folder / f"{name.replace('__', '/')}.csv")
        paths[-1].parent.mkdir(exist_ok=True, parents=True)
        paths[-1].write_text(text)
    return paths


A = "label,score\n1,.5\n0,.2\n0,.1\n"


@pytest.mark.parametrize("files, names", [
    (["fusion", "image"], ["fusion", "image"]),
    (["a__model", "b__model"], ["a/model", "b/model"]),
    (["a__model", "b__model", "c__other"], ["a/model", "b/model", "other"]),
    (["x__a__model", "y__a__model", "b__model"], ["x/a/model", "y/a/model", "b/model"]),
    (["a__model.v1", "b__model.v2"], ["model.v1", "model.v2"]),
])
def test_models_are_named_by_their_files(tmp_path, files, names):
    paths = write(tmp_path, **dict.fromkeys(files, A))
    assert read_scores(paths)["model"].unique().tolist() == names
    assert read_scores([str(p) for p in paths], model=list("abc")[:len(paths)])["model"].unique().tolist() == list("abc")[:len(paths)]


def test_a_relative_file_beside_a_folder(tmp_path, monkeypatch):
    write(tmp_path / "here", model=A, b__model=A)
    monkeypatch.chdir(tmp_path / "here")
    assert read_scores(["model.csv", "b/model.csv"])["model"].unique().tolist() == ["here/model", "b/model"]
    assert read_scores("model.csv")["model"].unique().tolist() == ["model"]
    with pytest.raises(DataError, match="each file once.*model.csv more than once.*Leave one out"): read_scores(["model.csv", "b/../model.csv"])
    assert read_scores(["model.csv", "model.csv"], model=("a", "b"))["model"].nunique() == 2
    for files, names in (([], None), (["model.csv"], ("a", "b")), (["model.csv", "b/model.csv"], ("a", "a")), (["model.csv", "b/model.csv"], "a")):
        with pytest.raises(DataError, match="each with a name of its own"): read_scores(files, model=names)


def test_several_files_are_those_files_one_by_one(tmp_path):
    paths = write(tmp_path, a="id,who,label,score\n1,x,1,.9\n2,x,0,.2\n3,y,0,.4\n", b="id,who,label,score\n3,y,0,.3\n1,x,1,.8\n2,x,0,.1\n")
    together = read_scores(paths, case_id="id", group="who")
    assert together.equals(pd.concat([read_scores(p, case_id="id", group="who") for p in paths], ignore_index=True))
    assert score_matrix(together).scores.tolist() == [[.9, .8], [.2, .1], [.4, .3]]


@pytest.mark.parametrize("other, options, says", [
    ("label,score\n1,.5\n1,.2\n1,.1\n", {}, r"the same label in every file. Got 0 in \S+a.csv and 1 in \S+b.csv for row 3, 2 such rows"),
    ("label,score\n1,.5\n0,.2\n", {}, r"files of the same length.*3 rows in \S+a.csv and 2 in \S+b.csv.*case_id.*--case-id"),
    ("label,score,who\n1,.5,x\n0,.2,y\n0,.3,z\n", {"group": "who"}, r"the column 'who' in \S+a.csv"),
])
def test_files_matched_by_row_that_differ(tmp_path, other, options, says):
    with pytest.raises(DataError, match=f"(?s){says}"): read_scores(write(tmp_path, a=A, b=other), **options)


@pytest.mark.parametrize("other, says", [
    ("id,who,label,score\n3,y,0,.3\n1,x,0,.8\n2,x,0,.1\n", r"the same label.*Got 1 in \S+a.csv and 0 in \S+b.csv for case '1'"),
    ("id,who,label,score\n3,z,0,.3\n1,x,1,.8\n2,x,0,.1\n", r"the same group.*Got y in \S+a.csv and z in \S+b.csv for case '3'"),
    ("id,who,label,score\n3,y,0,.3\n2,x,0,.1\n", r"the same case ids.*Got 1 of \S+a.csv that \S+b.csv lacks, the first '1'\."),
    ("id,who,label,score\n3,y,0,.3\n04,x,1,.8\n5,x,0,.1\n", r"Got 2 of \S+a.csv .*the first '1'; 2 of \S+b.csv that \S+a.csv lacks, the first '04'"),
    ("id,who,label,score\n3,y,0,.3\n3,x,1,.8\n2,x,0,.1\n", r"one row per id in \S+b.csv"),
])
def test_files_matched_by_case_that_differ(tmp_path, other, says):
    paths = write(tmp_path, a="id,who,label,score\n1,x,1,.9\n2,x,0,.2\n3,y,0,.4\n", b=other)
    with pytest.raises(DataError, match=f"(?s){says}"): read_scores(paths, case_id="id", group="who")


THREE = {"label": "grade", "score": ("prob_low", "prob_middle", "score_high")}


@pytest.mark.parametrize("grades", [("high", "low", "middle"), (2, 0, 1), ("2.0", "0.0", "1.0")])
def test_classes_by_name_or_position(tmp_path, grades):
    text = "grade,prob_low,prob_middle,score_high\n" + "".join(f"{g},.2,.3,.5\n" for g in grades)
    pred = read_scores(write(tmp_path, a=text), **THREE)
    assert pred["label"].tolist() == [2, 0, 1] and score_matrix(pred).classes == ("low", "middle", "high")


def test_classes_called_by_numbers_are_names_first(tmp_path):
    text = "label,prob_1,prob_2,prob_3\n1,.2,.3,.5\n3,.2,.3,.5\n"
    assert read_scores(write(tmp_path, a=text), score=("prob_1", "prob_2", "prob_3"))["label"].tolist() == [0, 2]
    zero = read_scores(write(tmp_path, a=text.replace("3,.2", "0,.2")), score=("prob_1", "prob_2", "prob_3"))
    assert zero["label"].tolist() == [1, 0]  # a 0 is no name, so all are positions
    table = pd.DataFrame({"label": np.array([3, 1], np.float32), "prob_1": .1, "prob_2": .2, "prob_3": .3})
    table.to_parquet(tmp_path / "a.parquet")
    assert read_scores(tmp_path / "a.parquet", score=("prob_1", "prob_2", "prob_3"))["label"].tolist() == [2, 0]


@pytest.mark.parametrize("rows, says", [
    ("high,.2,.3,.5\nhihg,.2,.3,.5\n", "one of the classes low, middle, high.*'hihg' in row 3"),
    ("2,.2,.3,.5\n3,.2,.3,.5\n", "positions 0 to 2.*3 in row 3, 1 such rows"),
    ("high,.2,.3,.5\n,.2,.3,.5\n", "nan in row 3"),
    ("1.5,.2,.3,.5\n", "1.5 in row 2"),
    ("high,.2,.3,.5\nlow,.2,,.5\n", "finite numbers in the column 'prob_middle'.*nan in row 3"),
    ("high,.2,.3,.5\nlow,.2,-.3,.5\n", "probabilities of 0 or more in the column 'score_middle'.*'row 2'"),
])
def test_bad_files_of_several_classes(tmp_path, rows, says):
    paths = write(tmp_path, a="grade,prob_low,prob_middle,score_high\n" + rows)
    with pytest.raises(DataError, match=f"(?s){says}"): read_scores(paths, **THREE)


def test_files_of_several_classes_that_differ_name_the_classes(tmp_path):
    head = "grade,prob_low,prob_middle,score_high\n"
    paths = write(tmp_path, a=head + "low,.2,.3,.5\n", b=head + "2,.2,.3,.5\n")
    with pytest.raises(DataError, match="Got low in .* and high in .* for row 2"): read_scores(paths, **THREE)


SURVIVED = {"label": ("months", "died"), "score": "risk"}


def test_times_and_events_of_a_file(tmp_path):
    paths = write(tmp_path, a="id,months,died,risk\n1,5,1,-3\n2,31.5,0,.2\n", b="id,months,died,risk\n2,31.5,False,.2\n1,5,True,-3\n")
    scores = score_matrix(read_scores(paths, case_id="id", **SURVIVED))
    assert [o.tolist() for o in scores.outcome] == [[5, 31.5], [1, 0]] and scores.scores.tolist() == [[-3, -3], [.2, .2]]
    with pytest.raises(DataError, match="(?s)the same time.*5.0 in .* and 31.5 in .* for row 2"): read_scores(paths, **SURVIVED)


@pytest.mark.parametrize("rows, says", [
    ("5,1,.2\n-1,1,.2\n", "times of 0 or more in the column 'months'.*-1 in row 3"),
    ("5,1,.2\n,1,.2\n", "finite numbers in the column 'months'.*nan in row 3"),
    ("5,1,.2\n3,2,.2\n", "events 0 or 1 in the column 'died'.*2 in row 3"),
    ("5,1,.2\n3,yes,.2\n", "finite numbers in the column 'died'.*'yes' in row 3"),
    ("5,0,.2\n3,0,.2\n", "an event or more in .*a.csv.*2 cases"),
    ("5,1,.2\n3,0,inf\n", "finite numbers in the column 'risk'.*inf in row 3"),
])
def test_bad_files_of_survival(tmp_path, rows, says):
    with pytest.raises(DataError, match=f"(?s){says}"): read_scores(write(tmp_path, a="months,died,risk\n" + rows), **SURVIVED)


@pytest.mark.parametrize("options, says", [
    ({"score": ("score", "other")}, "Of two classes give the positive one's column alone"),
    ({"score": ()}, "the column of the positive class"),
    ({"score": ("prob_a", "score_a", "b")}, "a column of scores for each class.*the classes a, a, b"),
    ({"label": ("time", "event", "label")}, "the two of time and event"),
    ({"label": ("time", "event"), "score": ("a", "b", "c")}, "one column of the risk"),
    ({"label": ("label", "evnt")}, "the column 'evnt'"),
])
def test_columns_that_name_no_kind(tmp_path, options, says):
    with pytest.raises(DataError, match=says): read_scores(write(tmp_path, a=A), **options)


def test_patients_unknown_survive_every_step():
    pred = pd.concat([graded(), late_fusion(graded())])
    assert pred["group"].isna().all() and score_matrix(ensemble(pred)).group is None


NAMED = "finding,score\nmalignant,.9\nbenign,.2\nbenign,.4\n"


def test_names_of_two_classes(tmp_path):
    pred = read_scores(write(tmp_path, a=NAMED), label="finding", positive="malignant")
    assert pred["label"].tolist() == [1, 0, 0] and "score_malignant" in pred
    other = read_scores(write(tmp_path, b="finding,score\n1,.9\n2,.2\n"), label="finding", positive="2")
    assert other["label"].tolist() == [0, 1]


@pytest.mark.parametrize("rows, options, says", [
    (NAMED, {}, "labels 0 or 1 in the column 'finding'.*names, such as 'malignant'.*--positive 'malignant'"),
    (NAMED, {"positive": "malignat"}, "Did you mean 'malignant'"),
    (NAMED + "normal,.1\n", {"positive": "malignant"}, "two names and no gap.*benign, malignant, normal"),
    (NAMED + ",.1\n", {"positive": "malignant"}, "two names and no gap"),
    (NAMED, {"positive": "malignant", "label": ("finding", "other")}, "no positive class but of two classes"),
])
def test_names_that_do_not_tell_two_classes(tmp_path, rows, options, says):
    with pytest.raises(DataError, match=f"(?s){says}"): read_scores(write(tmp_path, a=rows), **{"label": "finding", **options})
