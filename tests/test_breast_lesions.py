"""The BrEaST cohort as it is: counts, missing values, leaks, masks, and how far plain logistic regression gets."""
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion_nb.data.breast_lesions import read_breast_lesions
from fusion_nb.data.images import decode_image
from fusion_nb.schema import DataError


@pytest.fixture(scope="module")
def folder(data_dir):
    return data_dir / "breast_lesions_usg"


@pytest.fixture(scope="module")
def both(folder):
    return read_breast_lesions(folder, features="both")


def test_counts(both):
    assert len(both) == both.n_groups == 252 and both.classes == ("benign", "malignant")
    assert both.table["label"].value_counts().to_dict() == {0: 154, 1: 98}
    assert any(note.startswith("4 rows left out, Classification normal") for note in both.notes)
    assert both.table["Age"].isna().sum() == 41 and both.table["Age"].between(18, 100).sum() == 211
    assert "CC BY 4.0" in both.source and not both.synthetic


def test_multi_values(both):
    values = {name: {v for cell in both.table[name].dropna() for v in cell} for name in ("Margin", "Signs", "Tissue_composition")}
    assert values["Margin"] == {"circumscribed", "angular", "indistinct", "microlobulated", "spiculated"}
    assert {"palpable", "redness", "warmth", "no"} <= values["Signs"] and not any("&" in v for v in values["Signs"])
    assert "lactating" in values["Tissue_composition"] and not any("not available" in v for names in values.values() for v in names)
    assert both.table["Margin"].isna().sum() == 0 and both.table["Symptoms"].isna().sum() > 90


def test_feature_sets(folder, both):
    clinical = [v.name for v in read_breast_lesions(folder).variables]
    descriptors = [v.name for v in read_breast_lesions(folder, features="descriptors").variables]
    assert clinical == ["Age", "Tissue_composition", "Signs", "Symptoms"] and len(descriptors) == 7
    assert [v.name for v in both.variables] == clinical + descriptors


@pytest.mark.parametrize("leak", ["BIRADS", "Interpretation", "Verification", "Diagnosis"])
def test_leaks_are_refused_unless_by_name(folder, leak):
    with pytest.raises(DataError, match=rf"'{leak}'.*allow_leaks=\['{leak}'\]"): read_breast_lesions(folder, features=["clinical", leak])
    cohort = read_breast_lesions(folder, features=["clinical", leak], allow_leaks=[leak])
    assert leak in cohort.table and f"{leak} is an input although it leaks" in cohort.notes[0]


def test_normals(folder):
    cohort = read_breast_lesions(folder, features="descriptors", normals=True)
    assert len(cohort) == 256 and cohort.table["label"].sum() == 98 and "count as benign" in cohort.notes[-1]
    assert cohort.table["mask"].isna().sum() == 4 and cohort.table["Shape"].isna().sum() == 4


def test_masks_fit_their_images(folder, both):
    book = pd.read_excel(next(folder.glob("*.xlsx")), dtype={"CaseID": str}).set_index("CaseID")
    for case_id, image, mask in both.table[["case_id", "image", "mask"]].itertuples(index=False):
        assert mask.endswith(book["Mask_tumor_filename"][case_id]) and Image.open(mask).size == Image.open(image).size


def test_white_below_transparent_does_not_show(folder, both):
    image = both.table.set_index("case_id")["image"]["5"]
    rgba = np.asarray(Image.open(image))
    hidden = rgba[..., 3] == 0
    assert hidden.mean() > 0.2 and (rgba[hidden][:, :3] == 255).any()  # as the file is
    side = max(rgba.shape[:2])
    square = decode_image(image, size=side, expect_mode="RGBA")[0]
    top, left = ((side - n) // 2 for n in rgba.shape[:2])
    assert (square[top:top + rgba.shape[0], left:left + rgba.shape[1]][hidden] == 0).all()


def test_a_folder_without_workbook(tmp_path):
    with pytest.raises(DataError, match="fusion-nb data fetch breast-lesions-usg"): read_breast_lesions(tmp_path)


def out_of_fold_auc(cohort):
    """Logistic regression on one-hot columns, five folds, three shuffles: what any study on these columns should reach."""
    def joined(cell): return "missing" if cell is None else "|".join([cell] if isinstance(cell, str) else cell)
    x = pd.concat([cohort.table[[v.name]] if v.kind == "continuous" else cohort.table[v.name].map(joined).str.get_dummies().add_prefix(v.name)
                   for v in cohort.variables], axis=1).astype(float)
    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    columns = make_column_transformer((numbers, [v.name for v in cohort.variables if v.kind == "continuous"]), remainder="passthrough")
    model, y = make_pipeline(columns, LogisticRegression(max_iter=1000)), cohort.table["label"]
    folds = [StratifiedKFold(5, shuffle=True, random_state=seed) for seed in range(3)]
    return np.mean([roc_auc_score(y, cross_val_predict(model, x, y, cv=f, method="predict_proba")[:, 1]) for f in folds])


@pytest.mark.parametrize("features, expected", [("clinical", 0.79), ("descriptors", 0.91)])
def test_logistic_regression_reaches_the_known_auc(folder, features, expected):
    auc = out_of_fold_auc(read_breast_lesions(folder, features=features))
    print(f"{features}: out-of-fold AUC {auc:.3f} (mean of 3 shuffles)")
    assert auc == pytest.approx(expected, abs=0.02)
