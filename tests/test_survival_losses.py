"""Losses of survival against R, scikit-survival, lifelines and finite differences; what they must not depend on; and what is refused."""
import json
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from lifelines import CoxPHFitter

from fusion_nb.schema import DataError
from fusion_nb.survival import average_by_group, harrell_c
from fusion_nb.survival_losses import (bins_of, check_events, cox_loss, hazard_bins, hazard_loss, patient_c, risk_of, survival_loss,
                                       survival_of)

ORACLES = Path(__file__).parent / "oracles"
ROWS = pd.read_csv(ORACLES / "cox_loss.csv")
R, SKSURV = (json.loads((ORACLES / f"{name}.json").read_text())["cases"] for name in ("cox_loss", "cox_loss_sksurv"))
close = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-9)


def case_of(name, dtype=torch.float64):
    """(risk, time, event) of one case."""
    rows = ROWS[ROWS["case"] == name]
    return tuple(torch.tensor(rows[c].to_numpy(), dtype=dtype) for c in ("risk", "time", "event"))


def made(n, seed=0, months=20, share=.6, dtype=torch.float64):
    """A cohort whose times tie."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, generator=g, dtype=dtype), torch.randint(1, months, (n,), generator=g).to(dtype), (torch.rand(n, generator=g) < share).to(dtype)


# ---- Cox's loss is the one of others

@pytest.mark.parametrize("name, ties", list(product(SKSURV, ("breslow", "efron"))))
def test_likelihood_and_gradients(name, ties):
    """R and scikit-survival: the likelihood, its derivative by the coefficient of the risk; R: by the risk of every patient, its martingale residual."""
    risk, time, event = case_of(name)
    beta, risk = torch.ones((), dtype=torch.float64, requires_grad=True), risk.requires_grad_()
    likelihood = -cox_loss(beta * risk, time, event, ties=ties) * event.sum()
    likelihood.backward()
    for oracle in (R, SKSURV):
        close(likelihood.item(), oracle[name][ties]["loglik"])
        close(beta.grad, oracle[name][ties]["score"])
    close(risk.grad, R[name][ties]["residuals"])


def test_the_oracles_tell_the_treatments_of_ties_apart():
    apart = [name for name in R if abs(R[name]["breslow"]["loglik"] - R[name]["efron"]["loglik"]) > .01]
    assert {"tied", "mostly_tied", "all_die", "strong"} <= set(apart) < set(R)


@pytest.mark.parametrize("name", ["tied", "mostly_tied", "censored"])
def test_lifelines_finds_our_minimum(name):
    """Its estimate is where our gradient is 0, and its likelihood there is ours (lifelines has Efron's ties only)."""
    risk, time, event = case_of(name)
    fitted = CoxPHFitter().fit(ROWS[ROWS["case"] == name][["time", "event", "risk"]], "time", "event", fit_options={"precision": 1e-12})
    beta = torch.tensor(fitted.params_["risk"], dtype=torch.float64, requires_grad=True)
    loss = cox_loss(beta * risk, time, event)
    loss.backward()
    assert abs(beta.grad) < 1e-6
    np.testing.assert_allclose(-loss.item() * event.sum(), fitted.log_likelihood_, rtol=1e-9)


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_gradient_by_finite_differences(ties):
    risk, time, event = made(14, months=5)
    group = torch.arange(14) // 2
    for options in ({}, {"above_chance": True}): assert torch.autograd.gradcheck(lambda r: cox_loss(r, time, event, ties=ties, **options), risk.requires_grad_())
    assert torch.autograd.gradcheck(lambda r: cox_loss(r, time[group], event[group], group=group, ties=ties), risk)


# ---- what must not matter

@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10_000), st.sampled_from(["breslow", "efron"]))
def test_order_and_shift_do_not_matter(n, seed, ties):
    risk, time, event = made(n, seed, months=6)
    loss, order = cox_loss(risk, time, event, ties=ties), torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for other in (cox_loss(risk[order], time[order], event[order], ties=ties), cox_loss(risk + 7, time, event, ties=ties), cox_loss(risk, 3 * time ** 2, event, ties=ties)):
        torch.testing.assert_close(loss, other)
    assert loss >= -1e-12, "a probability"


@pytest.mark.parametrize("slides", [2, 3, 8])
def test_a_patient_is_one_however_many_slides(slides):
    """Slides of the same risk change nothing at all; without `group` the loss grows with them."""
    risk, time, event = made(40)
    patient = torch.arange(40).repeat_interleave(slides)[torch.randperm(40 * slides, generator=torch.Generator().manual_seed(0))]
    many = risk[patient], time[patient], event[patient]
    torch.testing.assert_close(cox_loss(*many, group=patient + 5), cox_loss(risk, time, event))
    assert cox_loss(*many) > cox_loss(risk, time, event) + .5 * np.log(slides)


def test_slides_count_by_their_mean():
    risk, time, event = made(30)
    noise = .3 * torch.randn(30, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    each = (risk[:, None] + noise).flatten()
    group = torch.arange(30).repeat_interleave(3)
    known = average_by_group(time[group].numpy(), event[group].numpy(), each.numpy(), group.numpy())
    close(cox_loss(each, time[group], event[group], group=group), cox_loss(torch.tensor(known[2]), time, event))
    close(patient_c(each, torch.stack([time[group], event[group]], 1), group), harrell_c(*known))


def of_random_scores(n, slides=1, repeats=200, **options):
    """The mean loss of scores that know nothing."""
    losses = []
    for seed in range(repeats):
        _, time, event = made(n, seed, months=1000)
        scores = torch.randn(n * slides, generator=torch.Generator().manual_seed(seed + 1000), dtype=torch.float64)
        group = torch.arange(n).repeat_interleave(slides)
        losses.append(cox_loss(scores, time[group], event[group], group=group, **options))
    return float(torch.stack(losses).mean())


def test_loss_of_random_scores_grows_neither_with_batch_nor_with_slides():
    """It stays below half the variance of the scores; summed over events, as published code has it, it grows with both."""
    batches = [of_random_scores(n, above_chance=True) for n in (16, 32, 64, 128, 256)]
    assert max(batches) < .55 and np.ptp(batches) < .15
    slides = [of_random_scores(32, slides=k, above_chance=True) for k in (1, 2, 4, 8)]
    assert slides == sorted(slides, reverse=True) and slides[0] < .55
    assert of_random_scores(256) - of_random_scores(16) > 2, "the logarithm of the risk set is what grows without above_chance"
    within = [of_random_scores(32, slides=k) for k in (1, 8)]
    assert within[1] < within[0] + .05


def test_above_chance_changes_no_gradient():
    risk, time, event = made(50)
    grads = [torch.autograd.grad(cox_loss(r := risk.clone().requires_grad_(), time, event, above_chance=above), r)[0] for above in (False, True)]
    assert torch.equal(*grads)


# ---- numbers that would break a naive loss

@pytest.mark.parametrize("ties", ["breslow", "efron"])
@pytest.mark.parametrize("scale", [1e-6, 100, 1e4])
def test_large_and_tiny_risks_in_single_precision(ties, scale):
    risk, time, event = made(200, dtype=torch.float32)
    risk = (scale * risk).requires_grad_()
    loss = cox_loss(risk, time, event, ties=ties)
    loss.backward()
    assert loss.isfinite() and risk.grad.isfinite().all()
    np.testing.assert_allclose(loss.item(), cox_loss(risk.double(), time, event, ties=ties).item(), rtol=1e-5)


@pytest.mark.parametrize("event, time", [(0, None), (0, 3.0), (1, 3.0)])
def test_no_events_and_all_at_once(event, time):
    """Without events: zero, no gradient, no NaN. All dead at one time: the denominator of the last one is what Efron leaves."""
    risk, times, events = made(9)
    risk, times = risk.requires_grad_(), times if time is None else torch.full_like(times, time)
    loss = cox_loss(risk, times, torch.full_like(events, event), above_chance=not event)
    loss.backward()
    assert risk.grad.isfinite().all() and (loss == 0) == (event == 0) and bool(risk.grad.any()) == bool(event)


def test_half_precision_and_integers():
    risk, time, event = made(60, dtype=torch.float32)
    half = cox_loss(risk.bfloat16(), time, event)
    assert half.dtype == torch.float32 and half == cox_loss(risk.bfloat16().float(), time.double(), event.long())
    assert hazard_loss(torch.zeros(2, 3).bfloat16(), torch.tensor([0, 2]), torch.tensor([1, 0])).dtype == torch.float32


def test_many_patients():
    """Sorted, not all pairs: 100,000 patients with their gradient in a second."""
    risk, time, event = made(100_000, months=400)
    loss = cox_loss(risk.requires_grad_(), time, event)
    loss.backward()
    assert loss.isfinite() and abs(risk.grad.sum()) < 1e-9  # a shift of all risks changes nothing


@pytest.mark.parametrize("wrong, message", [
    ({"time": torch.ones(5)}, r"one risk, time and event per case. Got shapes \(6,\), \(5,\)"), ({"risk": torch.ones(6, 1)}, "one risk"),
    ({"ties": "exact"}, "known treatment of ties"), ({"group": torch.zeros(6, dtype=int)}, "one time and one event of all cases of a patient"),
    ({"group": torch.zeros(3, dtype=int)}, "one patient per case")])
def test_what_cox_refuses(wrong, message):
    with pytest.raises(DataError, match=message): cox_loss(**{"risk": torch.ones(6), "time": torch.arange(6.), "event": torch.ones(6)} | wrong)


# ---- hazards in bins

def test_hazard_loss_is_cross_entropy_of_patients_by_bin():
    """Every patient is expanded into the bins that it was seen in, as for a logistic regression."""
    g = torch.Generator().manual_seed(0)
    logits, bin, event = torch.randn(40, 5, generator=g, dtype=torch.float64), torch.randint(0, 5, (40,), generator=g), torch.randint(0, 2, (40,), generator=g)
    z = torch.cat([row[:k + 1] for row, k in zip(logits, bin)])
    died = torch.cat([F.one_hot(k, 5)[:k + 1] * e for k, e in zip(bin, event)])
    close(hazard_loss(logits, bin, event), F.binary_cross_entropy_with_logits(z, died.double(), reduction="sum") / 40)


def test_hazard_gradient_by_finite_differences():
    logits, bin, event = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 3, 3, 2, 0]), torch.tensor([1, 0, 1, 0, 1, 0])
    assert torch.autograd.gradcheck(lambda z: hazard_loss(z, bin, event), logits.requires_grad_())
    wild = (1e4 * logits.detach().float()).requires_grad_()
    hazard_loss(wild, bin, event).backward()
    assert wild.grad.isfinite().all()


def test_constant_hazards_give_the_life_table():
    """The best logits that are the same for all patients are the events over those at risk of each bin, and the curve is their product."""
    _, time, event = made(500, months=60)
    edges = hazard_bins(time, event, 5)
    bin = bins_of(time, edges)
    at_risk, died = np.array([(bin >= k).sum() for k in range(5)]), np.array([((bin == k) & (event == 1)).sum() for k in range(5)])
    z = torch.logit(torch.tensor(died / at_risk)).requires_grad_()
    hazard_loss(z.expand(500, 5), bin, event).backward()
    assert z.grad.abs().max() < 1e-12
    close(survival_of(z[None].detach())[0], np.cumprod(1 - died / at_risk))
    assert died.min() > 40, "each bin has about a fifth of the events"


def test_bins_look_at_events_alone():
    _, time, event = made(200, months=60)
    edges = hazard_bins(time, event, 4)
    assert np.array_equal(edges, np.quantile(time[event == 1], [.25, .5, .75])) and np.array_equal(edges, hazard_bins(torch.where(event == 1, time, 1e6), event, 4))


@pytest.mark.parametrize("time, event", [([1, 2, 3, 4], [0, 0, 0, 0]), ([1, 2, 3, 4], [1, 1, 1, 0]), ([1, 1, 1, 1, 1, 9], [1] * 6)])
def test_too_few_events_for_the_bins(time, event):
    with pytest.raises(DataError, match="event times for 4 bins of time.*Use fewer bins"): hazard_bins(time, event, 4)


@pytest.mark.parametrize("bin, message", [(torch.tensor([0, 4]), "bins from 0 to 3. Got 0 to 4"), (torch.tensor([0]), "a row of logits, a bin and an event")])
def test_what_hazards_refuse(bin, message):
    with pytest.raises(DataError, match=message): hazard_loss(torch.zeros(2, 4), bin, torch.ones(2))


# ---- what a training takes of them

def test_outputs_are_summed_and_patients_averaged():
    risk, time, event = made(30)
    labels, group = torch.stack([time, event], 1), torch.arange(30)
    pair = group.repeat_interleave(2)
    each = risk[pair] + torch.tensor([.2, -.2], dtype=torch.float64).repeat(30)
    close(survival_loss({"main": each, "image": each}, labels[pair], group=pair, ties="breslow"), 2 * cox_loss(risk, time, event, ties="breslow", above_chance=True))
    edges = hazard_bins(time, event, 3)
    z = risk[:, None] * torch.tensor([1., 2, 3])
    close(survival_loss({"main": z[pair]}, labels[pair], group=pair, edges=edges), hazard_loss(z, bins_of(time, edges), event))


@pytest.mark.parametrize("logits, edges, message", [(torch.zeros(4, 3), None, r"outputs \(B,\) for this loss. Got \(4, 3\). Build the model with n_outputs=1"),
                                                    (torch.zeros(4), np.array([1., 2]), r"outputs \(B, 3\).*n_outputs=3")])
def test_outputs_of_another_loss_are_refused(logits, edges, message):
    with pytest.raises(DataError, match=message): survival_loss({"main": logits}, torch.ones(4, 2), edges=edges)


def test_risk_ranks_as_the_expected_bins_survived():
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    curve = (1 - z.sigmoid()).cumprod(1)
    torch.testing.assert_close(risk_of(z), -curve.sum(1))
    assert (risk_of(z) < 0).all() and (risk_of(z + .1) > risk_of(z)).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 60), st.integers(0, 10_000))
def test_c_is_harrells(n, seed):
    risk, time, event = made(n, seed, months=8)
    event[time.argmin()], time[time.argmin()] = 1, .5
    close(patient_c(risk.round(), torch.stack([time, event], 1)), harrell_c(time.numpy(), event.numpy(), risk.round().numpy()))


@pytest.mark.parametrize("labels, got", [([[3, 0], [4, 0]], "0 events among 2 cases"), ([[3, 1], [3, 1], [2, 0]], "2 events among 3 cases, which nobody outlived")])
def test_a_part_without_a_comparable_pair_is_named(labels, got):
    with pytest.raises(DataError, match=f"an event in the test part of fold 3 that another patient outlived. Got {got}"):
        check_events(np.array(labels, "float32"), "the test part of fold 3")
