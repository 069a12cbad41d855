"""SofTGRPOTrainer: GRPO on soft thoughts. The only file that touches TRL's private methods.

What differs from GRPOTrainer, and nothing else is overridden:
 1. rollouts come from an engine of softgrpo.rollout, with the trace of every sequence;
 2. the trace's tensors ride with the batch through TRL's shuffling, splitting and buffering;
 3. per-token log-probabilities are the log-densities of the replayed trace;
 4. tokens nobody drew (a forced end of thinking) are left out of the loss;
 5. a checkpoint keeps the rollouts that are not used up, so that a resumed run is the same run,
    but where its config says otherwise: learning rate, schedule, intervals;
 6. a loss or gradient that is not finite stops the run before it reaches the weights;
 7. sequences of an update are dealt out anew where the loss is the same: long ones first, as in all
    processes, and samples of a prompt into one micro-batch, where they share it;
 8. a micro-batch with more tokens than the budget goes through the model in several passes;
 9. an input embedding that gets no gradient is frozen;
10. rewards of the user's are held to finite numbers (see softgrpo.rewards.checked);
11. a run that will outgrow its memory says so (see memory.py), as does one whose weights are too
    coarse for their updates (rounding.py).
Losses, advantages, KL, clipping, PEFT, accelerate, logging and evaluation are TRL's.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from softgrpo.checkpoints import begin, keep_newest, seal
from softgrpo.files import is_model_card
from softgrpo.modeling.kernels import without_cudnn
from softgrpo.replay import add_replay, check_model
from softgrpo.rollout import Rollout
from softgrpo.thinking import SoftTrace
from softgrpo.thinking.phases import Markers
from softgrpo.training.completions import check_visible, unparsed
from softgrpo.training.config import SofTGRPOConfig
from softgrpo.training.engines import make_engine
from softgrpo.training.freezing import freeze_input_embedding
from softgrpo.training.kept_rollouts import load_rollouts, save_rollouts
from softgrpo.training.memory import MemoryWatch
from softgrpo.training.metrics import thinking_metrics, thinking_sums
from softgrpo.training.micro_batches import (
    Batch,
    deal_out,
    num_tokens,
    plan_passes,
    row_sizes,
    sharing_pays,
    take,
    trace_columns,
    trace_of,
)
from softgrpo.training.optimizing import restore_settings, settings_of
from softgrpo.training.order import EpochSampler, rollout_seed
from softgrpo.training.passes import replay_in_passes, without_checkpointing
from softgrpo.training.precision import rollout_dtype
from softgrpo.training.rounding import keep_results, lost_updates
from softgrpo.training.support import (
    checked_rewards,
    require_supported,
    require_supported_model,
    shares_prompts,
)

if TYPE_CHECKING:
    pass

_logger = logging.getLogger(__name__)


# Losses whose normaliser is the number of sequences in a micro-batch (or holds it as a factor).
_MEANS_OVER_SEQUENCES = ("grpo", "sapo", "luspo", "dr_grpo")


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
    _paper = {
        "title": "SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via "
        "Gumbel-Reparameterized Soft-Thinking Policy Optimization",
        "id": "2511.06411",
        "citation": "@article{zheng2025softgrpo,\n"
        "    title  = {{SofT-GRPO: Surpassing Discrete-Token LLM Reinforcement Learning via "
        "Gumbel-Reparameterized Soft-Thinking Policy Optimization}},\n"
        "    author = {Zheng and Gu and Liu and Teh and Lee},\n"
        "    year   = 2025,\n"
        "    eprint = {arXiv:2511.06411},\n"
        "}",
    }

    # Attributes of GRPOTrainer's that its annotations leave open.
    args: SofTGRPOConfig
    model: Any
    max_completion_length: int
    _buffered_inputs: Any

    def __init__(
        self, model: Any, reward_funcs: Any = None, args: Any = None, **kwargs: Any
    ) -> None:
        require_supported(args, kwargs)
        self._trace: SoftTrace | None = None
        self._gap_reference: Tensor | None = None
        self._num_eval_sequences = 0
        self._train_sampler: EpochSampler | None = None
        self.on_rollout: Callable[[int, Rollout], object] | None = None
        super().__init__(
            model=model, reward_funcs=checked_rewards(reward_funcs), args=args, **kwargs
        )
        require_supported_model(self)
        if args.train_batch_tokens is not None and not self._is_sum_over_sequences:
            raise ValueError(
                "train_batch_tokens: with loss_type bnpo, top_entropy_quantile or an entropy bonus "
                "the loss averages over a micro-batch's tokens and cannot be computed in parts"
            )
        policy = causal_lm(self.model)
        check_model(policy)
        args.thinking.check_vocabulary(policy.get_output_embeddings().weight.shape[0])
        self._shares_prompts = shares_prompts(policy, args.share_prompts)
        add_replay(policy, args.objective, self._shares_prompts)
        if self.ref_model is not None:
            reference = causal_lm(self.accelerator.unwrap_model(self.ref_model))
            add_replay(reference, args.objective, self._shares_prompts)
        Markers(args.thinking.think_end, self._tokenizer)
        self._memory = MemoryWatch(self.accelerator.device, args.train_batch_tokens)
        self.add_callback(self._memory)
        self.engine = make_engine(
            args,
            policy,
            self._tokenizer,
            eos_token_ids=self.eos_token_ids,
            dtype=self._rollout_dtype(policy),
            device=self.accelerator.device,
            is_adapted=is_peft_model(self.model),
        )
        check_visible(args.thinking.think_end, self._tokenizer)
        self._engine_step = -1
        lost = lost_updates(self.model.parameters(), args.learning_rate)
        # FSDP2 makes float32 masters of what it is to train in another precision.
        has_masters = self.is_fsdp_enabled and self.accelerator.mixed_precision != "no"
        if lost and not has_masters and self.is_world_process_zero():
            _logger.warning(lost)

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        # Before any model is sharded: the reference is as soon as it is made.
        keep_results(getattr(self.accelerator.state, "fsdp_plugin", None))

    def _rollout_dtype(self, policy: Any) -> torch.dtype | None:
        """None lets the model itself generate."""
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return rollout_dtype(
            self.args.rollout_dtype,
            policy.dtype,
            autocast.get(self.accelerator.mixed_precision),
            self.accelerator.device,
            self.is_fsdp_enabled,
        )

    def rollout_precision(self) -> AbstractContextManager[Any]:
        """In which the engine is to generate: the trainer's autocast, but a copy has its own dtype.

        accelerate puts autocast on the forward of what it prepares. With LoRA that is PEFT's model,
        and the engine calls the one inside.
        """
        is_policy = getattr(self.engine, "model", None) is causal_lm(self.model)
        return self.accelerator.autocast() if is_policy else nullcontext()

    # 1. Rollouts
    def _generate_single_turn(
        self,
        prompt_ids: list[list[int]],
        images: Any,
        multimodal_fields: Any,
        num_generations: int,
        has_tool_images: bool = False,
    ) -> tuple[list[list[int]], list[list[float]]]:
        """TRL's hook: token ids and log-densities, one completion a prompt (they come repeated)."""
        is_training = self.model.training
        first = self.accelerator.process_index * len(prompt_ids)
        if is_training:
            seed = rollout_seed(self.args.seed, self._step // self._generate_every)
        else:  # the same noise at every evaluation: differences are the model's
            seed = rollout_seed(self.args.seed, -1)
            first += self._num_eval_sequences
            self._num_eval_sequences += len(prompt_ids) * self.accelerator.num_processes
        if self._engine_step != self.state.global_step:
            self.engine.sync()
            self._engine_step = self.state.global_step
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        with (
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
        self._trace = SoftTrace.cat([rollout.trace for rollout in rollouts])
        self._trace = self._trace.to(self.accelerator.device)
        self._log_thinking(rollouts, "train" if is_training else "eval")
        return [r.token_ids for r in rollouts], [r.logps or [] for r in rollouts]

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._num_eval_sequences = 0
        with without_cudnn():
            return super().evaluation_loop(*args, **kwargs)

    # 2. The trace rides with the batch
    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        with unparsed(self._tokenizer):
            output = super()._generate_and_score_completions(inputs)
        assert self._trace is not None
        trace = self._trace.pad(output["completion_ids"].shape[1])
        self._trace = None
        output |= trace_columns(trace)
        # 4. Forced tokens were nobody's choice: TRL's tool mask leaves them out of the loss.
        # Whether to depends on the config, not on this process's sequences: all gather, or none.
        thinking = self.args.thinking
        if thinking.max_think_tokens is not None or thinking.cold_stop_entropy is not None:
            output["tool_mask"] = (~trace.is_forced).to(output["completion_mask"].dtype)
            kept = (output["completion_mask"] * output["tool_mask"]).sum()
            output["num_items_in_batch"] = self.accelerator.gather(kept).sum()
        if "old_per_token_logps" in output:
            mask = output["completion_mask"].bool()
            self._log_gap(output["old_per_token_logps"], output["sampling_per_token_logps"], mask)
        if self.args.old_logps == "rollout":
            output["old_per_token_logps"] = output["sampling_per_token_logps"]
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._trace = trace_of(inputs, self.args.thinking)
        on_policy = "old_per_token_logps" not in inputs
        self._gap_reference = inputs["sampling_per_token_logps"] if on_policy else None
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._trace, self._gap_reference = None, None

    # 3. Log-densities of the replayed trace
    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **multimodal: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        assert self._trace is not None
        trace, budget = self._trace.pad(logits_to_keep), self.args.train_batch_tokens
        if budget is None or torch.is_grad_enabled():  # compute_loss has planned the latter
            size = batch_size or len(input_ids)
            if not torch.is_grad_enabled():  # an evaluation's batch may be much larger
                size = min(size, self.args.per_device_train_batch_size)
            parts = zip(
                input_ids.split(size), attention_mask.split(size), trace.split(size), strict=True
            )
            logps, entropies = map(
                torch.cat, zip(*(self._replay(model, *part) for part in parts), strict=True)
            )
        else:
            batch = trace_columns(trace) | {
                "prompt_ids": input_ids[:, :-logits_to_keep],
                "prompt_mask": attention_mask[:, :-logits_to_keep],
                "completion_ids": input_ids[:, -logits_to_keep:],
                "completion_mask": attention_mask[:, -logits_to_keep:],
            }
            logps, entropies = replay_in_passes(
                partial(self._replay, model), batch, self._passes(batch, budget), self.args.thinking
            )
        if self._gap_reference is not None:
            mask = attention_mask[:, -logits_to_keep:].bool()
            self._log_gap(logps.detach(), self._gap_reference, mask)
        return logps, entropies if compute_entropy else None, None

    def _replay(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, trace: SoftTrace
    ) -> tuple[Tensor, Tensor]:
        """Log-densities and entropies [B, T] of one pass, in nats; 0 where nothing is scored."""
        with self.accelerator.autocast():
            replayed = model(input_ids=input_ids, attention_mask=attention_mask, trace=trace)
        return replayed["logps"], replayed["entropies"]

    # Metrics of our own
    def _log_thinking(self, rollouts: list[Rollout], mode: str) -> None:
        """soft/* of the rollouts of all processes."""
        assert self._trace is not None
        sums = thinking_sums(rollouts, self._trace, self.args.thinking)
        local = torch.tensor(sums, device=self.accelerator.device)
        total = self.accelerator.reduce(local, reduction="sum").tolist()
        for name, value in thinking_metrics(total).items():
            self._metrics[mode][name].append(value)

    def _log_gap(self, trainer_logps: Tensor, rollout_logps: Tensor, mask: Tensor) -> None:
        """Rollout against trainer log-densities (nats), same weights: numerical error only."""
        gap = (trainer_logps - rollout_logps).abs()[mask]
        largest = gap.max() if len(gap) else gap.new_zeros(())
        mean = gap.mean() if len(gap) else gap.new_zeros(())
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics["soft/logp_gap_max"].append(self.accelerator.gather(largest).max().item())
        metrics["soft/logp_gap_mean"].append(self.accelerator.gather(mean).mean().item())

    # 5. Checkpoints that resume the same run
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        folder = Path(self._get_output_dir(trial=trial)) / name
        if self.args.should_save:
            begin(folder)
        self.accelerator.wait_for_everyone()
        folder.mkdir(parents=True, exist_ok=True)  # on a disk of this process's own
        save_rollouts(folder / self._rollouts_file(), self._step, self._unused_rollouts())
        # No older one goes before this one is known to be whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            seal(folder)
            best = self.state.best_model_checkpoint
            if limit and limit > 0:
                keep_newest(folder, limit, Path(best) if best else None)

    def create_model_card(self, *arguments: Any, **options: Any) -> None:
        readme = Path(str(self.args.output_dir)) / "README.md"
        if not readme.exists() or is_model_card(readme):
            super().create_model_card(*arguments, **options)

    def _init_training_state(self, max_steps: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        started = super()._init_training_state(max_steps, *args, **kwargs)
        # A checkpoint brings the intervals of its own config.
        self.state.compute_steps(self.args, max_steps)
        return started

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        settings = settings_of(self.optimizer)
        super()._load_optimizer_and_scheduler(checkpoint)
        changed_rate = restore_settings(self.optimizer, self.lr_scheduler, settings)
        schedule: Any = self.args.lr_scheduler_type
        if changed_rate and self.is_world_process_zero():
            _logger.warning(
                "the learning rate of step %s is %g and not %g as the checkpoint has it: the "
                "%s schedule is that of %s steps in all",
                self.state.global_step + 1,
                *changed_rate,
                schedule.value,
                self.state.max_steps,
            )
        path = Path(checkpoint) / self._rollouts_file()
        self._step, batches = load_rollouts(path, self.accelerator.device)
        self._buffered_inputs = batches or None

    def _get_train_sampler(self, dataset: Any = None) -> RepeatSampler:
        sampler: Any = super()._get_train_sampler(dataset)
        self.args.check_num_prompts(len(sampler.data_source))
        if not sampler.shuffle:
            return sampler
        self._train_sampler = EpochSampler(
            sampler.data_source,
            mini_repeat_count=sampler.mini_repeat_count,
            batch_size=sampler.batch_size,
            repeat_count=sampler.repeat_count,
            seed=sampler.seed,
        )
        return self._train_sampler

    def _run_epoch(self, model: Any, epoch: int, *args: Any, **kwargs: Any) -> None:
        # In a resumed epoch of several processes the sampler lies deeper, inside what skips and
        # what shares the batches, than Trainer and accelerate look for it.
        if self._train_sampler is not None:
            self._train_sampler.set_epoch(epoch)
        super()._run_epoch(model, epoch, *args, **kwargs)

    def _unused_rollouts(self) -> list[dict[str, Tensor]]:
        """The buffered rollouts, where optimizer steps are still to be made from them."""
        is_used_up = self._step % self._generate_every == 0
        return [] if is_used_up else self._buffered_inputs or []

    @property
    def _generate_every(self) -> int:
        """Micro-steps that a rollout lasts."""
        return (self.args.steps_per_generation or 1) * self.num_iterations

    def _rollouts_file(self) -> str:
        return f"rollouts_{self.accelerator.process_index}.safetensors"

    # 6. Not a number
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

    # 7. Micro-batches of like lengths that share prompts
    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        is_new = self.model.training and (
            self._step % self._generate_every == 0 or self._buffered_inputs is None
        )
        inputs = super()._prepare_inputs(generation_batch)
        if not (is_new and self._is_sum_over_sequences):
            return inputs
        batches, window = self._buffered_inputs, self._batches_an_update
        is_alone = self.accelerator.num_processes == 1
        keeps_prompts = self._shares_prompts and (is_alone or sharing_pays(batches))
        self._buffered_inputs = [
            batch
            for start in range(0, len(batches), window)
            for batch in deal_out(batches[start : start + window], keeps_prompts)
        ]
        return self._buffered_inputs[self._step % len(batches)]

    @property
    def _is_sum_over_sequences(self) -> bool:
        """Whether an update's gradient is the same however its sequences are split.

        It is where each has its own share of the loss, and not where something is averaged over
        the tokens of a micro-batch.
        """
        return (
            self.loss_type != "bnpo"
            and self.top_entropy_quantile == 1.0
            and not self._entropy_bonus_enabled
        )

    @property
    def _batches_an_update(self) -> int:
        """How many consecutive batches of a rollout are sure to be of the same update."""
        return math.gcd(self.args.gradient_accumulation_steps, self.args.steps_per_generation or 1)

    # 8. Passes within a budget of tokens
    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        if self.args.train_batch_tokens is None or not self.model.training:
            return super().compute_loss(model, inputs, *args, **kwargs)
        passes = self._passes(inputs, self.args.train_batch_tokens)
        self._memory.before_passes(
            max(num_tokens(inputs, rows, self._shares_prompts) for rows in passes)
        )
        done = torch.zeros((), device=self.accelerator.device)
        for rows in passes[:-1]:
            with self.accelerator.no_sync(model):
                loss = self._loss_of(model, inputs, rows, *args, **kwargs)
                self.accelerator.backward(loss)
            done += loss.detach()
        return self._loss_of(model, inputs, passes[-1], *args, **kwargs) + done

    def _passes(self, batch: Batch, max_tokens: int) -> list[list[int]]:
        """The rows of this process's passes; every process must ask at the same time."""
        sizes = self.accelerator.gather(row_sizes(batch)[None])
        return plan_passes(sizes, max_tokens, self._shares_prompts)[self.accelerator.process_index]

    def _loss_of(
        self, model: Any, inputs: dict[str, Any], rows: list[int], *args: Any, **kwargs: Any
    ) -> Tensor:
        """The part of a micro-batch's loss that comes from some of its sequences.

        One sequence alone can be over the budget: gradient checkpointing is for it only, where
        nobody said otherwise.
        """
        batch = take(inputs, rows)
        length = batch["prompt_ids"].shape[1] + batch["completion_ids"].shape[1]
        is_long = len(rows) == 1 and length > (self.args.train_batch_tokens or 0)
        is_spared = self.args.is_checkpointing_auto and not is_long
        with without_checkpointing(causal_lm(self.model)) if is_spared else nullcontext():
            loss = super().compute_loss(model, batch, *args, **kwargs)
        is_mean = self.loss_type in _MEANS_OVER_SEQUENCES
        return loss * len(rows) / len(inputs["prompt_ids"]) if is_mean else loss

    # 9. Parameters without a gradient
    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        # Here, and not earlier: PEFT makes adapters trainable again whenever it switches them.
        if self.args.policy != "discrete":
            frozen = sum(p.numel() for p in freeze_input_embedding(causal_lm(self.model)))
            if frozen and self.is_world_process_zero():
                _logger.warning(
                    "%s parameters of the input embedding are frozen: the inputs of a soft thought "
                    "are looked up without gradient, and the output head does not share them",
                    f"{frozen:,}",
                )
        return super()._prepare_for_training(*args, **kwargs)


def causal_lm(model: Any) -> Any:
    """The transformers causal LM inside a PEFT wrapper, or the model itself."""
    return model.get_base_model() if is_peft_model(model) else model
