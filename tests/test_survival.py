"""Survival metrics against scikit-survival, R's survival and their own properties; the compiled kernel against plain numpy."""
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from fusion_nb.metrics import _LANES, auc
from fusion_nb.schema import DataError
from fusion_nb.survival import (_harrell_tasks, average_by_group, breslow_survival, check_survival, cumulative_dynamic_auc, harrell_c,
                                integrated_brier, kaplan_meier, mean_dynamic_auc, survival_brier, uno_c)

ORACLES = Path(__file__).parent / "oracles"
ROWS = pd.read_csv(ORACLES / "survival.csv")
SKSURV, R = (json.loads((ORACLES / f"{name}.json").read_text()) for name in ("survival", "survival_r"))
CASES, EDGE = SKSURV["cases"], SKSURV["edge_cases"]
close = partial(np.testing.assert_allclose, rtol=0, atol=1e-9)


def part(case, name="test"):
    """(time, event, risk) of the rows of one case."""
    rows = ROWS[(ROWS["case"] == case) & (ROWS["part"] == name)]
    return tuple(rows[c].to_numpy() for c in ("time", "event", "risk"))


def probability(risk, case, times):
    return np.exp(-np.outer(np.exp(risk / 2), times) / CASES[case]["scale"])


def large(n=100_000):
    """As in the oracles' scripts."""
    i = np.arange(n)
    time = 1 + (i * 7919 % 100_003) % 3000
    return time, (i * 31 % 10 < 4).astype(int), (i * 104_729 % 100_003) // 25 - time


def made(seed, n, *, decimals=9, censored=.5):
    """Rows with as many ties as `decimals` gives."""
    rng = np.random.default_rng(seed)
    return rng.exponential(5, n).round(decimals), rng.random(n) < 1 - censored, rng.normal(size=n).round(decimals)


# ---- outside answers

@pytest.mark.parametrize("case", [*CASES, *EDGE])
def test_harrell_equals_both(case):
    sksurv = CASES[case]["harrell"] if case in CASES else EDGE[case]
    for got in (harrell_c(*part(case)), harrell_c(*part(case), counts=np.ones((1, len(part(case)[0]))))[0]):
        close(got, sksurv[0])
        close(got, R["cases"][case]["harrell"]["c"])
    assert sksurv[1:4] == R["cases"][case]["harrell"]["count"][:3]  # concordant, discordant, tied: the two agree on what is comparable


def test_a_hundred_thousand_cases():
    time, event, risk = large()
    close(harrell_c(time, event, risk), SKSURV["large"][0])
    close(harrell_c(time, event, risk), R["large"]["c"])
    assert harrell_c(time, event, risk, counts=np.ones((1, len(time)), np.uint8))[0] == harrell_c(time, event, risk)


@pytest.mark.parametrize("case", CASES)
def test_uno_equals_both(case):
    answers, (time, event, risk) = CASES[case], part(case)
    for name, train in (("own", None), ("train", part(case, "train")[:2])):
        for key, tau in (("uno", None), ("uno_tau", answers["tau"])):
            if answers[name][key] is not None: close(uno_c(time, event, risk, tau=tau, train=train), answers[name][key][0])
            else:
                with pytest.raises(DataError, match="under observation"): uno_c(time, event, risk, tau=tau, train=train)
    for key, tau in (("uno", None), ("uno_tau", answers["tau"])):
        if key in R["cases"][case]: close(uno_c(time, event, risk, tau=tau), R["cases"][case][key]["c"])


def test_some_cases_had_answers():
    assert sum("uno" in R["cases"][case] for case in CASES) >= 2
    assert sum(CASES[case]["own"]["uno"] is not None for case in CASES) >= 5 and CASES["plain"]["train"]["uno"] is not None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["own", "train"])
def test_over_time_equals_scikit_survival(case, name):
    answers, (time, event, risk) = CASES[case][name], part(case)
    options = {"times": CASES[case]["times"], "train": part(case, "train")[:2] if name == "train" else None}
    close(cumulative_dynamic_auc(time, event, risk, **options), answers["auc"][0])
    close(mean_dynamic_auc(time, event, risk, **options), answers["auc"][1])
    predicted = probability(risk, case, options["times"])
    close(survival_brier(time, event, predicted, **options), answers["brier"][1])
    close(integrated_brier(time, event, predicted, **options), answers["ibs"])


@pytest.mark.parametrize("case", CASES)
def test_kaplan_meier_equals_both(case):
    (time, event, _), tied = part(case), "uno" not in R["cases"][case]
    for name, censoring in (("survival", False), ("censoring", True)):
        times, got = kaplan_meier(time, event, censoring=censoring)
        assert times.tolist() == CASES[case][name][0]
        close(got, CASES[case][name][1])
        if not (censoring and tied): close(got, R["cases"][case][name]["surv"])  # R leaves the events in, when censored cases are counted


@pytest.mark.parametrize("case", CASES)
def test_breslow_equals_both(case):
    train, risk, times = part(case, "train"), part(case)[2][:5], CASES[case]["times"]
    for answers in (CASES[case]["cox"], R["cases"][case]["cox"]):
        close(breslow_survival(train, risk, times=times), answers["survival"])
        close(breslow_survival(train, risk, times=times, slope=answers["slope"]), answers["survival"])
    moved = (train[0], train[1], 1000 - 7 * train[2])  # any scale, either direction
    close(breslow_survival(moved, 1000 - 7 * risk, times=times), CASES[case]["cox"]["survival"])


@pytest.mark.parametrize("case", CASES)
def test_resamples_equal_scikit_survival_on_the_drawn_rows(case):
    time, event, risk = part(case)
    counts = ROWS.loc[(ROWS["case"] == case) & (ROWS["part"] == "test"), [f"draw_{r}" for r in range(4)]].to_numpy(int).T
    times, tau = CASES[case]["times"], CASES[case]["tau"]
    values = {"harrell": harrell_c(time, event, risk, counts=counts), "uno_tau": uno_c(time, event, risk, tau=tau, counts=counts),
              "auc": cumulative_dynamic_auc(time, event, risk, times=times, counts=counts),
              "mean_auc": mean_dynamic_auc(time, event, risk, times=times, counts=counts),
              "ibs": integrated_brier(time, event, probability(risk, case, times), times=times, counts=counts)}
    for r, answers in enumerate(CASES[case]["draws"]):
        answers = {**answers, "auc": answers["auc"] and answers["auc"][0], "mean_auc": answers["auc"] and answers["auc"][1]}
        for name, got in values.items():  # null: scikit-survival refused, or NaN
            if answers[name] is not None: close(got[r], np.array(answers[name], float))
    assert all(np.isfinite(v).any() for v in values.values())


# ---- resamples: compiled, numpy, and rows repeated

def kernel(time, event, risk, counts, unit):
    """Counts (R, U), R a multiple of 64."""
    (task,), found = _harrell_tasks(time, event, risk, unit), []
    for block in counts.reshape(-1, _LANES, counts.shape[1]):
        out = np.empty((task.size, _LANES))
        task.kernel(np.ascontiguousarray(block.T.astype(np.uint8)), *task.arrays, out)
        found.append(out[0])
    return np.concatenate(found)


@pytest.mark.parametrize("n, decimals, censored", [(10, 0, .5), (60, 0, .3), (60, 1, .9), (300, 9, .5), (301, 1, 0)])
def test_kernel_equals_numpy_to_the_last_bit(n, decimals, censored):
    time, event, risk = made(n, n, decimals=decimals, censored=censored)
    rng = np.random.default_rng(1)
    unit = rng.integers(0, n // 2, n)
    for units in (np.arange(n), unit):
        counts = rng.multinomial(units.max() + 1, np.full(units.max() + 1, 1 / (units.max() + 1)), size=2 * _LANES)
        got = kernel(time, event, risk, counts, units)
        assert np.array_equal(got, harrell_c(time, event, risk, counts=counts[:, units]), equal_nan=True)
        for r in range(0, len(counts), 16):
            rows = np.repeat(np.arange(n), counts[r, units])
            if np.isfinite(got[r]): assert got[r] == harrell_c(time[rows], event[rows], risk[rows])


@pytest.mark.parametrize("n", [257, 258, 500])  # 257 x 255 = 65,535, the largest that 16 bits hold
def test_kernel_is_exact_where_counts_outgrow_16_bits(n):
    time, event, risk = made(0, n, decimals=1, censored=.2)
    counts = np.full((_LANES, n), 255)
    got = kernel(time, event, risk, counts, np.arange(n))
    assert np.array_equal(got, harrell_c(time, event, risk, counts=counts)) and got == pytest.approx(harrell_c(time, event, risk), abs=1e-12)


def metrics(times, risk):
    """Every metric as f(rows, counts) on its own time, event and risk; those over time take the probability with the risk."""
    def predicted(r): return np.exp(-np.outer(np.exp(r), times) / 10)
    return {"harrell": harrell_c, "uno": uno_c, "uno_tau": partial(uno_c, tau=times[-1]), "mean": partial(mean_dynamic_auc, times=times),
            "ibs": lambda t, e, r, **o: integrated_brier(t, e, predicted(r), times=times, **o),
            "auc": lambda t, e, r, **o: cumulative_dynamic_auc(t, e, r, times=times[:1], **o)[..., 0],
            "brier": lambda t, e, r, **o: survival_brier(t, e, predicted(r)[:, :1], times=times[:1], **o)[..., 0],
            "uno_train": partial(uno_c, train=(np.arange(40), np.arange(40) % 3 == 0)),
            "ibs_train": lambda t, e, r, **o: integrated_brier(t, e, predicted(r), times=times, train=(np.arange(40), np.arange(40) % 2), **o)}


rows_of = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 1), st.integers(-3, 3)), min_size=5, max_size=30).filter(
    lambda rows: any(e and t <= 3 for t, e, _ in rows) and any(t > 6 for t, _, _ in rows))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows_of, st.integers(0, 1000))
def test_every_replicate_equals_the_metric_on_the_rows_repeated(rows, seed):
    time, event, risk = np.array(rows).T
    counts = np.random.default_rng(seed).multinomial(len(time), np.full(len(time), 1 / len(time)), size=6)
    for name, metric in metrics(np.array([3., 6.]), risk).items():
        got = metric(time, event, risk / 3, counts=counts)
        assert got.shape == (6,)
        for r, c in enumerate(counts):
            drawn = np.repeat(np.arange(len(time)), c)
            try: want = metric(time[drawn], event[drawn], risk[drawn] / 3)
            except DataError: want = np.nan  # what the sample is refused for, is undefined in a resample
            np.testing.assert_allclose(got[r], want, rtol=0, atol=1e-12, err_msg=name)


def test_curves_of_resamples_equal_those_of_the_rows_repeated():
    time, event, risk = made(3, 50, decimals=0)
    counts = np.random.default_rng(0).multinomial(50, np.full(50, .02), size=5)
    for censoring in (False, True):
        times, got = kaplan_meier(time, event, censoring=censoring, counts=counts)
        for r, c in enumerate(counts):
            rows = np.repeat(np.arange(50), c)
            some, want = kaplan_meier(time[rows], event[rows], censoring=censoring)
            np.testing.assert_allclose(got[r, np.isin(times, some)], want, rtol=0, atol=1e-12)


# ---- properties

@settings(max_examples=40, deadline=None, derandomize=True)
@given(rows_of)
def test_properties(rows):
    time, event, risk = np.array(rows).T
    for name, metric in metrics(np.array([3., 6.]), risk).items():
        try: value = metric(time, event, risk)
        except DataError: continue
        order = np.random.default_rng(0).permutation(len(time))
        assert metric(time[order], event[order], risk[order]) == pytest.approx(value, abs=1e-12), name
        if "ibs" in name or "brier" in name: continue
        assert metric(time, event, np.exp(risk)) == value, name
        assert metric(time, event, -risk) == pytest.approx(1 - value, abs=1e-12), name
        assert metric(time, event, 0 * risk) == pytest.approx(.5, abs=1e-12), name
    assert harrell_c(3 * time + 1, event, risk) == harrell_c(time, event, risk)
    columns = np.stack([time, event, risk], axis=1)  # as they come from a table: neither contiguous nor floats
    assert harrell_c(*columns.T) == harrell_c(*pd.DataFrame(columns, index=[7] * len(time)).T.to_numpy()) == harrell_c(time, event, risk)


def test_without_censoring_every_weight_is_one():
    time, _, risk = made(5, 200)
    event, t = np.ones(200), float(np.median(time))
    predicted = np.random.default_rng(0).random((200, 1))
    assert uno_c(time, event, risk) == pytest.approx(harrell_c(time, event, risk), abs=1e-12)
    assert cumulative_dynamic_auc(time, event, risk, times=[t])[0] == pytest.approx(auc((time <= t).astype(int), risk), abs=1e-12)
    assert survival_brier(time, event, predicted, times=[t])[0] == pytest.approx(np.mean(((time > t) - predicted[:, 0]) ** 2), abs=1e-12)


def test_harrell_by_its_definition():
    for seed, decimals in ((0, 0), (1, 1), (2, 9)):
        time, event, risk = made(seed, 80, decimals=decimals)
        earlier = event[:, None] & ((time[:, None] < time) | ((time[:, None] == time) & ~event))
        won = (risk[:, None] > risk) + .5 * (risk[:, None] == risk)
        assert harrell_c(time, event, risk) == (won * earlier).sum() / earlier.sum()


def test_uno_does_not_move_with_the_follow_up_where_harrell_does():
    rng = np.random.default_rng(0)
    n, early = 20_000, rng.random(20_000) < .5  # the risk tells who dies early, but nothing later
    risk = early + .01 * rng.random(n)
    died = np.where(early, rng.uniform(0, 1, n), rng.uniform(1, 4, n))
    followed = [(np.minimum(died, left), died <= left, risk) for left in (rng.uniform(0, 4, n), np.full(n, 4.))]
    moved = {f: abs(np.diff([f(*rows) for rows in followed])[0]) for f in (harrell_c, partial(uno_c, tau=3.5))}
    assert list(moved.values())[0] > .03 > .01 > list(moved.values())[1]


def test_predictions_know_nothing_of_the_test_rows():
    train, (time, event, risk) = part("plain", "train"), part("plain")
    times = CASES["plain"]["times"]
    alone = np.concatenate([breslow_survival(train, risk[i:i + 1], times=times) for i in range(len(risk))])
    np.testing.assert_allclose(breslow_survival(train, risk, times=times), alone, rtol=0, atol=1e-15)
    late = time > times[-1]  # nothing is asked after the last of the times, so what happens there cannot matter
    changed, options = np.where(late, time + 5, time), {"times": times, "train": train[:2]}
    assert np.array_equal(cumulative_dynamic_auc(time, event, risk, **options), cumulative_dynamic_auc(changed, event * ~late, risk, **options))


def test_average_by_group_equals_pandas():
    rng = np.random.default_rng(0)
    patient = rng.integers(0, 30, 100)
    time, event = rng.exponential(size=30)[patient], (rng.random(30) < .5)[patient]
    risk = rng.normal(size=100)
    want = pd.DataFrame({"time": time, "event": event, "risk": risk}).groupby(patient).agg({"time": "first", "event": "first", "risk": "mean"})
    got = average_by_group(time, event, risk, patient)
    assert got[0].tolist() == want["time"].tolist() and got[1].tolist() == want["event"].tolist()
    np.testing.assert_allclose(got[2], want["risk"], rtol=0, atol=1e-14)
    same = np.repeat([.1, .1, .3], [3, 7, 2])
    assert average_by_group(np.repeat([1, 2, 3], [3, 7, 2]), np.ones(12), same, np.repeat([0, 1, 2], [3, 7, 2]))[2].tolist() == [.1, .1, .3]


# ---- what is refused

TIMES = np.array([1.5])
ALL = {"check_survival": check_survival, "harrell_c": harrell_c, "uno_c": uno_c, "auc": partial(cumulative_dynamic_auc, times=TIMES),
       "mean": partial(mean_dynamic_auc, times=TIMES), "breslow": lambda t, e, r: breslow_survival((t, e, r), np.zeros(1), times=TIMES),
       "by group": lambda t, e, r: average_by_group(t, e, r, np.arange(len(t)))}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("time, event, risk, says", [
    ([1, 2, 3], [1, 0, 1], [.1, np.nan, .2], "finite risks.*nan at position 1"),
    ([1, 2, 3], [1, 0, 1], [.1, .3, np.inf], "finite risks.*inf at position 2"),
    ([1, -2, 3], [1, 0, 1], [.1, .3, .2], "finite times from 0 up.*-2.0 at position 1"),
    ([1, 2, np.nan], [1, 0, 1], [.1, .3, .2], "finite times from 0 up.*nan at position 2"),
    ([1, np.inf, 3], [1, 0, 1], [.1, .3, .2], "finite times from 0 up.*inf"),
    ([1, 2, 3], [1, 2, 1], [.1, .3, .2], "events 0 or 1.*Got 2 in 1 rows"),
    ([1, 2, 3], [1, np.nan, 1], [.1, .3, .2], "events 0 or 1.*Got nan"),
    ([1, 2, 3], ["dead", "alive", "dead"], [.1, .3, .2], "events 0 or 1.*'dead' in 3 rows"),
    ([1, 2, 3], [0, 0, 0], [.1, .3, .2], "at least one event.*3 cases, all of them censored"),
    ([], [], [], "no cases"),
    ([1, 2], [1, 0, 1], [.1, .3, .2], r"one time and one event per case.*\(2,\).*\(3,\)"),
    ([1, 2, 3], [1, 0, 1], [.1, .3], r"one risk per case.*\(2,\) for 3 cases"),
    ([[1, 2, 3]], [[1, 0, 1]], [[.1, .3, .2]], "one time and one event per case"),
])
def test_bad_input_is_refused_by_every_metric(name, time, event, risk, says):
    with pytest.raises(DataError, match=says): ALL[name](np.array(time), np.array(event), np.array(risk))


def test_samples_without_an_answer():
    late = np.array([1, 2, 3]), np.array([0, 0, 1]), np.array([.1, .2, .3])
    for f in (harrell_c, uno_c):
        with pytest.raises(DataError, match="an event that another case outlived"): f(*late)
    some = np.array([1, 2, 2, 3]), np.array([1, 1, 0, 0]), np.array([4, 3, 2, 1])
    with pytest.raises(DataError, match="outlived"): uno_c(*some, tau=1)
    with pytest.raises(DataError, match="an event by 0.5, the first of the times.*none before 1"): cumulative_dynamic_auc(*some, times=[.5])
    for train, after in (((np.array([1, 1.5]), np.array([1, 0])), "2, where everyone in the training part has left"),
                         ((np.array([1, 1.5]), np.array([1, 1])), "2, where everyone in the training part has left")):
        with pytest.raises(DataError, match=after): uno_c(*some, train=train)
        with pytest.raises(DataError, match=after): survival_brier(*some[:2], np.ones((4, 1)), times=[2], train=train)
        with pytest.raises(DataError, match=after): cumulative_dynamic_auc(*some, times=[2], train=train)


def test_bad_options():
    some = np.array([1, 2, 2, 3]), np.array([1, 1, 0, 0]), np.array([4, 3, 2, 1])
    for f in (harrell_c, uno_c, partial(mean_dynamic_auc, times=[2])):
        for counts in (np.ones((2, 5)), np.ones(4)):
            with pytest.raises(DataError, match=r"counts of shape \(R, 4\)"): f(*some, counts=counts)
    for times, says in (([], "increasing times"), ([2, 1], "increasing times"), ([1, 1], "increasing times"), ([np.nan], "increasing times"),
                        ([[1, 2]], "increasing times"), ([1, 3], "before the last time of these cases, 3")):
        for f in (cumulative_dynamic_auc, mean_dynamic_auc):
            with pytest.raises(DataError, match=says): f(*some, times=times)
        with pytest.raises(DataError, match=says): survival_brier(*some[:2], np.ones((4, np.size(times))), times=times)
    with pytest.raises(DataError, match=r"a probability per case and time, \(4, 2\)"): integrated_brier(*some, times=[1, 2])
    for wrong in (-.1, 1.1, np.nan):
        with pytest.raises(DataError, match="probabilities from 0 to 1"): integrated_brier(*some[:2], np.full((4, 2), wrong), times=[1, 2])
    with pytest.raises(DataError, match="two times"): integrated_brier(*some[:2], np.ones((4, 1)), times=[1])


def test_slopes_that_cannot_be_fitted():
    time, event = np.arange(1, 9), np.ones(8)
    for risk in (np.arange(8), -np.arange(8), np.zeros(8)):
        with pytest.raises(DataError, match="training risks that can be given a slope.*slope=1"): breslow_survival((time, event, risk), risk, times=[2])
        assert ((0 < (p := breslow_survival((time, event, risk), risk, times=[0, 2], slope=1))) & (p <= 1)).all() and (p[:, 0] == 1).all()
    with pytest.raises(DataError, match="finite risks"): breslow_survival((time, event, risk), [np.nan], times=[2], slope=1)
    with pytest.raises(DataError, match="increasing times"): breslow_survival((time, event, risk), risk, times=[2, np.nan], slope=1)


def test_bad_groups():
    time, event, risk = np.array([1, 1, 3]), np.array([1, 0, 1]), np.array([.1, .2, .3])
    with pytest.raises(DataError, match="one event for all rows of a group.*1 and 0 in group '7'"): average_by_group(time, event, risk, [7, 7, 8])
    with pytest.raises(DataError, match="one time for all rows.*3 and 1 in group 'b'|one time for all rows.*1 and 3 in group 'b'"):
        average_by_group(time, [1, 1, 1], risk, ["a", "b", "b"])
    with pytest.raises(DataError, match="a group for every row.*1 rows without"): average_by_group(time, event, risk, ["a", None, "c"])
    with pytest.raises(DataError, match="2 groups for 3 cases"): average_by_group(time, event, risk, ["a", "b"])


def test_survival_does_not_load_torch_or_its_oracle():
    code = "import sys; import fusion_nb.survival; sys.exit(bool({'torch', 'sksurv', 'lifelines'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("train", [np.arange(5.0), (np.arange(5.0),), 5, "ab", None])
def test_another_part_is_a_tuple_of_its_arrays(train):
    some = np.array([1, 2, 2, 3]), np.array([1, 1, 0, 0]), np.array([4, 3, 2, 1])
    with pytest.raises(DataError, match=r"train=\(time, event, risk\) of the other part's rows"): breslow_survival(train, some[2], times=[2])
    if train is None: return  # the sample's own censoring
    for f in (uno_c, partial(cumulative_dynamic_auc, times=[2])):
        with pytest.raises(DataError, match=r"train=\(time, event\) of the other part's rows"): f(*some, train=train)


def test_a_fit_needs_the_risks_too():
    with pytest.raises(DataError, match=r"\(time, event, risk\).*Got tuple of length 2"): breslow_survival((np.arange(1, 4), np.ones(3)), np.ones(3), times=[2])
