"""Proposals do what they say: what is said to fit does, and twice as much does not."""

from __future__ import annotations

from dataclasses import replace

from softgrpo.planning.memory import memory, peak
from softgrpo.planning.proposals import (
    USABLE,
    fits,
    proposals,
    rollout_budget,
    train_budget,
    vllm_share,
)
from tests.unit.planning.test_memory import ADAPTED, JOB, SHAPE


def test_budgets_are_the_largest_that_fit():
    job = replace(JOB, is_cpu=False, micro_batch=64, checkpointing="none", evaluations=0)
    device = int(1.02 * peak(memory(SHAPE, replace(job, train_batch_tokens=4000)))[1] / USABLE)
    budget = train_budget(SHAPE, job, device)
    assert job.length < budget < job.tokens_of(64)
    assert fits(SHAPE, replace(job, train_batch_tokens=budget), device)
    assert not fits(SHAPE, replace(job, train_batch_tokens=2 * budget), device)
    assert train_budget(SHAPE, job, 10**12) == job.tokens_of(64)
    assert train_budget(SHAPE, job, 10**6) is None
    assert rollout_budget(SHAPE, job, 10**12) >= job.sequences * job.length


def test_what_is_proposed_fits():
    job = replace(JOB, is_cpu=False, micro_batch=512, sequences=1024, processes=4)
    device = int(0.8 * peak(memory(SHAPE, job))[1])
    found = proposals(SHAPE, ADAPTED, job, device)
    assert found and all(proposal.fits for proposal in found)
    (budget,) = (p for p in found if p.fields.startswith("train_batch_tokens: "))
    tokens = int(budget.fields.split()[-1])
    assert fits(SHAPE, replace(job, train_batch_tokens=tokens), device)


def test_what_no_field_can_mend_is_said():
    found = proposals(SHAPE, ADAPTED, JOB, 10**6)
    assert found and not any(proposal.fits for proposal in found)


def test_vllm_gets_what_the_training_leaves():
    job = replace(JOB, is_cpu=False)
    assert vllm_share(SHAPE, job, 10**6) is None
    share = vllm_share(SHAPE, job, 80 * 2**30)
    assert 0.8 < share < USABLE
    assert fits(SHAPE, replace(job, engine="vllm", vllm_share=share), 80 * 2**30)
