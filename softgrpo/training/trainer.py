"""SofTGRPOTrainer: GRPO on soft thoughts. The only file that overrides TRL's private methods.

What differs from GRPOTrainer, in the order of this file; nothing else is overridden:
 1. what is not supported is refused by name (support.py); a reward must be a finite number
    (softgrpo.rewards.checked); the policy and the reference can replay a trace; a run whose
    weights are too coarse for their updates says so (rounding.py);
 2. rollouts come from an engine of softgrpo.rollout (engines.py), with the trace of every sequence;
 3. the trace's tensors are columns of the batch, which TRL shuffles, splits and buffers with the
    others; tokens that nobody drew (a forced end of thinking) are left out of the loss;
 4. per-token log-probabilities are the log-densities of the replayed trace;
 5. where the loss allows it, the sequences of an update are dealt out anew (micro_batches.py): long
    ones first, in all processes alike, and samples of one prompt into one micro-batch, where they
    share it;
 6. a micro-batch with more tokens than the budget goes through the model in several passes
    (micro_batches.py); a run that will outgrow its memory says so (memory.py);
 7. a loss or gradient that is not finite stops the run before it reaches the weights;
 8. an input embedding that gets no gradient is frozen (freezing.py);
 9. a resumed run is the same run, but where its config says otherwise: learning rate, schedule,
    intervals (resuming.py).
Losses, advantages, KL, clipping, PEFT, accelerate, logging and evaluation are TRL's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from softgrpo.files import is_model_card
from softgrpo.modeling.kernels import without_cudnn
from softgrpo.replay import Replayed, add_replay
from softgrpo.rollout import Rollout
from softgrpo.thinking import SoftTrace
from softgrpo.together import together
from softgrpo.training import (
    completions,
    freezing,
    micro_batches,
    resuming,
    rounding,
    support,
)
from softgrpo.training.config import SofTGRPOConfig
from softgrpo.training.engines import make_engine
from softgrpo.training.memory import MemoryWatch
from softgrpo.training.metrics import gap_metrics, thinking_metrics
from softgrpo.training.micro_batches import Batch
from softgrpo.training.paper import PAPER
from softgrpo.training.support import causal_lm

_logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient is NaN or infinite; the weights have not been touched."""


class SofTGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose rollouts think in soft tokens.

    Args:
        model, reward_funcs, args, ...: As for GRPOTrainer; args is a SofTGRPOConfig. A reward that
            returns anything but finite numbers, bools and None, or raises, is a RewardError.
        tools, environment_factory, rollout_func: Refused, as are vision models.

    Raises:
        ValueError: Something GRPOTrainer does that this trainer does not support, by name; a model
            that cannot be served; a marker that the tokenizer cannot produce.
    """

    _tag_names = ["trl", "softgrpo"]
    _name = "SofT-GRPO"
    _paper = PAPER

    # Attributes of GRPOTrainer's that its annotations leave open.
    args: SofTGRPOConfig
    model: Any
    max_completion_length: int
    _buffered_inputs: Any

    # What one call of a hook leaves for another, where TRL has no way to pass it.
    # The trace of the rollouts: from _generate_single_turn, of which TRL takes only tokens and
    # log-probabilities, until _generate_and_score_completions ends. In between TRL wants the old
    # policy's and the reference's of _get_per_token_logps_and_entropies, and gives it no batch.
    _trace: SoftTrace | None = None
    # Sequences of the evaluation so far: _generate_single_turn is not told which batch it has.
    _num_eval_sequences = 0
    # The optimizer step whose weights the engine has. TRL keeps the same of its vLLM.
    _engine_step = -1

    # 1. What is refused, and what is made
    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, **kwargs: Any
    ) -> None:
        support.require_supported(args, kwargs)
        self.on_rollout: Callable[[int, Rollout], object] | None = None
        super().__init__(
            model=model, reward_funcs=support.checked_rewards(reward_funcs), args=args, **kwargs
        )
        policy = causal_lm(self.model)
        support.require_supported_model(self, policy)
        self._shares_prompts = support.shares_prompts(policy, args.share_prompts)
        add_replay(policy, args.objective, self._shares_prompts)
        if self.ref_model is not None:
            reference = causal_lm(self.accelerator.unwrap_model(self.ref_model))
            add_replay(reference, args.objective, self._shares_prompts)
        self._memory = MemoryWatch(self.accelerator.device, args.train_batch_tokens)
        self.add_callback(self._memory)
        with together():
            self.engine = make_engine(self, policy)
        # FSDP2 makes float32 masters of what it is to train in another precision.
        has_masters = self.is_fsdp_enabled and self.accelerator.mixed_precision != "no"
        if not has_masters:
            self._warn(rounding.lost_updates(self.model.parameters(), args.learning_rate))

    def _warn(self, message: str | None) -> None:
        if message and self.is_world_process_zero():
            _logger.warning(message)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # Before any model is sharded: the reference is as soon as it is made.
        rounding.keep_results(getattr(self.accelerator.state, "fsdp_plugin", None))

    # 2. Rollouts
    def sync_engine(self) -> None:
        """Give the engine the model's weights; every process calls it, all raise what one does."""
        with together():
            self.engine.sync()

    def rollout_precision(self) -> AbstractContextManager[Any]:
        """In which the engine is to generate: the trainer's autocast, but a copy has its own dtype.

        accelerate puts autocast on the forward of what it prepares. With LoRA that is PEFT's model,
        and the engine calls the one inside.
        """
        is_policy = getattr(self.engine, "model", None) is causal_lm(self.model)
        return self.accelerator.autocast() if is_policy else nullcontext()

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], list[list[float]]]:
        """TRL's hook: token ids and log-densities, one completion a prompt (they come repeated)."""
        first = self.accelerator.process_index * len(prompt_ids)
        if self.model.training:
            seed = resuming.rollout_seed(self.args.seed, self._step // self._generate_every)
        else:  # the same noise at every evaluation: differences are the model's
            seed = resuming.rollout_seed(self.args.seed, -1)
            first += self._num_eval_sequences
            self._num_eval_sequences += len(prompt_ids) * self.accelerator.num_processes
        if self._engine_step != self.state.global_step:
            self.sync_engine()
            self._engine_step = self.state.global_step
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with (
            together(),
            profiling_context(self, "softgrpo.generate"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=checkpointing,
            ),
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
            self.rollout_precision(),
        ):
            rollouts = self.engine.generate(
                prompt_ids,
                self.args.thinking,
                max_new_tokens=self.max_completion_length,
                seed=seed,
                first_sequence=first,
                objective=self.args.objective,
                on_finished=self.on_rollout,
            )
        trace = SoftTrace.cat([rollout.trace for rollout in rollouts])
        self._trace = trace.to(self.accelerator.device)
        self._log(thinking_metrics(rollouts, self._trace, self.args.thinking, self.accelerator))
        return [r.token_ids for r in rollouts], [r.logps or [] for r in rollouts]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._num_eval_sequences = 0
        with without_cudnn():
            return super().evaluation_loop(*args, **kwargs)

    def _log(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train" if self.model.training else "eval"][name].append(value)

    # 3. The trace rides with the batch
    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        with completions.unparsed(self._tokenizer):
            output = super()._generate_and_score_completions(inputs)
        assert self._trace is not None
        trace = self._trace.pad(output["completion_ids"].shape[1])
        self._trace = None
        output |= micro_batches.trace_columns(trace)
        # TRL's tool mask leaves forced tokens out of the loss. Whether there is one depends on the
        # config, not on this process's sequences: all gather, or none.
        thinking = self.args.thinking
        if thinking.max_think_tokens is not None or thinking.cold_stop_entropy is not None:
            output["tool_mask"] = (~trace.is_forced).to(output["completion_mask"].dtype)
            kept = (output["completion_mask"] * output["tool_mask"]).sum()
            output["num_items_in_batch"] = self.accelerator.gather(kept).sum()
        if "old_per_token_logps" in output:
            self._log(gap_metrics(output["old_per_token_logps"], output, self.accelerator))
        if self.args.old_logps == "rollout":
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        return output

    # 4. Log-densities of the replayed trace
    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """TRL only passes the model on to the hook below, which gets the results in its place."""
        replayed = self._replay(model, inputs)
        if "old_per_token_logps" not in inputs:  # on policy
            self._log(gap_metrics(replayed.logps.detach(), inputs, self.accelerator))
        return super()._compute_loss(replayed, inputs)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """TRL's hook: of the loss and, after rollouts, of the old policy and the reference."""
        if not isinstance(model, Replayed):
            assert self._trace is not None
            trace = self._trace.pad(logits_to_keep)
            model = self._replay(model, micro_batches.as_batch(input_ids, attention_mask, trace))
        return model.logps, model.entropies, None

    def _replay(self, model: Any, batch: Batch) -> Replayed:
        """Log-densities of a batch's steps under a model."""
        if torch.is_grad_enabled():  # the batch is one of compute_loss's passes
            return self._replay_pass(model, batch)
        once = partial(self._replay_pass, model)
        return micro_batches.in_passes(once, batch, self._passes(batch))

    def _replay_pass(self, model: Any, batch: Batch) -> Replayed:
        with self.accelerator.autocast():
            replayed = model(**micro_batches.model_inputs(batch, self.args.thinking))
        return Replayed(**replayed)

    # 5. Micro-batches of like lengths that share prompts
    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        batches = self._buffered_inputs
        if batches is before or not micro_batches.is_sum_over_sequences(self):
            return inputs
        # So many consecutive batches of a rollout are sure to be of the same update.
        num_together = math.gcd(self.args.gradient_accumulation_steps, len(batches))
        is_alone = self.accelerator.num_processes == 1
        keeps_prompts = self._shares_prompts and (is_alone or micro_batches.sharing_pays(batches))
        self._buffered_inputs = micro_batches.deal_out(batches, num_together, keeps_prompts)
        return self._buffered_inputs[self._step % len(batches)]

    # 6. Passes within a budget of tokens
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.args.train_batch_tokens is None or not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        passes = self._passes(inputs)
        largest = micro_batches.largest_pass(inputs, passes, self._shares_prompts)
        self._memory.before_passes(largest)
        done = torch.zeros((), device=self.accelerator.device)
        for rows in passes[:-1]:
            with self.accelerator.no_sync(model):
                loss = self._loss_of(model, inputs, rows, *args, **kwargs)
                self.accelerator.backward(loss)
            done += loss.detach()
        return self._loss_of(model, inputs, passes[-1], *args, **kwargs) + done

    def _passes(self, batch: Batch) -> list[list[int]]:
        """The rows of this process's passes; every process must ask at the same time."""
        rows, budget = list(range(len(batch["prompt_ids"]))), self.args.train_batch_tokens
        if budget is None:  # an evaluation's batch may be much larger than one in training
            size = self.args.per_device_train_batch_size
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        sizes = self.accelerator.gather(micro_batches.row_sizes(batch)[None])
        passes = micro_batches.plan_passes(sizes, budget, self._shares_prompts)
        return passes[self.accelerator.process_index]

    def _loss_of(
        self, model: Any, inputs: dict[str, Any], rows: list[int], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The part of a micro-batch's loss that comes from some of its sequences.

        One sequence alone can be over the budget: gradient checkpointing is for it only, where
        nobody said otherwise.
        """
        batch = micro_batches.take(inputs, rows)
        length = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
        is_long = len(rows) == 1 and length > (self.args.train_batch_tokens or 0)
        is_spared = self.args.is_checkpointing_auto and not is_long
        spared = micro_batches.without_checkpointing(causal_lm(self.model))
        with spared if is_spared else nullcontext():
            loss = super().compute_loss(model, batch, *args, **kwargs)
        return loss * micro_batches.weight_of_part(self, len(rows), len(inputs["prompt_ids"]))

    # 7. Not a number
    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        with without_cudnn():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._require_finite("loss", loss)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        if norm is not None:
            self._require_finite("gradient norm", norm)
        return norm

    def _require_finite(self, what: str, value: Any) -> None:
        if not math.isfinite(float(value)):
            raise NonFiniteLossError(
                f"the {what} is {float(value)} at step {self.state.global_step + 1}; "
                "the weights are those of the step before"
            )

    # 8. Parameters without a gradient
    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # Here, and not earlier: PEFT makes adapters trainable again whenever it switches them.
        if self.args.policy != "discrete":
            frozen = freezing.freeze_input_embedding(causal_lm(self.model))
            self._warn(freezing.frozen_message(frozen))
        return super()._prepare_for_training(*args, **kwargs)

    # 9. A resumed run is the same run
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder = Path(self._get_output_dir(trial=trial)) / name
        is_used_up = self._step % self._generate_every == 0
        batches = [] if is_used_up else self._buffered_inputs or []
        with resuming.written_whole(folder, self):
            resuming.save_rollouts(folder, self.accelerator.process_index, self._step, batches)
            super()._save_checkpoint(model, trial)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        readme = Path(str(self.args.output_dir)) / "README.md"
        if not readme.exists() or is_model_card(readme):  # else it is the user's
            super().create_model_card(*args, **kwargs)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        started = super()._init_training_state(max_steps, *args, **kwargs)
        # A checkpoint brings the intervals of its own config.
        self.state.compute_steps(self.args, max_steps)
        return started

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        settings = resuming.settings_of(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        changed_rate = resuming.restore_settings(self.optimizer, self.lr_scheduler, settings)
        self._warn(changed_rate and resuming.rate_message(*changed_rate, self.args, self.state))
        self._step, batches = resuming.load_rollouts(
            Path(checkpoint), self.accelerator.process_index, self.accelerator.device
        )
        self._buffered_inputs = batches or None

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        trls: Any = super()._get_train_sampler(dataset)
        sampler = resuming.EpochSampler(trls)
        self.args.check_num_prompts(sampler.num_samples)
        return sampler

    def _run_epoch(
        self, model: Any, epoch: int, train_dataloader: Any, *args: Any, **kwargs: Any
    ) -> None:
        # Trainer does this after it has put a loader around this one that skips what a resumed
        # epoch has had; with several processes it then does not find the sampler.
        train_dataloader.set_epoch(epoch)
        super()._run_epoch(model, epoch, train_dataloader, *args, **kwargs)

    @property
    def _generate_every(self) -> int:
        """Micro-steps that a rollout lasts."""
        return (self.args.steps_per_generation or 1) * self.num_iterations
