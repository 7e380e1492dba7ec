"""The prediction table: what it refuses, and that files come back as they went."""
import numpy as np
import pandas as pd
import pytest

from fusion_nb.predictions import (Scores, best_run, check_predictions, ensemble, late_fusion, prediction_rows, read_predictions,
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


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_files_come_back_as_they_went(tmp_path, name):
    pred = table()
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


def spoilt(column, value, row=3):
    pred = table()
    pred[column] = pred[column].astype(object).where(pred.index != row, value)
    return pred.infer_objects()


@pytest.mark.parametrize("pred, says", [
    (lambda: spoilt("score_malignant", np.nan), "finite scores.*nan for case 'c3' of model 'image_only'"),
    (lambda: spoilt("score_malignant", np.inf), "finite scores.*inf"),
    (lambda: spoilt("label", 2), "labels 0 or 1.*Got 2 in 1 rows"),
    (lambda: spoilt("label", 0), "one label for each case.*'c3'"),
    (lambda: spoilt("group", "p9"), "one group for each case.*'c3'"),
    (lambda: spoilt("group", None), "a group .patient. in every row.*1 rows without"),
    (lambda: spoilt("split", "Test"), "split.*Did you mean 'test'"),
    (lambda: spoilt("case_id", "c4"), "one row per .*case_id"),
    (lambda: table().drop(columns="fold"), "the column 'fold'"),
    (lambda: table().drop(columns="score_malignant"), "one column score_"),
    (lambda: table().assign(score_benign=.5), "one column score_"),
])
def test_a_broken_contract_is_refused(pred, says):
    with pytest.raises(DataError, match=says): check_predictions(pred())


def test_scores_that_are_no_probabilities_are_noted():
    with pytest.warns(UserWarning, match="image_only: scores outside 0 to 1"): check_predictions(spoilt("score_malignant", 1.5))


def test_prediction_rows_refuses_another_length():
    cases = pd.DataFrame({"case_id": ["a", "b"], "label": [0, 1], "split": "test"})
    with pytest.raises(DataError, match="3 scores of 'm' for 2 cases"): prediction_rows(cases, [1, 2, 3], model="m")
    with pytest.raises(DataError, match="the column 'split'"): prediction_rows(cases.drop(columns="split"), [1, 2], model="m")


@pytest.mark.parametrize("text, says", [
    ("y_true,y_prob\n1,0.5\n", "the column 'label'"),
    ("labels,score\n1,0.5\n", "Did you mean 'labels'"),
    ("label,score\n1,0.5\n0,high\n", "finite numbers in the column 'score'.*'high' in row 3"),
    ("label,score\n1,0.5\n0,\n", "finite numbers in the column 'score'.*nan in row 3"),
    ("label,score\n1,0.5\n0,inf\n", "finite numbers in the column 'score'.*inf in row 3"),
    ("label,score\n1,0.5\nmalignant,.1\n", "finite numbers in the column 'label'.*'malignant' in row 3"),
    ("label,score\n1,0.5\n2,.1\n", "labels 0 or 1.*Got 2.0 in 1 rows"),
    ("label,score\n1,0.5\n0,.1,7,8\n", "a readable csv file.*line 3"),
    ('label,score\n1,"0.5\n', "a readable csv file"),
    ("label,score\n", "rows of scores.*header only"),
    ("", "a readable csv file"),
])
def test_bad_score_files(tmp_path, text, says):
    (tmp_path / "theirs.csv").write_text(text)
    with pytest.raises(DataError, match=f"(?s){says}"): read_scores(tmp_path / "theirs.csv")


def test_bad_score_files_of_other_kinds(tmp_path):
    (tmp_path / "image.csv").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    (tmp_path / "fake.parquet").write_text("label,score\n")
    (tmp_path / "gap.csv").write_text("label,score,id\n1,.5,a\n0,.4,\n")
    (tmp_path / "twice.csv").write_text("label,score,id\n1,.5,a\n0,.4,a\n")
    for name, options, says in (("image.csv", {}, "a readable csv file"), ("fake.parquet", {}, "a readable parquet file"),
                                ("none.csv", {}, "not there"), ("scores.txt", {}, "suffix"),
                                ("gap.csv", {"case_id": "id"}, "a value in every row of 'id'.*row 3"),
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
    with pytest.raises(DataError, match="shape"): Scores(pred.head(2), ("a",), np.zeros((3, 1)))


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
    with pytest.raises(DataError, match="one class only"): best_run(pred[(pred["split"] == "test") | (pred["label"] == 1)])


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
    with pytest.raises(DataError, match="the same runs"): late_fusion(pred.iloc[1:])
    with pytest.raises(DataError, match="probabilities from 0 to 1"): late_fusion(spoilt("score_malignant", 3.0))
    assert np.isfinite(late_fusion(spoilt("score_malignant", 1.0))["score_malignant"]).all()
