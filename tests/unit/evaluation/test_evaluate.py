"""pass@1 and its error by hand, and what a record says."""

import math

import pytest
import torch

from softgrpo.evaluation import Evaluation, evaluate, read_records, write_records
from softgrpo.rollout import Rollout
from softgrpo.tasks import Problem
from softgrpo.thinking import SoftTrace, ThinkingConfig


def _record(problem: str, correct: bool, tokens: int = 4, closed: str | None = "marker") -> dict:
    return {
        "problem_id": problem,
        "correct": correct,
        "num_tokens": tokens,
        "thinking_ended_by": closed,
    }


def test_pass_at_1_and_its_clustered_error():
    rows = [("a", 1), ("a", 1), ("b", 1), ("b", 0), ("c", 0), ("c", 0)]
    result = Evaluation([_record(name, bool(right)) for name, right in rows], 1.0, 2.0)
    assert result.pass_at_1 == 0.5
    # Problem means 1, .5, 0: deviation .5 over the root of three problems, not of six samples.
    assert result.standard_error == pytest.approx(0.5 / math.sqrt(3))


def test_one_problem_has_no_error():
    assert math.isnan(Evaluation([_record("a", True)], 0.0, 0.0).standard_error)


def test_mean_tokens_and_share_closed():
    result = Evaluation([_record("a", True, 4), _record("b", True, 8, None)], 0.0, 0.0)
    assert (result.mean_tokens, result.share_closed) == (6.0, 0.5)


class _Engine:
    """Answers each prompt with its own tokens as text, the sample's number appended."""

    def generate(self, prompts, config, *, num_generations, progress=None, **_):
        rollouts = []
        for prompt in prompts:
            for sample in range(num_generations):
                trace = SoftTrace(
                    ids=torch.zeros(1, 3, 1, dtype=torch.int32),
                    scores=torch.zeros(1, 3, 1),
                    support=torch.ones(1, 3, 1, dtype=torch.bool),
                    is_soft=torch.tensor([[True, True, False]]),
                    lengths=torch.tensor([3], dtype=torch.int32),
                )
                text = f"{prompt[0]}.{sample}"
                rollouts.append(Rollout(prompt, [1, 2, 3], text, trace, None, "stop", "marker"))
        return rollouts


def test_every_sample_meets_its_own_problem():
    problems = [Problem("a", "?", "7"), Problem("b", "?", "8")]
    result = evaluate(
        _Engine(),
        problems,
        [[7], [9]],
        ThinkingConfig(),
        num_samples=2,
        max_new_tokens=3,
        seed=0,
        verify=lambda problem, text: text.startswith(problem.answer),
    )
    found = [(r["problem_id"], r["sample"], r["text"], r["correct"]) for r in result.records]
    assert found == [
        ("a", 0, "7.0", True),
        ("a", 1, "7.1", True),
        ("b", 0, "9.0", False),
        ("b", 1, "9.1", False),
    ]
    assert result.records[0]["num_tokens"] == 3
    assert result.records[0]["num_soft_tokens"] == 2


def test_records_come_back_from_disk_whatever_the_model_wrote(tmp_path):
    record = _record("a", True) | {"text": "line\u2028separator \x85 \ud800 \x1b[2J\n"}
    path = tmp_path / "evaluation" / "before-soft.jsonl"
    write_records(Evaluation([record], 1.5, 2.5), path)
    read = read_records(path)
    assert (read.seconds, read.cpu_seconds, read.records) == (1.5, 2.5, [record])
    assert len(list(path.parent.iterdir())) == 1
