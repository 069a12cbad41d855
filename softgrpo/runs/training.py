"""A recipe's run, from its checks to its table. The trainer is used as it is."""

from __future__ import annotations

import errno
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerState

from softgrpo.checkpoints import most_kept
from softgrpo.files import delete, locked, put_in_place
from softgrpo.models import load_weights
from softgrpo.reports import draw_curves, read_metrics
from softgrpo.rewards import RewardError
from softgrpo.rollout import NonFiniteLogitsError
from softgrpo.rollout.vllm_client import ServerError
from softgrpo.runs.callbacks import Interrupt, MetricsLog, SampleKeeper
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.display import Display, Silent
from softgrpo.runs.errors import RunFailed, reward_failed
from softgrpo.runs.estimate import Estimate, estimate
from softgrpo.runs.outcome import (
    Evaluations,
    Outcome,
    cost,
    evaluate_all,
    former_cost,
    report,
    usage,
)
from softgrpo.runs.plan import Plan, make_plan
from softgrpo.runs.progress import TrainingProgress
from softgrpo.runs.recipe import (
    SECRETS,
    Changes,
    Recipe,
    field_name,
    read_recipe,
    recipe_names,
)
from softgrpo.runs.resuming import check_changes
from softgrpo.together import alike, together
from softgrpo.training import NonFiniteLossError, SofTGRPOTrainer
from softgrpo.training.engines import check_servers
from softgrpo.training.support import causal_lm
from softgrpo.values import shown

_FULL = 2**20  # bytes free, where torch fails to write and does not say why


@dataclass(frozen=True)
class _Start:
    """What the parts of one start of a run share."""

    plan: Plan
    directory: RunDirectory
    display: Display
    again: str  # how to go on
    resume: bool


def train(
    recipe: Recipe,
    *,
    resume: bool = False,
    overwrite: bool = False,
    display: Display | None = None,
    **fields: Any,
) -> Outcome:
    """Train what a recipe describes: evaluation before, training, evaluation after, a table.

        train("lab", learning_rate=5e-6, output_dir="runs/slower")

    Ctrl-C and SIGTERM finish the step and save it, if this is the main thread.

    Args:
        recipe: A YAML file, the name of a recipe that ships, a list of both, of which later ones
            win, or the fields themselves.
        resume: Go on from the last checkpoint in output_dir, where there is one.
        overwrite: Delete the run that is there.
        display: Where it says how it goes; None: as the command line does.
        fields: Values that win over the recipe's: fields of RunConfig and of SofTGRPOConfig.

    Raises:
        ValueError: The recipe, the data or the folder are of no use; nothing has been touched.
        RunFailed: The loss was not finite, a reward or a server failed, or the disk is full.
    """
    return start(recipe, fields, resume, overwrite, display or Display())


def start(
    recipe: Recipe,
    changes: Changes,
    resume: bool,
    overwrite: bool,
    display: Display,
) -> Outcome:
    """As `train`; changes may also be ``--field value`` arguments of a command line."""
    if resume and overwrite:
        raise ValueError("resume=True, overwrite=True: choose one of them")
    with Interrupt(display) as interrupt:
        started = usage()
        with alike():
            config, args, values = read_recipe(recipe, changes)
        directory = RunDirectory(Path(str(args.output_dir)))
        is_main = args.process_index == 0
        with together():  # whatever is wrong is known to all before the model is loaded
            if is_main:
                directory.check(resume, overwrite)
                options: Any = config.task_options or {}
                source = options.get("eval_source")
                directory.check_inputs(model=config.model, task=config.task, eval_source=source)
            plan = make_plan(config, args)
            if is_main and resume:
                check_changes(directory, values, plan.num_steps, args.world_size)
            directory.require_space(_checkpoint_bytes(plan))
            if is_main:
                check_servers(args, plan.model_config)
        again = _call(recipe, changes, resume=True)
        this = _Start(plan, directory, display if is_main else Silent(), again, resume)
        trainer = _make_trainer(this, interrupt)
        # From here on the folder is written to.
        with locked(directory.path) if is_main else nullcontext():
            if is_main:
                directory.check(resume, overwrite)  # another may have begun meanwhile
                if overwrite:
                    directory.clear()
                call = _call(recipe, changes, resume=False)
                changed = directory.write_config(values, call, args.seed)
                for note in (*plan.notes, *(f"resumed with another {x}" for x in changed)):
                    display.say(note)
            estimated = _estimate(this, trainer) if is_main else None
            return _carry_out(this, trainer, interrupt, started, estimated)


def _call(recipe: Recipe, changes: Changes, resume: bool) -> str:
    """The command or the call that starts the run, or goes on with it; without secrets."""
    names = [] if isinstance(recipe, Mapping) else recipe_names(recipe)
    if not isinstance(changes, Mapping):
        words = ["softgrpo", "train", *names, *_told(changes), *["--resume"] * resume]
        return shlex.join(words)
    what = repr(names[0] if len(names) == 1 else names) if names else "{...}"
    given = [f"{name}={shown(x)}" for name, x in changes.items() if name not in SECRETS]
    return f"softgrpo.runs.train({', '.join([what, *given, *['resume=True'] * resume])})"


def _told(arguments: Sequence[str]) -> Iterator[str]:
    """``--field value`` arguments without the secret ones."""
    is_secret = False
    for argument in arguments:
        if (name := field_name(argument)) is not None:
            is_secret = name in SECRETS
        if not is_secret:
            yield argument


def _estimate(this: _Start, trainer: SofTGRPOTrainer) -> Estimate | None:
    """What the run will hold and take, said aloud; None where nobody can tell."""
    model, device = causal_lm(trainer.model), trainer.accelerator.device
    found = estimate(this.plan, model, device, trainer.is_fsdp_enabled)
    if isinstance(found, str):
        this.display.say(found)
        return None
    this.display.say(found.lines)
    return found


def _carry_out(
    this: _Start,
    trainer: SofTGRPOTrainer,
    interrupt: Interrupt,
    started: tuple[float, float],
    estimated: Estimate | None,
) -> Outcome:
    """Evaluate, train, evaluate, report."""
    plan, directory, display = this.plan, this.directory, this.display
    outcome = Outcome(
        directory.path,
        directory.model,
        directory.metrics,
        directory.curves,
        directory.summary.parent,
    )
    is_main = trainer.is_world_process_zero()
    try:
        if plan.decodings:
            trainer.sync_engine()  # a server may have another run's weights
        outcome = replace(outcome, before=_evaluate(this, trainer, "before"))
        has_trained = _train(this, trainer)
        outcome = replace(outcome, step=trainer.state.global_step)
        if interrupt.requested:
            display.say(f"saved after step {outcome.step}; go on with: {this.again}")
            return replace(outcome, interrupted=True)
        _save_model(trainer, directory)
        trainer.sync_engine()
        outcome = replace(outcome, after=_evaluate(this, trainer, "after"))
        with together():
            if is_main:
                spent = None if has_trained else former_cost(directory)
                spent = spent or cost(started, trainer.state.num_input_tokens_seen, estimated)
                outcome = replace(outcome, cost=spent)
                report(plan, directory, outcome, display)
        return outcome
    except KeyboardInterrupt:
        display.say(f"stopped; {_what_is_left(directory)}; go on with: {this.again}")
        return replace(outcome, step=trainer.state.global_step, interrupted=True)
    except RewardError as error:
        left = f"{_what_is_left(directory)}; go on with: {this.again}"
        raise reward_failed(error, left) from error
    except ServerError as error:
        left = f"{_what_is_left(directory)}; go on with: {this.again}"
        raise RunFailed(f"{error}; {left}") from error
    except (NonFiniteLossError, NonFiniteLogitsError) as error:
        raise RunFailed(f"{error}; {_what_is_left(directory)}") from error
    except Exception as error:
        if not _is_disk_full(error, directory.path):
            raise
        raise RunFailed(
            f"no space left on the disk of {directory.path}; {_what_is_left(directory)}; make "
            f"room, then: {this.again}"
        ) from error
    finally:
        if is_main:
            _draw(this)


def _evaluate(this: _Start, trainer: SofTGRPOTrainer, when: str) -> Evaluations:
    with trainer.rollout_precision():
        return evaluate_all(trainer.engine, this.plan, this.directory, when, this.display)


def _make_trainer(this: _Start, interrupt: Interrupt) -> SofTGRPOTrainer:
    plan, directory, args = this.plan, this.directory, this.plan.args
    dtype = getattr(torch, plan.config.dtype)
    trainer = SofTGRPOTrainer(
        load_weights(plan.model, dtype, args.trust_remote_code),
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
    if trainer.is_world_process_zero():
        sequences = int(args.generation_batch_size or 0) // args.world_size
        progress = TrainingProgress(sequences, this.display)
        trainer.on_rollout = progress.on_rollout
        trainer.add_callback(progress)
        trainer.add_callback(MetricsLog(directory.metrics))
    if plan.shown.problems:
        every, precision = plan.config.sample_steps, trainer.rollout_precision
        trainer.add_callback(
            SampleKeeper(directory.samples, every, plan.shown, trainer.engine, precision)
        )
    return trainer


def _train(this: _Start, trainer: SofTGRPOTrainer) -> bool:
    """Train from the checkpoint on; only load it, and return False, where it is the end already."""
    checkpoint = _checkpoint(this) if this.resume else None
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= this.plan.num_steps:
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return False
    # In every process, which may have a part on a disk of its own.
    for path in (*this.directory.former_records("after"), this.directory.summary):
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


def _checkpoint(this: _Start) -> Path | None:
    """The checkpoint to resume from, said aloud."""
    checkpoint, incomplete = this.directory.last_checkpoint()
    for folder in incomplete:
        this.display.say(f"{folder} is incomplete: skipped")
    where = f"from {checkpoint}" if checkpoint else "from the beginning: there is no checkpoint yet"
    this.display.say(f"resuming {where}")
    return checkpoint


def _what_is_left(directory: RunDirectory) -> str:
    checkpoint, _ = directory.last_checkpoint()
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"


def _checkpoint_bytes(plan: Plan) -> int:
    """What the run will write at most, nearly: weights and Adam's two moments, some times over.

    0 where it cannot be told before the model is there (a hub id), or is little (LoRA).
    """
    weights = sum(path.stat().st_size for path in Path(plan.model).glob("*.safetensors"))
    return 0 if plan.lora else weights * (1 + 3 * most_kept(plan.args, plan.num_steps))


def _is_disk_full(error: BaseException, folder: Path) -> bool:
    """Also where torch or safetensors put it into words of their own, or only fail."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left on device" in str(error):
        return True
    return isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < _FULL


def _draw(this: _Start) -> None:
    metrics, curves = this.directory.metrics, this.directory.curves
    try:
        if metrics.exists() and read_metrics(metrics):
            draw_curves(metrics, curves, f"{this.plan.config.model}, {this.plan.config.task}")
    except OSError as error:  # it must not hide why the run has ended, a full disk for one
        this.display.say(f"{curves}: not drawn: {error}")
