"""What a resumed run may change: whatever holds from its next step on, and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, fields
from typing import Any

from softgrpo.files import read_json
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.recipe import RunConfig
from softgrpo.runs.recipe_files import read_yaml
from softgrpo.thinking import ThinkingConfig
from softgrpo.values import check

# What the evaluation before training was made with, and the one after is to be compared by.
_EVALUATED = (
    "model", "dtype", "task", "task_options", "problem_seed", "chat", "system_prompt", "examples",
    "prompt_template", "prompt_separator", "chat_template_kwargs", "eval_reward", "eval_threshold",
    "eval_samples", "max_completion_length", "seed", *(f.name for f in fields(ThinkingConfig)),
)  # fmt: skip
# What a checkpoint's weights, its place in the data and its unused rollouts were made with.
_TRAINED = (
    "lora", "optim", "num_train_problems", "max_prompt_tokens", "data_seed", "shuffle_dataset",
    "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps",
    "update_batch_size", "generation_batch_size", "steps_per_generation", "num_iterations",
    "density", "reduction", "beta",
)  # fmt: skip
# What is still to be done when training has ended.
_AFTERWARDS = ("num_eval_problems", "eval_decodings", "output_dir")
# Schedules whose state is the learning rate itself.
_STATEFUL = ("reduce_lr_on_plateau", "greedy")


def check_changes(
    directory: RunDirectory, values: Mapping[str, Any], num_steps: int, num_processes: int
) -> None:
    """Refuse what cannot change in a run that is there; touches nothing.

    All but the directory is as it is now: fields, optimizer steps of the whole run, processes.

    Raises:
        ValueError: Fields that are fixed, or have no effect any more; a run that has made more
            steps than it is to have; another number of processes where there is something to train.
    """
    if not directory.config.exists():
        return
    checkpoint, _ = directory.last_checkpoint()
    before, now = _resolved(read_yaml(str(directory.config))), _resolved(values)
    changed = {
        name: f"{name} {before[name]} -> {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    }
    if checkpoint is None:
        if directory.former_records("before"):
            _refuse(changed, _EVALUATED, "the evaluation before training was made with the former")
        return
    is_stateful = any(run.get("lr_scheduler_type") in _STATEFUL for run in (before, now))
    rates = ("learning_rate", "lr_scheduler_type") if is_stateful else ()
    _refuse(changed, (*_EVALUATED, *_TRAINED, *rates), f"{checkpoint} was made with the former")
    state = read_json(checkpoint / "trainer_state.json")
    check("trainer_state.json", state, dict)
    check(f"{checkpoint}/trainer_state.json: global_step", step := state.get("global_step"), int)
    if step > num_steps:
        raise ValueError(
            f"{checkpoint}: has made {step} steps, more than the {num_steps} that the run is to "
            "have; raise max_steps or num_train_epochs"
        )
    made_by = len(list(checkpoint.glob("rollouts_*.safetensors")))
    if step < num_steps and made_by != num_processes:
        raise ValueError(
            f"{checkpoint}: was made by {made_by} processes and there are {num_processes}; start "
            "as many, or choose another output_dir"
        )
    if step == num_steps:
        without_effect = changed.keys() - _AFTERWARDS
        _refuse(
            changed,
            without_effect,
            f"training has ended at step {step}, where max_steps above it would go on",
        )


def _refuse(changed: Mapping[str, str], names: Collection[str], why: str) -> None:
    refused = [change for name, change in changed.items() if name in names]
    if refused:
        raise ValueError(
            f"--resume cannot change {', '.join(refused)}: {why}; keep the former, or choose "
            "another output_dir"
        )


def _resolved(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values for the same run, however they were written."""
    own = {f.name: values[f.name] for f in fields(RunConfig) if f.name in values}
    config = RunConfig(**own)
    judge = config.eval_reward or config.rewards[0]
    return {**values, **asdict(config), "eval_reward": judge}
