"""Every sample meets its own problem, is recorded once, and is made again by no later start."""

import random

import pytest
import torch

from softgrpo.evaluation import RecordFile, Sampling, deal, read_records, sample
from softgrpo.rewards import Judgement
from softgrpo.rollout import Rollout
from softgrpo.tasks import Problem
from softgrpo.thinking import SoftTrace, ThinkingConfig

PROBLEMS = [Problem(name, "?", answer) for name, answer in (("a", "7"), ("b", "8"), ("c", "9"))]
PROMPTS = [[7], [9], [9]]


class _Engine:
    """Answers a prompt with its tokens and the sequence's index; later sequences end first.

    Attributes:
        calls: (prompts, first sequence) of each.
        dies_after: Finished sequences after which it raises, as a killed process would end.
    """

    def __init__(self, dies_after=None):
        self.calls, self.dies_after = [], dies_after

    def generate(self, prompts, config, *, num_generations, first_sequence, on_finished, **_):
        self.calls.append((len(prompts), first_sequence))
        for index in reversed(range(len(prompts) * num_generations)):
            if self.dies_after == 0:
                raise KeyboardInterrupt
            if self.dies_after:
                self.dies_after -= 1
            prompt = prompts[index // num_generations]
            trace = SoftTrace(
                ids=torch.zeros(1, 3, 1, dtype=torch.int32),
                scores=torch.zeros(1, 3, 1),
                support=torch.ones(1, 3, 1, dtype=torch.bool),
                is_soft=torch.tensor([[True, True, False]]),
                lengths=torch.tensor([3], dtype=torch.int32),
            )
            text = f"{prompt[0]}.{first_sequence + index}"
            on_finished(index, Rollout(prompt, [1, 2, 3], text, trace, None, "stop", "marker"))


def _judge(problem, text):
    return Judgement(text.startswith(problem.answer), text[0])


def _sample(path, engine, batch_size=4, judge=_judge):
    """Sample into a file; what was new."""
    sampling = Sampling(PROBLEMS, PROMPTS, ThinkingConfig(), 2, 3, 5, judge, batch_size)
    with RecordFile(path, {}) as file:
        before = set(file.records)
        sample(engine, sampling, deal(sampling, file.records)[0], file.records, file.append)
        return file.records.keys() - before


def test_every_sample_meets_its_own_problem(tmp_path):
    path = tmp_path / "a.jsonl"
    _sample(path, _Engine())
    found = {r.key: r for r in read_records(path)[1]}
    assert {key: (r.text, r.answer, r.correct) for key, r in found.items()} == {
        ("a", 0): ("7.0", "7", True),
        ("a", 1): ("7.1", "7", True),
        ("b", 0): ("9.2", "9", False),
        ("b", 1): ("9.3", "9", False),
        ("c", 0): ("9.4", "9", True),
        ("c", 1): ("9.5", "9", True),
    }
    record = found["b", 1]
    assert (record.num_tokens, record.num_soft_tokens) == (3, 2)
    assert (record.seed, record.sequence) == (5, 3)


@pytest.mark.parametrize("killed_after", range(6))
def test_a_killed_run_goes_on_with_what_is_missing(tmp_path, killed_after):
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    _sample(whole, _Engine())
    with pytest.raises(KeyboardInterrupt):
        _sample(killed, _Engine(dies_after=killed_after))
    assert len(read_records(killed)[1]) == killed_after
    engine = _Engine()
    assert len(_sample(killed, engine)) == 6 - killed_after
    lines = [sorted(path.read_bytes().splitlines()) for path in (whole, killed)]
    assert lines[0] == lines[1]
    # Parts that are whole are not made again; the others are made as they were, as a whole.
    assert engine.calls == ([(2, 0), (1, 4)] if killed_after < 4 else [(1, 4)])


def test_what_is_finished_is_not_made_again(tmp_path):
    path = tmp_path / "a.jsonl"
    _sample(path, _Engine())
    engine = _Engine()
    _sample(path, engine)
    assert engine.calls == []


def test_a_problems_samples_are_never_parted(tmp_path):
    engine = _Engine()
    _sample(tmp_path / "a.jsonl", engine, batch_size=1)
    assert engine.calls == [(1, 0), (1, 2), (1, 4)]


def _plan(problems, num_samples, batch_size):
    problems = [Problem(str(i), "?", "7") for i in range(problems)]
    prompts = [[7]] * len(problems)
    return Sampling(problems, prompts, ThinkingConfig(), num_samples, 3, 5, _judge, batch_size)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("share_missing", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("batch_size", [1, 6, 100])
def test_every_missing_sample_is_dealt_to_one_process(processes, share_missing, batch_size):
    rng = random.Random(0)
    for count in (1, 2, 11, 20):
        sampling = _plan(count, 2, batch_size)
        missing = {key for key in sampling.keys if rng.random() < share_missing}
        shares = deal(sampling, set(sampling.keys) - missing, processes)
        assert len(shares) == processes
        parts = [part for share in shares for part in share]
        dealt = [key for part in parts for key in sampling.keys_of(part)]
        assert len(dealt) == len(set(dealt)) and missing <= set(dealt)
        # Nothing is made again but with what is missing, and no process has two parts more.
        assert all(missing & set(sampling.keys_of(part)) for part in parts)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_what_is_in_a_batch_does_not_depend_on_how_many_share(processes):
    sampling = _plan(20, 2, 8)  # five batches
    parts = [part for share in deal(sampling, (), processes) for part in share]
    assert sorted(parts, key=min) == deal(sampling, ())[0]


def test_where_there_is_no_full_batch_for_each_the_problems_are_split():
    assert deal(_plan(5, 2, 100), (), 2) == [[range(3)], [range(3, 5)]]
    assert deal(_plan(2, 2, 100), (), 3) == [[range(1)], [range(1, 2)], []]


def test_a_verifier_that_fails_is_heard(tmp_path):
    def broken(problem, text):
        raise RuntimeError("the verifier did not start")

    with pytest.raises(RuntimeError, match="did not start"):
        _sample(tmp_path / "a.jsonl", _Engine(), judge=broken)
