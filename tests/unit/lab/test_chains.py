"""Chains: calculated right, reproducible, split by hash, and slipping as often as they should."""

import pytest

from softgrpo.lab.chains import (
    MODULUS,
    NUM_OPERANDS,
    THINK_END,
    ChainProblem,
    make_problems,
    stated_answer,
)

APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def triples(problem: ChainProblem) -> list[tuple[str, int, int]]:
    words = problem.thought.split()
    return [(words[i], int(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 3)]


def num_slips(problem: ChainProblem) -> int:
    value, slips = int(problem.prompt.split()[0]), 0
    for op, operand, result in triples(problem):
        slips += APPLY[op](value, operand) % MODULUS != result
        value = result
    return slips


def test_thought_restates_the_prompt_and_ends_in_the_answer():
    for problem in make_problems(200, seed=0):
        start, *rest = problem.prompt.split()
        restated = [word for op, operand, _ in triples(problem) for word in (op, str(operand))]
        assert [*restated, "="] == rest and start.isdigit()
        assert len(triples(problem)) == NUM_OPERANDS - 1
        assert num_slips(problem) == 0
        assert stated_answer(problem.completion) == problem.answer


def test_one_problem_calculated_by_hand():
    problem = next(p for p in make_problems(20_000, seed=0) if p.prompt.startswith("7 + 4 * 3"))
    assert problem.thought.startswith("+ 4 1 * 3 3")


def test_same_seed_same_problems():
    assert make_problems(50, seed=3) == make_problems(50, seed=3)
    assert make_problems(50, seed=3) != make_problems(50, seed=4)
    assert make_problems(80, seed=3)[:50] == make_problems(50, seed=3)


def test_train_and_heldout_are_disjoint():
    train = {problem.prompt for problem in make_problems(20_000, seed=0)}
    heldout = {problem.prompt for problem in make_problems(2_000, seed=0, split="heldout")}
    assert not train & heldout
    assert not train & {p.prompt for p in make_problems(2_000, seed=7, split="heldout")}


def test_corruption_leaves_prompts_and_answers_alone():
    clean, corrupted = make_problems(300, seed=0), make_problems(300, seed=0, corrupt=0.3)
    assert [(p.prompt, p.answer) for p in clean] == [(p.prompt, p.answer) for p in corrupted]
    assert clean != corrupted


@pytest.mark.parametrize("corrupt", [0.1, 0.3])
def test_share_of_slips_is_corrupt(corrupt: float):
    problems = make_problems(5_000, seed=0, corrupt=corrupt)
    share = sum(map(num_slips, problems)) / (5_000 * (NUM_OPERANDS - 1))
    # 300 facts have their odds drawn once for all, so the share is itself a draw around corrupt.
    assert share == pytest.approx(corrupt, abs=0.05)


def test_a_fact_is_missed_in_one_way_only():
    missed: dict[tuple[int, str, int], set[int]] = {}
    for problem in make_problems(5_000, seed=0, corrupt=0.3):
        value = int(problem.prompt.split()[0])
        for op, operand, result in triples(problem):
            if APPLY[op](value, operand) % MODULUS != result:
                missed.setdefault((value, op, operand), set()).add(result)
            value = result
    assert max(len(results) for results in missed.values()) == 1
    assert len(missed) == pytest.approx(180, abs=20)  # 2 * corrupt of the 300 facts


def test_stated_answer():
    assert stated_answer(f"+ 4 1 {THINK_END} 1") == "1"
    assert stated_answer(f"+ 4 1{THINK_END}1 <eos>") == "1"
    assert stated_answer("+ 4 1") is None
    assert stated_answer(f"+ 4 1 {THINK_END} ") is None
