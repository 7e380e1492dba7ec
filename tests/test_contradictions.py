"""Contradictions: every rule finds its planted one, true numbers never raise an alarm whatever their rounding, and the paper's are found."""
import numpy as np
import pandas as pd
import pytest
import yaml
from sklearn.metrics import confusion_matrix, f1_score, precision_score, recall_score, roc_auc_score

from fusion_nb.contradictions import RULES, Claims, find_contradictions, read_claims
from fusion_nb.schema import DataError

CLASSES = ("mitosis", "tumour", "other")


@pytest.fixture
def claims_of(tmp_path):
    """Claims from the keys of a file."""
    def make(**given) -> Claims:
        file = tmp_path / "claims.yaml"
        file.write_text(yaml.safe_dump({"title": "Invented", "source": "this test", "classes": list(CLASSES), "values": {}, **given}))
        return read_claims(file)
    return make


def values(where="Table 1", **models): return {where: models}
def kinds(claims): return find_contradictions(claims)["kind"].tolist()


# ---- nothing where there is nothing

def true_paper(seed, digits, per_cent=False):
    """Numbers of two simulated models, as a careful author prints them: by scikit-learn, rounded; and words that are true of them."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(30, 400))
    label = np.concatenate([[0, 1, 2] * 3, rng.choice(3, n - 9, p=[.1, .7, .2])])
    def show(x): return f"{100 * x:.{max(digits - 2, 0)}f}%" if per_cent else f"{x:.{digits}f}"
    printed, exact, matrices = {}, {}, {}
    for model, signal in (("CNN", rng.uniform(.5, 2)), ("Fusion", rng.uniform(1, 4))):
        p = np.exp(signal * np.eye(3)[label] + rng.normal(size=(n, 3)))
        p /= p.sum(axis=1, keepdims=True)
        called = p.argmax(axis=1)
        m = confusion_matrix(label, called)
        average = rng.choice(["macro", "weighted", "micro"])  # which one is not said
        exact[model] = {"accuracy": (called == label).mean(), "macro_auc": roc_auc_score(label, p, multi_class="ovr"),
                        **{f"auc:{c}": roc_auc_score(label == k, p[:, k]) for k, c in enumerate(CLASSES)},
                        **{f"recall:{c}": m[k, k] / m[k].sum() for k, c in enumerate(CLASSES)}}
        for name, f in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            exact[model] |= {name: f(label, called, average=average, zero_division=0), f"macro_{name}": f(label, called, average="macro", zero_division=0),
                             f"{name}:tumour": f(label, called, labels=[1], average="macro", zero_division=0)}
        printed[model] = {k: show(v) for k, v in exact[model].items()}
        whole = {c: {d: int(m[k, j]) for j, d in enumerate(CLASSES) if j != k} for k, c in enumerate(CLASSES)}
        unsaid = {c: w if rng.random() < .5 else sum(w.values()) for c, w in whole.items()}  # what they were called is not always said
        matrices[model] = {"where": "Figure 1", "dataset": "D", "part": "test", "right": {c: int(m[k, k]) for k, c in enumerate(CLASSES)}, "wrong": unsaid}
    order = {k: ("above" if exact["Fusion"][k] > exact["CNN"][k] else "below" if exact["Fusion"][k] < exact["CNN"][k] else "at least") for k in exact["CNN"]}
    statements = [{"where": "Text", "text": f"{k} {r}", "model": "Fusion", "metric": k, "relation": r, "than": ["CNN"]} for k, r in order.items()]
    gap = exact["Fusion"]["macro_auc"] - exact["CNN"]["macro_auc"]
    differences = [{"where": "Text", "text": "gap", "a": "Fusion", "b": "CNN", "metric": "macro_auc", "difference": show(gap)}] if gap > 0 else []
    sizes = {"dots": 5 * n, **{f"dots:{c}": int(5 * (label == k).sum()) for k, c in enumerate(CLASSES)}}
    return {"values": {"Table 1": printed, "Text": {"Fusion": {"macro_auc": f"{exact['Fusion']['macro_auc']:.2f}"}}}, "matrices": matrices, "statements": statements, "differences": differences,
            "datasets": {"D": {"source": "s", "sizes": sizes}}, "parts": [{"where": "Text", "text": "a fifth", "dataset": "D", "unit": "dots", "part": "test", "share": "20%"}],
            "counts": [{"where": "Text", "text": f"{5 * n} dots", "dataset": "D", "unit": "dots", "number": str(5 * n)}]}


@pytest.mark.parametrize("digits, per_cent", [(1, False), (2, False), (3, False), (4, False), (3, True)])
def test_true_numbers_raise_no_alarm(claims_of, digits, per_cent):
    for seed in range(4):
        found = find_contradictions(claims_of(**true_paper(seed, digits, per_cent)))
        assert found.empty, (seed, found["sentence"].tolist())


def test_an_empty_paper(claims_of):
    found = find_contradictions(claims_of())
    assert found.empty and found.columns.tolist() == ["kind", "claim", "contradicted_by", "sentence"]


def test_every_true_share_is_a_whole_number_of_cases(claims_of):
    for n in (7, 30):
        for digits in (1, 2, 3):
            every = {f"CNN {k}": {"accuracy": f"{k / n:.{digits}f}", "cases": str(n)} for k in range(n + 1)}
            assert not kinds(claims_of(values=values(**every))), (n, digits)


# ---- each rule on its planted contradiction, and none other

MATRIX = {"where": "Figure 1", "right": {"mitosis": 31, "tumour": 900, "other": 60}, "wrong": {"mitosis": {"other": 359, "tumour": 0}, "tumour": 5, "other": 4}}
SAID = {"where": "Text", "text": "better", "model": "Fusion", "metric": "macro_auc", "relation": "above", "than": ["CNN"]}
WORLD = {"datasets": {"D": {"source": "s", "within": "10%", "sizes": {"dots": 1300, "dots:mitosis": 400}}}}

PLANTED = {
    "printed twice": [dict(values=values(CNN={"accuracy": "0.95"}) | values("Text", CNN={"accuracy": "0.97"})),
                      dict(values=values(CNN={"accuracy": "0.97"}) | values("Text", CNN={"accuracy": "95%"}))],
    "mean of the classes": [dict(values=values(CNN={"macro_auc": "1.000", "auc:mitosis": "0.927"})),
                            dict(values=values(CNN={"macro_f1": "0.50", "f1:mitosis": "0.80", "f1:tumour": "0.90"})),
                            dict(values=values(CNN={"macro_auc": "0.960", "auc:mitosis": "0.994", "auc:tumour": "0.999", "auc:other": "1.000"}))],
    "F1 of precision and recall": [dict(values=values(CNN={"precision": "0.89", "recall": "0.87", "f1": "0.89"})),
                                   dict(values=values(CNN={"macro_precision": "0.5", "macro_recall": "0.5", "macro_f1": "0.7"})),
                                   dict(values=values(CNN={"precision:mitosis": "0.90", "recall:mitosis": "0.90", "f1:mitosis": "0.80"}))],
    "no whole number of cases": [dict(values=values(CNN={"accuracy": "0.95", "cases": "30"})), dict(values=values(CNN={"recall:mitosis": "0.66", "cases:mitosis": "10"}))],
    "claimed order": [dict(values=values(CNN={"macro_auc": "1.000"}, Fusion={"macro_auc": "0.997"}), statements=[SAID]),
                      dict(values=values(CNN={"macro_auc": "0.995"}, Fusion={"macro_auc": "0.997"}), statements=[{**SAID, "relation": "at most"}]),
                      dict(values=values(CNN={"macro_auc": "0.90", "accuracy": "0.90"}, Fusion={"macro_auc": "0.99", "accuracy": "0.80"}), statements=[{**SAID, "metric": "all", "relation": "at least"}]),
                      dict(matrices={"CNN": MATRIX}, statements=[{"where": "Text", "text": "most errors", "model": "CNN", "metric": "errors:tumour", "relation": "above",
                                                                 "than_metrics": ["errors:mitosis", "errors:other"]}]),
                      dict(matrices={"CNN": MATRIX}, statements=[{"where": "Text", "text": "as many", "model": "CNN", "metric": "errors:other", "relation": "above", "than_metrics": ["errors:other"]}])],
    "claimed difference": [dict(values=values(CNN={"macro_auc": "0.927"}, Fusion={"macro_auc": "0.994"}),
                                differences=[{"where": "Text", "text": "by 8 points", "a": "Fusion", "b": "CNN", "metric": "macro_auc", "difference": "8%"}])],
    "confusion matrix": [dict(values=values(CNN={"accuracy": "0.997"}), matrices={"CNN": MATRIX}), dict(values=values(CNN={"macro_f1": "0.996"}), matrices={"CNN": MATRIX}),
                         dict(values=values(CNN={"recall": "0.900"}), matrices={"CNN": MATRIX}), dict(values=values(CNN={"recall:mitosis": "0.9"}), matrices={"CNN": MATRIX}),
                         dict(values=values(CNN={"cases": "1,360"}), matrices={"CNN": MATRIX})],
    "one part, two sizes": [dict(**WORLD, matrices={"CNN": {**MATRIX, "dataset": "D", "part": "test"},
                                                    "MLP": {**MATRIX, "dataset": "D", "part": "test", "right": {"mitosis": 30, "tumour": 901, "other": 60}}})],
    "more than there is": [dict(**WORLD, counts=[{"where": "Text", "text": "6.7 million dots", "dataset": "D", "unit": "dots", "number": "6.7 million"}]),
                           dict(**WORLD, counts=[{"where": "Text", "text": "millions", "dataset": "D", "unit": "dots", "number": "millions"}]),
                           dict(datasets={"D": {"source": "s", "sizes": {"patients": "≤100"}}}, counts=[{"where": "Text", "text": "many", "dataset": "D", "unit": "patients", "number": ">300"}]),
                           dict(datasets={"D": {"source": "s", "sizes": {"dots:mitosis": 112}}}, matrices={"CNN": {**MATRIX, "dataset": "D"}},
                                parts=[{"where": "Text", "text": "test", "dataset": "D", "unit": "dots", "part": "test", "share": "20%"}])],
    "part and whole": [dict(datasets={"D": {"source": "s", "sizes": {"dots": 2000}}}, matrices={"CNN": {**MATRIX, "dataset": "D", "part": "test"}},
                            parts=[{"where": "Text", "text": "a fifth", "dataset": "D", "unit": "dots", "part": "test", "share": "20%"}])],
}


@pytest.mark.parametrize("kind, given", [(kind, given) for kind, each in PLANTED.items() for given in each])
def test_a_planted_contradiction_is_found_by_its_rule_alone(claims_of, kind, given):
    assert set(PLANTED) == set(RULES)
    found = find_contradictions(claims_of(**given))
    assert found["kind"].tolist() == [kind], found["sentence"].tolist()
    assert found[["claim", "contradicted_by", "sentence"]].map(len).gt(3).all(axis=None) and found["sentence"].item().endswith(".")
    others = {name: rule for name, rule in RULES.items() if name != kind}
    assert find_contradictions(claims_of(**given), rules=others).empty


@pytest.mark.parametrize("given", [
    dict(values=values(CNN={"accuracy": "0.95"}) | values("Text", CNN={"accuracy": "0.9499"})),  # 0.9499 is printed as 0.95
    dict(values=values(CNN={"accuracy": "0.95"}) | values("Text", CNN={"accuracy": "0.96"})),  # 0.955 is printed as either
    dict(values=values(CNN={"accuracy": "0.98"}) | values("Text", CNN={"accuracy": "98%"})),
    dict(values=values(CNN={"macro_auc": "1.000", "auc:mitosis": "0.999"})),  # the others may be above 0.99975
    dict(values=values(CNN={"macro_auc": "0.997", "auc:mitosis": "0.994", "auc:tumour": "1.000", "auc:other": "0.999"})),  # 0.99767, but from 0.9972 up
    dict(values=values(CNN={"precision": "0.91", "recall": "0.90", "f1": "0.91"})),  # 0.905, from 0.910 down
    dict(values=values(CNN={"precision": "0.9", "recall": "0.9", "f1": "0.5"})),  # means of classes
    dict(values=values(CNN={"macro_auc": "1.000"}, Fusion={"macro_auc": "1.000"}), statements=[SAID]),
    dict(values=values(CNN={"macro_auc": "0.997"}, Fusion={"macro_auc": "0.9966"}), statements=[SAID]),  # 0.9965 may be 0.997
    dict(values=values(CNN={"macro_auc": "0.997"}), statements=[SAID]),  # the other was not printed
    dict(values=values(CNN={"macro_auc": "0.927"}, Fusion={"macro_auc": "0.994"}),
         differences=[{"where": "Text", "text": "by 6.7 points", "a": "Fusion", "b": "CNN", "metric": "macro_auc", "difference": "6.7%"}]),
    dict(values=values(CNN={"macro_f1": ">0.3", "accuracy": "<0.8"}), matrices={"CNN": MATRIX}),
    dict(**WORLD, counts=[{"where": "Text", "text": "1,400 dots", "dataset": "D", "unit": "dots", "number": "1,400"}]),  # within 10%
    dict(**WORLD, counts=[{"where": "Text", "text": "9 slides", "dataset": "D", "unit": "slides", "number": "9"}]),  # not known how many there are
    dict(**WORLD, matrices={"CNN": {**MATRIX, "dataset": "D", "part": "test"}, "MLP": {**MATRIX, "dataset": "D", "part": "val", "right": {"mitosis": 1, "tumour": 2, "other": 3}}}),
])
def test_what_may_be_true_is_left_alone(claims_of, given): assert find_contradictions(claims_of(**given))["sentence"].tolist() == []


def test_what_a_matrix_gives_is_scikit_learns(claims_of):
    label, called = np.repeat([0, 0, 1, 1, 2, 2], [31, 359, 900, 5, 60, 4]), np.repeat([0, 2, 1, 2, 2, 1], [31, 359, 900, 5, 60, 4])
    matrix = {**MATRIX, "wrong": {"mitosis": {"other": 359}, "tumour": {"other": 5}, "other": {"tumour": 4}}}
    derived = claims_of(matrices={"CNN": matrix}).derived.set_index("metric")
    for name, f in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        for average in ("macro", "weighted"): assert derived.loc[f"{average}_{name}", ["low", "high"]].tolist() == pytest.approx([f(label, called, average=average)] * 2, abs=1e-12)
        np.testing.assert_allclose(derived.loc[[f"{name}:{c}" for c in CLASSES], "low"], f(label, called, average=None), atol=1e-12)
    assert derived.loc["accuracy", "low"] == (label == called).mean() and derived.loc["errors:mitosis", "printed"] == "359"
    vague = claims_of(matrices={"CNN": MATRIX}).derived.set_index("metric")
    for metric in derived.index: assert vague.loc[metric, "low"] <= derived.loc[metric, "low"] + 1e-12 and derived.loc[metric, "high"] <= vague.loc[metric, "high"] + 1e-12, metric


# ---- the paper

@pytest.fixture(scope="module")
def paper(): return read_claims("khandelwal_2026")


def sentences(found, kind): return "\n".join(found.loc[found["kind"] == kind, "sentence"])


def test_contradictions_of_khandelwal_2026(paper):
    found = find_contradictions(paper)
    assert "macro AUC is printed as 1.000" in sentences(found, "mean of the classes") and "mitosis 0.927" in sentences(found, "mean of the classes")
    order = sentences(found, "claimed order")
    assert "\"outperforming all unimodal baselines\" (Abstract), but Fusion, macro AUC is 0.997 (Abstract) and ResNet-18, macro AUC 1.000 (Abstract)." in order
    assert "improves recall" in order and "0.0795" in order and "best mitosis-specific AUC" in order and "consistently matches or exceeds" in order and "highest absolute error count" in order
    assert "XGBoost consistently" not in order and not sentences(found, "claimed difference") and not sentences(found, "printed twice")  # those are true
    size = sentences(found, "more than there is")
    for text in ("millions of patches", "6.7 million labelled points", "390 of mitosis", "over 300,000 ICU patients", "BreCaHAD has 23,496 annotations in all"): assert text in size
    matrix = sentences(found, "confusion matrix")
    assert "Fusion, macro F1 is printed as 0.996" in matrix and "31 of 390 were right" in matrix and "Fusion, accuracy is printed as 0.997" in matrix and "gives 0.9858" in matrix
    assert "ResNet-18, accuracy is printed as 1.0000" in matrix and "gives 0.9312" in matrix
    assert "354 and 390 of mitosis" in sentences(found, "one part, two sizes") and "the whole is 125,990 to 132,451" in sentences(found, "part and whole")
    assert not found.duplicated().any()


def test_contradictions_follow_from_the_numbers_not_from_the_file(paper, repo, tmp_path):
    """Another number, and what it contradicted is gone."""
    text = (repo / "nbs/studies/published/khandelwal_2026.yaml").read_text()
    def kinds_of(text):
        (tmp_path / "changed.yaml").write_text(text)
        return set(find_contradictions(read_claims(tmp_path / "changed.yaml"))["kind"])
    assert "mean of the classes" not in kinds_of(text.replace('"auc:mitosis": "0.9272"', '"auc:mitosis": "0.9992"').replace('"auc:mitosis": "0.927"', '"auc:mitosis": "0.999"'))
    assert "printed twice" in kinds_of(text.replace('"auc:mitosis": "0.9272"', '"auc:mitosis": "0.9372"'))
    assert "claimed difference" in kinds_of(text.replace('difference: "6.7%"', 'difference: "7.7%"'))
    assert "one part, two sizes" not in kinds_of(text.replace("part: test part", "part: another part", 1))
    given = yaml.safe_load(text)
    assert not any("contradict" in str(key) for key in given) and set(given["values"]) >= {"Table 1", "Table 2", "Table 3", "Section 5.3"}


def test_sizes_of_the_data_set_are_those_of_the_boxes(paper, data_dir):
    boxes = pd.read_csv(data_dir / "brecahad" / "boxes_reannotated.csv")
    sizes, names = paper.datasets["BreCaHAD"]["sizes"], {"mitosis": "Mitosis", "tumour nuclei": "Tumor_nuclei", "non-tumour nuclei": "Non_tumor_nuclei"}
    assert sizes["annotations"] == len(boxes) and all(sizes[f"annotations:{c}"] == (boxes["class_name"] == name).sum() for c, name in names.items())


# ---- files that cannot be read

@pytest.mark.parametrize("given, says", [
    (dict(values=values(CNN={"accuracy": 0.99})), "a number as it is printed for accuracy of 'CNN' in Table 1. Got 0.99.*quotes"),
    (dict(values=values(CNN={"accuracy": "99"})), "at most 1 for accuracy of 'CNN' in Table 1. Got '99'.*per cent"),
    (dict(values=values(CNN={"acuracy": "0.99"})), "metric in Table 1. Got 'acuracy'. Did you mean 'accuracy'"),
    (dict(values=values(CNN={"auc:mitoses": "0.99"})), "class in Table 1. Got 'mitoses'. Did you mean 'mitosis'"),
    (dict(values={"Table 1": ["CNN"]}), "lines of 'name: value' for Table 1"),
    (dict(value={}), "Did you mean 'values'"),
    (dict(matrices={"CNN": {**MATRIX, "right": {"mitosis": 3}}}), "each of mitosis, tumour, other under 'right' in the matrix of 'CNN'. Got mitosis"),
    (dict(matrices={"CNN": {**MATRIX, "right": {"mitosis": 31.5, "tumour": 1, "other": 1}}}), "whole numbers from 0 up in the matrix of 'CNN'. Got 31.5"),
    (dict(matrices={"CNN": {**MATRIX, "wrong": {**MATRIX["wrong"], "mitosis": {"mitosis": 3}}}}), "class that 'mitosis' was called"),
    (dict(matrices={"CNN": {"where": "Figure 1", "right": {}}}), "the key 'wrong' in the matrix of 'CNN'"),
    (dict(statements=[{**SAID, "relation": "over"}]), "relation in entry 1 of statements. Got 'over'"),
    (dict(statements=[{k: v for k, v in SAID.items() if k != "metric"}]), "the key 'metric' in entry 1 of statements"),
    (dict(counts=[{"where": "T", "text": "t", "dataset": "E", "unit": "dots", "number": "3"}], **WORLD), "data set in entry 1 of counts. Got 'E'"),
    (dict(datasets={"D": {"size": {}}}), "Did you mean 'sizes'"),
])
def test_bad_files_are_named(claims_of, given, says):
    with pytest.raises(DataError, match=says): claims_of(**given)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="a readable YAML file none.yaml"): read_claims(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("values: [1")
    with pytest.raises(DataError, match="a readable YAML file bad.yaml"): read_claims(tmp_path / "bad.yaml")
    (tmp_path / "short.yaml").write_text("title: t\nvalues: {}\n")
    with pytest.raises(DataError, match="the column 'source' in short.yaml|the key 'source' in short.yaml"): read_claims(tmp_path / "short.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(DataError, match="lines of 'name: value' for list.yaml"): read_claims(tmp_path / "list.yaml")
