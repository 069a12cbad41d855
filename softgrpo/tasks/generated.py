"""Problems that reasoning-gym generates.

Not its scoring: a generator without a single gold answer is refused.
"""

import difflib
import random
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from softgrpo.tasks.problems import Problem, Split, question_digest, split_of

_CHUNK = 500
_PATIENCE = 2000
"""Draws in a row without a new question after which a generator counts as exhausted."""


def generate_problems(
    name: str, *, split: Split, num_problems: int, seed: int, options: Mapping[str, Any]
) -> list[Problem]:
    """Distinct problems of one side of the split, in the order the generator draws them.

    The first n problems are the same whatever `num_problems >= n` is asked for.

    Args:
        name: A reasoning-gym data set, such as `chain_sum`.
        split: Which side; see `problems.split_of`.
        num_problems: How many.
        seed: Seed of the generator.
        options: Fields of the data set's configuration, other than `seed` and `size`.

    Raises:
        ValueError: Unknown name or option, or fewer distinct problems than asked for.
    """
    source = f"reasoning_gym:{name}"
    problems: dict[str, Problem] = {}
    draws = last_new = 0
    for entry in _draws(source, name, seed, options):
        if len(problems) == num_problems:
            break
        if draws - last_new == _PATIENCE:
            raise ValueError(
                f"num_problems={num_problems}: {source} with options {dict(options)} gave only "
                f"{len(problems)} distinct questions for split {split!r} in {draws} draws; ask "
                "for fewer, or set options that allow more"
            )
        draws += 1
        question, digest = entry["question"], question_digest(entry["question"])
        if split_of(question) != split or digest in problems:
            continue
        if entry["answer"] is None:
            raise ValueError(
                f"{source} has no single gold answer (many answers are right), which softgrpo's "
                "rewards need; choose another data set"
            )
        last_new = draws
        problems[digest] = Problem(
            f"{name}/{digest[:12]}", question, entry["answer"], entry["metadata"]
        )
    return list(problems.values())


def _draws(
    source: str, name: str, seed: int, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Endless entries. In chunks, as some data sets do all their work for `size` when made."""
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=3) or sorted(DATASETS)
        raise ValueError(f"{source}: no such reasoning-gym data set; nearest: {', '.join(near)}")
    known = {field.name for field in fields(DATASETS[name][1])} - {"seed", "size"}
    if unknown := options.keys() - known:
        raise ValueError(
            f"{source}: unknown options {sorted(unknown)}; there are {sorted(known)} "
            "(seed and size follow from seed and num_problems)"
        )
    chunk_seeds = random.Random(seed)
    while True:
        chunk_seed = chunk_seeds.randrange(2**31)
        try:
            chunk = reasoning_gym.create_dataset(name, seed=chunk_seed, size=_CHUNK, **options)
            yield from (chunk[index] for index in range(_CHUNK))
        except Exception as error:  # some data sets find out late, and in ways of their own
            raise ValueError(f"{source}: options {dict(options)} refused: {error}") from error
