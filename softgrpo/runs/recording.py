"""One evaluation as the command line makes it: its verifier, its file of records, its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from softgrpo.evaluation import Record, RecordFile, Results, evaluate
from softgrpo.rewards import (
    VERIFIERS,
    CheckedAsyncReward,
    CheckedReward,
    Judgement,
    judge,
    load_reward,
)
from softgrpo.runs.progress import Counter
from softgrpo.sandbox import SandboxUnavailable, run_python
from softgrpo.tasks import Problem, reward_columns
from softgrpo.thinking import ThinkingConfig

Judge = Callable[[Problem, str], Judgement]


def evaluate_to_file(
    engine: Any,
    problems: Sequence[Problem],
    prompt_ids: Sequence[Sequence[int]],
    thinking: ThinkingConfig,
    path: Path,
    *,
    label: str,
    settings: Mapping[str, Any],
    num_samples: int,
    max_new_tokens: int,
    seed: int,
    judge: Judge,
    batch_size: int,
) -> Results:
    """Evaluate what the file does not hold yet, with a progress bar.

    Args:
        engine, problems, prompt_ids, thinking: See softgrpo.evaluation.evaluate.
        path: The file of records.
        label: What the progress bar says.
        settings: What else the records depend on, as plain data: model, task, prompt, verifier.
        num_samples, max_new_tokens, seed, judge, batch_size: See softgrpo.evaluation.evaluate.

    Returns:
        The results of these problems, those included that were there already.

    Raises:
        ValueError: The file was made with other settings; names them.
    """
    settings = {
        **settings,
        "thinking": thinking.to_dict(),
        "num_samples": num_samples,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
    }
    with RecordFile(path, settings) as file:
        wanted = {(problem.id, i) for problem in problems for i in range(num_samples)}
        if file.dropped:
            print(f"{path}: {file.dropped} damaged bytes at its end put aside", flush=True)
        done = [record for key, record in file.records.items() if key in wanted]
        if len(done) < len(wanted):
            if done:
                print(f"{path}: going on after {len(done)} samples", flush=True)
            counter = Counter(label, len(wanted), "samples", initial=len(done))
            num_correct = sum(record.correct for record in done)
            num_judged = len(done)

            def show(record: Record) -> None:
                nonlocal num_correct, num_judged
                num_correct, num_judged = num_correct + record.correct, num_judged + 1
                counter(1, f"correct {num_correct / num_judged:.1%}")

            evaluate(
                engine,
                problems,
                prompt_ids,
                thinking,
                file,
                num_samples=num_samples,
                max_new_tokens=max_new_tokens,
                seed=seed,
                judge=judge,
                batch_size=batch_size,
                on_record=show,
            )
            counter.close()
        return Results(settings, [r for key, r in file.records.items() if key in wanted])


def make_judge(
    spec: str,
    put: Callable[[Problem], Any],
    *,
    think_end: Sequence[str],
    threshold: float = 0.5,
) -> Judge:
    """What tells whether a completion solves a problem.

    Args:
        spec: As in load_reward.
        put: A problem as it is put to the model, in messages or in text. A reward of the user's is
            given completions of the same kind.
        think_end: The markers that end thinking.
        threshold: A completion is correct when a reward of the user's is above it.

    Raises:
        ValueError: As load_reward; or programs are to be judged and there is no sandbox.
    """
    reward = load_reward(spec, think_end=think_end)
    if spec in ("humaneval", "mbpp"):
        try:
            run_python("")
        except SandboxUnavailable as error:
            raise ValueError(f"{spec}: programs cannot be run safely here: {error}") from error
    if spec in VERIFIERS:
        return partial(_by_verifier, spec, tuple(think_end))
    return partial(_by_reward, reward, threshold, put)


def as_completion(text: str, is_chat: bool) -> Any:
    """A completion as TRL gives it to rewards: messages where the prompt is, and else text."""
    return [{"role": "assistant", "content": text}] if is_chat else text


def _by_verifier(name: str, think_end: Sequence[str], problem: Problem, text: str) -> Judgement:
    return judge(name, text, problem.answer, think_end)


def _by_reward(
    reward: CheckedReward | CheckedAsyncReward,
    threshold: float,
    put: Callable[[Problem], Any],
    problem: Problem,
    text: str,
) -> Judgement:
    prompt = put(problem)
    columns = {name: [value] for name, value in reward_columns(problem).items()}
    completion = as_completion(text, is_chat=not isinstance(prompt, str))
    [value] = reward.now(prompts=[prompt], completions=[completion], **columns)
    return Judgement(value is not None and value > threshold, None)
