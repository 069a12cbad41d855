"""All of a run that can be known, and refused, before its model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from softgrpo.evaluation import Sampling, tokenize_prompts
from softgrpo.models import context_length, load_config, load_tokenizer, resolve_model
from softgrpo.planning.job import Prompts
from softgrpo.rewards import CheckedAsyncReward, CheckedReward, load_reward
from softgrpo.runs.judging import make_judge
from softgrpo.runs.problems import load, prompt_format
from softgrpo.runs.recipe import RunConfig
from softgrpo.runs.trial import try_judge, try_rewards
from softgrpo.tasks import Problem, to_dataset
from softgrpo.thinking.phases import Markers
from softgrpo.training import SofTGRPOConfig

if TYPE_CHECKING:
    from datasets import Dataset

# Fields of TRL's that the command line has its own way for.
_REFUSED = (
    ("save_only_model", "a checkpoint without the optimizer cannot be resumed; leave it out"),
    ("resume_from_checkpoint", "use --resume"),
    ("model_init_kwargs", "use dtype and trust_remote_code"),
)


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        config: The run's own fields.
        args: The training's.
        model: A local folder or hub id.
        model_config: transformers' config of it.
        tokenizer: The model's, with a pad token.
        train: Data set for the trainer.
        prompts: How many and how long its prompts are.
        num_steps: Optimizer steps of the whole run.
        evaluation: Data set for the trainer's evaluation, None where it makes none.
        rewards: As TRL calls them.
        decodings: What is evaluated before and after, by the name of its decoding; empty for
            nothing.
        shown: What is kept along the way, of perhaps no problem.
        lora: peft's LoraConfig, None to train all weights.
        notes: What the user should hear.
    """

    config: RunConfig
    args: SofTGRPOConfig
    model: str
    model_config: Any
    tokenizer: Any
    train: Dataset
    prompts: Prompts
    num_steps: int
    evaluation: Dataset | None
    rewards: list[CheckedReward | CheckedAsyncReward]
    decodings: dict[str, Sampling]
    shown: Sampling
    lora: Any
    notes: list[str]


def make_plan(config: RunConfig, args: SofTGRPOConfig) -> Plan:
    """Check a recipe against its data and its tokenizer.

    Raises:
        ValueError: Names the field at fault and what would do.
    """
    for name, why in _REFUSED:
        if getattr(args, name, None):
            raise ValueError(f"{name}={getattr(args, name)}: not a field of softgrpo train: {why}")
    if args.max_completion_length is None or args.max_completion_length < 1:
        raise ValueError(f"max_completion_length={args.max_completion_length}: must be >= 1")
    think_end = args.thinking.think_end
    rewards = [load_reward(name, think_end=think_end) for name in config.rewards]
    style = prompt_format(config)
    judge = make_judge(
        config.eval_reward or config.rewards[0],
        style.messages if config.chat else style.text,
        think_end=think_end,
        threshold=config.eval_threshold,
    )
    lora = lora_config(config)
    train = load(config, "train", config.num_train_problems)
    args.check_num_prompts(len(train))
    problems = load(config, "eval", config.num_eval_problems) if config.num_eval_problems else []

    place = resolve_model(str(config.model))
    tokenizer = load_tokenizer(place, args.trust_remote_code)
    notes = give_pad_token(tokenizer)
    if config.chat and not tokenizer.chat_template:
        raise ValueError(
            f"chat=True: the tokenizer of {config.model} has no chat template; write chat: false "
            "to put the prompts as plain text"
        )
    Markers(think_end, tokenizer)
    model_config = load_config(place, args.trust_remote_code)
    args.thinking.check_vocabulary(model_config.get_text_config().vocab_size)

    rows = to_dataset(train, style, config.chat)
    held_out = to_dataset(problems, style, config.chat) if problems else None
    template_options = cast(dict[str, Any] | None, args.chat_template_kwargs)
    tokenize = partial(tokenize_prompts, tokenizer, template_options=template_options)
    train_ids = tokenize(rows["prompt"][:])
    kept, left_out = within(config.max_prompt_tokens, train_ids)
    train, train_ids = [train[i] for i in kept], [train_ids[i] for i in kept]
    rows, notes = rows.select(kept), [*notes, *left_out]
    num_steps = args.num_steps(len(train))
    eval_ids = tokenize(held_out["prompt"][:]) if held_out else []
    _check_context([*train, *problems], [*train_ids, *eval_ids], context_length(model_config), args)
    try_rewards(rewards, rows[0], tokenizer, think_end)
    try_judge(judge, (problems or train)[0], config.chat, think_end)
    sampling = Sampling(
        problems=problems,
        prompt_ids=eval_ids,
        thinking=args.thinking,
        num_samples=config.eval_samples,
        max_new_tokens=args.max_completion_length,
        seed=args.seed,
        judge=judge,
        batch_size=args.rollout_batch_size,
    )
    count = 4 if config.num_samples_kept is None else config.num_samples_kept
    return Plan(
        config=config,
        args=args,
        model=place,
        model_config=model_config,
        tokenizer=tokenizer,
        train=rows,
        prompts=Prompts.of(train_ids, eval_ids),
        num_steps=num_steps,
        evaluation=held_out if args.eval_strategy != "no" else None,
        rewards=rewards,
        decodings=_decodings(config, sampling) if problems else {},
        shown=replace(
            sampling,
            problems=(problems or train)[:count],
            prompt_ids=(eval_ids or train_ids)[:count],
            num_samples=1,
        ),
        lora=lora,
        notes=notes,
    )


def within(limit: int | None, prompt_ids: Sequence[Sequence[int]]) -> tuple[list[int], list[str]]:
    """The training prompts that are not too long, by index, and what is said of the others.

    Raises:
        ValueError: All are.
    """
    if limit is None:
        return list(range(len(prompt_ids))), []
    kept = [i for i, ids in enumerate(prompt_ids) if len(ids) <= limit]
    if not kept:
        raise ValueError(
            f"max_prompt_tokens={limit}: the shortest prompt of the {len(prompt_ids):,} training "
            f"problems has {min(map(len, prompt_ids)):,} tokens; raise it"
        )
    left_out = len(prompt_ids) - len(kept)
    note = f"{left_out:,} of {len(prompt_ids):,} problems left out: prompts over {limit:,} tokens"
    return kept, [note] if left_out else []


def give_pad_token(tokenizer: Any) -> list[str]:
    """Let the end of sequence pad, as TRL does, where there is no pad token; says so."""
    if tokenizer.pad_token is not None:
        return []
    if tokenizer.eos_token is None:
        raise ValueError(
            f"tokenizer of {tokenizer.name_or_path}: it has neither a pad nor an eos token; set "
            "pad_token in its tokenizer_config.json"
        )
    tokenizer.pad_token = tokenizer.eos_token
    return [f"the tokenizer has no pad token: {tokenizer.eos_token!r}, its eos token, pads"]


def lora_config(config: RunConfig) -> Any:
    if config.lora is None:
        return None
    from peft import LoraConfig

    fields = cast(dict[str, Any], config.lora)
    try:
        return LoraConfig(**{"task_type": "CAUSAL_LM"} | fields)
    except TypeError as error:
        raise ValueError(f"lora={config.lora}: {error}") from error


def _decodings(config: RunConfig, sampling: Sampling) -> dict[str, Sampling]:
    """Discrete decoding keeps the support and temperature: all that differs is the mixture."""
    thinking = sampling.thinking
    if thinking.policy == "discrete":
        return {"discrete": sampling}
    ways = {"soft": thinking, "discrete": replace(thinking, policy="discrete")}
    return {name: replace(sampling, thinking=ways[name]) for name in config.eval_decodings}


def _check_context(
    problems: Sequence[Problem],
    prompt_ids: Sequence[Sequence[int]],
    context: int | None,
    args: SofTGRPOConfig,
) -> None:
    longest = max(range(len(prompt_ids)), key=lambda i: len(prompt_ids[i]))
    length, room = len(prompt_ids[longest]), args.max_completion_length or 0
    if length == 0:
        raise ValueError("prompt_template: a prompt came to no tokens at all")
    if context is not None and length + room > context:
        raise ValueError(
            f"max_completion_length={room}: the prompt of problem {problems[longest].id} has "
            f"{length} tokens and the model's context is {context}; shorten one of them"
        )
