"""`softgrpo train`: a recipe, from its checks to its table. The trainer is used as it is."""

from __future__ import annotations

import errno
import math
import shlex
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerState

from softgrpo.files import delete, locked, put_in_place
from softgrpo.models import load_weights
from softgrpo.reports import draw_curves, read_metrics
from softgrpo.rewards import RewardError
from softgrpo.rollout import NonFiniteLogitsError
from softgrpo.runs.callbacks import Interrupt, MetricsLog, SampleKeeper
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.errors import RunFailed, reward_failed
from softgrpo.runs.outcome import cost, evaluate_all, former_cost, report, usage
from softgrpo.runs.plan import Plan, make_plan
from softgrpo.runs.progress import TrainingProgress
from softgrpo.runs.recipe import read_recipe
from softgrpo.runs.resuming import check_changes
from softgrpo.training import NonFiniteLossError, SofTGRPOTrainer

_FULL = 2**20  # bytes free, where torch fails to write and does not say why


def run(recipe: str, arguments: Sequence[str], *, resume: bool, overwrite: bool) -> int:
    """Train what a recipe describes; returns the exit code: 0, or 130 when it was interrupted.

    Raises:
        ValueError: The recipe, the data or the folder are of no use; nothing has been touched.
        RunFailed: The loss was not finite, a reward failed, or the disk is full.
    """
    with Interrupt() as interrupt:
        return _run(recipe, arguments, resume, overwrite, interrupt)


def _run(
    recipe: str, arguments: Sequence[str], resume: bool, overwrite: bool, interrupt: Interrupt
) -> int:
    started = usage()
    config, args, values = read_recipe(recipe, list(arguments))
    directory = RunDirectory(Path(str(args.output_dir)))
    again = shlex.join(["softgrpo", "train", recipe, *arguments, "--resume"])
    is_main = args.process_index == 0
    if is_main:
        directory.check(resume, overwrite)
        options: Any = config.task_options or {}
        source = options.get("eval_source")
        directory.check_inputs(model=config.model, task=config.task, eval_source=source)
    plan = make_plan(config, args)
    if is_main and resume:
        check_changes(directory, values, plan.num_steps, args.world_size)
    directory.require_space(_checkpoint_bytes(plan))
    trainer = _make_trainer(plan, directory, interrupt)
    # From here on the folder is written to.
    with locked(directory.path) if is_main else nullcontext():
        if is_main:
            directory.check(resume, overwrite)  # another may have begun meanwhile
            if overwrite:
                directory.clear()
            changes = directory.write_config(values, again.removesuffix(" --resume"), args.seed)
            _say([*plan.notes, *(f"resumed with another {change}" for change in changes)])
        return _carry_out(trainer, plan, directory, interrupt, resume, again, started)


def _carry_out(
    trainer: SofTGRPOTrainer,
    plan: Plan,
    directory: RunDirectory,
    interrupt: Interrupt,
    resume: bool,
    again: str,
    started: tuple[float, float],
) -> int:
    """Evaluate, train, evaluate, report; returns the exit code."""
    is_main = trainer.is_world_process_zero()
    try:
        with trainer.rollout_precision():
            before = evaluate_all(trainer.engine, plan, directory, "before") if is_main else {}
        trainer.accelerator.wait_for_everyone()
        has_trained = _train(trainer, plan, directory, _checkpoint(directory) if resume else None)
        if interrupt.requested:
            _say([f"saved after step {trainer.state.global_step}; go on with: {again}"])
            return 130
        _save_model(trainer, directory)
        trainer.engine.sync()  # in every process: shards are gathered
        if is_main:
            with trainer.rollout_precision():
                after = evaluate_all(trainer.engine, plan, directory, "after")
            spent = None if has_trained else former_cost(directory)
            tokens = trainer.state.num_input_tokens_seen
            report(plan, directory, before, after, spent or cost(started, tokens))
        trainer.accelerator.wait_for_everyone()
        return 0
    except KeyboardInterrupt:
        _say([f"stopped; {_what_is_left(directory)}; go on with: {again}"])
        return 130
    except RewardError as error:
        left = f"{_what_is_left(directory)}; go on with: {again}"
        raise reward_failed(error, left) from error
    except (NonFiniteLossError, NonFiniteLogitsError) as error:
        raise RunFailed(f"{error}; {_what_is_left(directory)}") from error
    except Exception as error:
        if not _is_disk_full(error, directory.path):
            raise
        raise RunFailed(
            f"no space left on the disk of {directory.path}; {_what_is_left(directory)}; make "
            f"room, then: {again}"
        ) from error
    finally:
        if is_main:
            _draw(plan, directory)


def _make_trainer(plan: Plan, directory: RunDirectory, interrupt: Interrupt) -> SofTGRPOTrainer:
    config, args = plan.config, plan.args
    dtype = getattr(torch, config.dtype)
    model = load_weights(plan.model, dtype, args.trust_remote_code)
    trainer = SofTGRPOTrainer(
        model,
        plan.rewards,
        args,
        train_dataset=plan.train,
        eval_dataset=plan.evaluation,
        processing_class=plan.tokenizer,
        peft_config=plan.lora,
    )
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.add_callback(interrupt)
    if trainer.is_fsdp_enabled and (plan.problems or plan.shown):
        raise ValueError(
            "num_eval_problems, num_samples_kept: with FSDP both must be 0, as they generate in "
            "one process; eval_strategy: steps evaluates in all of them"
        )
    if not trainer.is_world_process_zero():
        return trainer
    progress = TrainingProgress(int(args.generation_batch_size or 0) // args.world_size)
    trainer.on_rollout = progress.on_rollout
    trainer.add_callback(progress)
    trainer.add_callback(MetricsLog(directory.metrics))
    if plan.shown:

        def generate() -> list[Any]:
            trainer.engine.sync()
            with trainer.rollout_precision():
                return trainer.engine.generate(
                    plan.shown_ids,
                    args.thinking,
                    max_new_tokens=int(args.max_completion_length or 0),
                    seed=args.seed,
                )

        keeper = SampleKeeper(
            directory.samples, config.sample_steps, generate, plan.shown, plan.judge
        )
        trainer.add_callback(keeper)
    return trainer


def _train(
    trainer: SofTGRPOTrainer, plan: Plan, directory: RunDirectory, checkpoint: Path | None
) -> bool:
    """Train from the checkpoint on; only load it, and return False, where it is the end already."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= plan.num_steps:
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return False
    if trainer.is_world_process_zero():
        for path in (*directory.path.glob("evaluation/after-*.jsonl"), directory.summary):
            path.unlink(missing_ok=True)
    try:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except NonFiniteLogitsError as error:
        step = trainer.state.global_step + 1
        raise NonFiniteLogitsError(f"{error}, in the rollout of training step {step}") from error
    return True


def _save_model(trainer: SofTGRPOTrainer, directory: RunDirectory) -> None:
    """The final model, whole or not at all: a former one, or the checkpoints, stand until then."""
    made, is_main = directory.unfinished_model, trainer.is_world_process_zero()
    if is_main:
        delete(made)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(made), _internal_call=True)  # which does not push it yet
    trainer.accelerator.wait_for_everyone()
    if is_main:
        put_in_place(made, directory.model)
    if trainer.args.push_to_hub:
        trainer.push_to_hub()


def _checkpoint(directory: RunDirectory) -> Path | None:
    """The checkpoint to resume from, said aloud."""
    checkpoint, incomplete = directory.last_checkpoint()
    _say([f"{folder} is incomplete: skipped" for folder in incomplete])
    where = f"from {checkpoint}" if checkpoint else "from the beginning: there is no checkpoint yet"
    _say([f"resuming {where}"])
    return checkpoint


def _what_is_left(directory: RunDirectory) -> str:
    checkpoint, _ = directory.last_checkpoint()
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"


def _checkpoint_bytes(plan: Plan) -> int:
    """What the run will write at most, nearly: weights and Adam's two moments, some times over.

    0 where it cannot be told before the model is there (a hub id), or is little (LoRA).
    """
    weights = sum(path.stat().st_size for path in Path(plan.model).glob("*.safetensors"))
    args = plan.args
    if args.save_strategy == "no":
        saves = 1
    else:
        steps = args.save_steps if args.save_steps >= 1 else args.save_steps * plan.num_steps
        saves = math.ceil(plan.num_steps / max(steps, 1))
    if args.save_total_limit:
        saves = min(saves, args.save_total_limit + 1)  # the oldest goes after the newest is there
    return 0 if plan.lora else weights * (1 + 3 * saves)


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    """Also where torch or safetensors put it into words of their own, or only fail."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left on device" in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _FULL


def _draw(plan: Plan, directory: RunDirectory) -> None:
    try:
        if directory.metrics.exists() and read_metrics(directory.metrics):
            title = f"{plan.config.model}, {plan.config.task}"
            draw_curves(directory.metrics, directory.curves, title)
    except OSError as error:  # it must not hide why the run has ended, a full disk for one
        _say([f"{directory.curves}: not drawn: {error}"])


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)
