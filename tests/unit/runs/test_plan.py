"""What a plan decides where the recipe leaves it open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softgrpo.runs.plan import make_plan, within
from softgrpo.runs.recipe import read_recipe
from tests.helpers import save_tiny_model, write_recipe


def test_long_prompts_are_left_out_and_counted():
    ids = [[0] * n for n in (3, 1, 4, 2)]
    assert within(None, ids) == ([0, 1, 2, 3], [])
    assert within(4, ids) == ([0, 1, 2, 3], [])
    assert within(2, ids) == ([1, 3], ["2 of 4 problems left out: prompts over 2 tokens"])
    many = [[0] * 2000] * 12 + [[0]] * 40_303
    note = "12 of 40,315 problems left out: prompts over 1,024 tokens"
    assert within(1024, many) == (list(range(12, 40_315)), [note])
    with pytest.raises(ValueError, match="max_prompt_tokens=0: the shortest prompt of the 4 tr"):
        within(0, ids)


def test_training_loses_long_prompts_and_evaluation_none(tmp_path):
    model = save_tiny_model(tmp_path / "model")
    path = Path(
        write_recipe(
            tmp_path, Path(model), max_steps=-1, num_train_epochs=1, num_train_problems=None
        )
    )
    # Four long questions to train on, and three to evaluate on, of five words each.
    rows = [{"question": f"{a} {b}", "answer": "1"} for a in "abcde" for b in "klmnopqrst"]
    long = [{"question": f"a b c d {x}", "answer": "1"} for x in "klmn"]
    data, held_out = tmp_path / "data.jsonl", tmp_path / "held_out.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *long]))
    held_out.write_text(
        "".join(json.dumps({"question": f"e d c b {x}", "answer": "1"}) + "\n" for x in "klm")
    )
    options = {"task_options": {"eval_source": str(held_out)}, "max_prompt_tokens": 3}
    plan = make_plan(*read_recipe(path, options | {"num_samples_kept": None})[:2])
    assert (
        len(plan.shown.problems) == 3
    )  # all there are; None is what runs of before have written down
    assert len(plan.train) == 50 and plan.num_steps == 50
    assert "4 of 54 problems left out: prompts over 3 tokens" in plan.notes
    (sampling, *_) = plan.decodings.values()
    assert [len(ids) for ids in sampling.prompt_ids] == [5, 5, 5]
    whole = make_plan(*read_recipe(path, options | {"max_prompt_tokens": None})[:2])
    assert len(whole.train) == 54 and not any("left out" in note for note in whole.notes)
    with pytest.raises(ValueError, match="50 training problems are fewer than the 53"):
        changes = {"per_device_train_batch_size": 212, "max_prompt_tokens": 3}
        make_plan(*read_recipe(path, options | changes)[:2])
