"""How soft thinking travels through vLLM: a request's settings in, a step's record out.

Both sides use this file and nothing else, and it knows neither vLLM nor a model. There is no room
in vLLM for anything new, so what it has is used:

- **Settings** are flat ``SamplingParams.extra_args`` (``vllm_xargs`` of the HTTP server), one
  ``soft_*`` entry a field. The answer's sampling is the request's own: ``temperature``, ``top_k``,
  ``top_p``, ``min_p``. A field whose value is None is sent as ``"off"``.
- **A step's record** is the step's ``logprobs``: first the reported token, as vLLM wants it, then K
  columns of token id and recorded score, then a column that holds the step's note, then, if a
  log-density was asked for, a column that holds it. The ids of a step are all different, so
  that a server that makes a dictionary of them loses none. A request that asks for
  ``soft_record: "packed"`` gets all of them at once when it ends, see packed.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from softgrpo.rollout.engine import FinishReason, NonFiniteLogitsError, Rollout
from softgrpo.rollout.request import Request
from softgrpo.thinking.config import ThinkingConfig
from softgrpo.thinking.fields import ThinkingFields
from softgrpo.thinking.objective import Objective
from softgrpo.thinking.phases import ThinkingEnd
from softgrpo.thinking.step import SoftStep
from softgrpo.thinking.trace import SoftTrace
from softgrpo.values import check, fits, shown, type_hints

PREFIX = "soft_"
# How a record comes back: step by step as logprobs, or all at once when the sequence has ended.
RecordKind = Literal["logprobs", "packed"]
# Where a server keeps the settings of requests that name none, as JSON, for all its processes.
DEFAULTS_VARIABLE = "SOFTGRPO_THINKING"
MAX_COLUMNS = 32
# Columns a step may have on the wire beside the reported token: K, the note, the log-density.
MAX_LOGPROBS = MAX_COLUMNS + 2

# The settings of the thinking; the answer's are the request's own. And what else a request says.
_OWN = tuple(name for name in type_hints(ThinkingFields) if not name.startswith("answer_"))
_OTHER = ("seed", "sequence", "density", "reduction", "record")
_OFF = "off"
_MAY_BE_OFF = {name for name in _OWN if fits(None, type_hints(ThinkingFields)[name])}
_ENDS: tuple[ThinkingEnd | None, ...] = (None, *get_args(ThinkingEnd))
# Settings of an ordinary request that say how a token is drawn, which here the policy says. Their
# values when nothing is asked for.
_UNSUPPORTED: dict[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_tokens": 0,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "structured_outputs": None,
}


def num_logprobs(request: Request) -> int:
    """How many logprobs carry a step's whole record."""
    return request.config.num_columns + 1 + (request.objective is not None)


# Settings ---------------------------------------------------------------------------------------
def encode_config(config: ThinkingConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """``extra_args`` and the answer's sampling, as keyword arguments of SamplingParams.

    Raises:
        ValueError: Names the field that cannot be sent.
    """
    if config.policy == "embedding_gaussian":
        raise ValueError(
            "policy='embedding_gaussian': vLLM cannot carry its noise, a number a hidden unit; use "
            "the TransformersEngine or another policy"
        )
    if config.num_columns > MAX_COLUMNS:
        raise ValueError(f"top_k={config.top_k}: at most {MAX_COLUMNS} columns travel")
    if config.answer_temperature < 0.01:
        raise ValueError(
            f"answer_temperature={config.answer_temperature}: vLLM takes no less than 0.01; "
            "answer_top_k=1 takes the most likely token"
        )
    sent = {PREFIX + name: _plain(getattr(config, name)) for name in _OWN}
    answer = {
        "temperature": config.answer_temperature,
        "top_k": config.answer_top_k or 0,
        "top_p": config.answer_top_p,
        "min_p": config.answer_min_p,
    }
    return sent, answer


def encode_request(
    request: Request, record: RecordKind = "logprobs"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All but the prompt: ``extra_args``, and the other keyword arguments of SamplingParams.

    Raises:
        ValueError: Names the field that cannot be sent.
    """
    objective = request.objective
    sent, answer = encode_config(request.config)
    sent |= {f"{PREFIX}seed": request.seed, f"{PREFIX}sequence": request.index}
    if record != "logprobs":
        sent[f"{PREFIX}record"] = record
    if objective is not None:
        if objective.config != request.config:
            raise ValueError("objective: its config is not the request's")
        sent[f"{PREFIX}density"] = objective.density
        sent[f"{PREFIX}reduction"] = objective.reduction
    return sent, {"max_tokens": request.limit, **answer}


def complete_request(params: Any, defaults: Mapping[str, Any]) -> None:
    """Put the settings into a request that it does not name.

    It is done once, where a client's request comes in: whoever reads the request afterwards needs
    no defaults, and what vLLM runs for itself (to warm up) stays what it is.

    Where the defaults have no ``soft_*`` entry, only a request that names one thinks.
    """
    params.extra_args = {**defaults, **(params.extra_args or {})}


def decode_request(params: Any, seed: int = 0) -> Request | None:
    """What a complete request asks of soft thinking; None when it asks for nothing.

    It has all but the prompt, and this seed where the settings name none.

    Raises:
        ValueError: Names the entry and what would do.
    """
    sent = {k: v for k, v in (params.extra_args or {}).items() if k.startswith(PREFIX)}
    if not sent or sent.get(f"{PREFIX}policy") == _OFF:
        return None
    for name, nothing in _UNSUPPORTED.items():
        value = getattr(params, name)
        if value != nothing and value:
            raise ValueError(f"{name}={value!r}: cannot be used with soft thinking")
    values = {name.removeprefix(PREFIX): value for name, value in sent.items()}
    if unknown := sorted(values.keys() - {*_OWN, *_OTHER}):
        known = [PREFIX + name for name in (*_OWN, *_OTHER)]
        raise ValueError(f"{PREFIX}{unknown[0]}: no such setting; choose from {known}")
    values = {name: value for name, value in values.items() if value is not None}
    given = {name: values[name] for name in _OWN if name in values}
    given |= {name: None for name in _MAY_BE_OFF if given.get(name) == _OFF}
    greedy = params.temperature == 0
    try:
        config = ThinkingConfig(
            **given,
            answer_temperature=1.0 if greedy else params.temperature,
            answer_top_k=1 if greedy else params.top_k if params.top_k > 0 else None,
            answer_top_p=params.top_p,
            answer_min_p=params.min_p,
        )
        trained = {name: values[name] for name in ("density", "reduction") if name in values}
        objective = Objective(config, **trained) if trained else None
        keys = {"seed": values.get("seed", seed), "sequence": values.get("sequence", 0)}
        for name, key in keys.items():
            check(name, key, int)
            if not 0 <= key < 2**64:
                raise ValueError(f"{name}={shown(key)}: must be in [0, 2^64)")
        if values.get("record", "logprobs") not in get_args(RecordKind):
            raise ValueError(f"record={values['record']!r}: must be one of {get_args(RecordKind)}")
        texts = config.think_end  # each is looked for at every step
        if len(texts) > 16 or any(len(text) > 100 for text in texts):
            raise ValueError(
                f"think_end={shown(texts)}: at most 16 texts of at most 100 characters"
            )
    except ValueError as error:
        raise ValueError(f"{PREFIX}{error}") from error
    encode_config(config)  # the same limits on both sides
    return Request((), config, params.max_tokens, objective, keys["seed"], keys["sequence"])


def is_packed(params: Any) -> bool:
    """Whether a request that thinks asks for a packed record."""
    return params.extra_args.get(f"{PREFIX}record") == "packed"


def default_settings() -> dict[str, Any]:
    """The ``soft_*`` entries of requests that do not name them; a server sets them."""
    return json.loads(os.environ.get(DEFAULTS_VARIABLE, "{}"))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        raise ValueError("a request takes plain numbers, not one a row")
    return _OFF if value is None else list(value) if isinstance(value, tuple) else value


# Records ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Record:
    """One sequence's steps as they came back."""

    trace: SoftTrace  # the T steps, one row
    logps: list[float] | None  # T log-densities in nats, or None
    thinking_ended_by: ThinkingEnd | None  # how the thinking ended, or None
    non_finite_step: int | None  # the first step (from 1) whose logits were not finite, or None

    def rollout(
        self, prompt_ids: Sequence[int], finish_reason: FinishReason, decode: Callable[..., str]
    ) -> Rollout:
        """The finished sequence; ``decode`` is the tokenizer's.

        Raises:
            NonFiniteLogitsError: Names the step at which the logits were not finite.
        """
        if self.non_finite_step is not None:
            raise NonFiniteLogitsError(
                f"the model's logits are not finite at generated step {self.non_finite_step}"
            )
        tokens = self.trace.tokens[0]
        return Rollout(
            prompt_ids=list(prompt_ids),
            token_ids=tokens,
            text=decode(tokens, skip_special_tokens=True),
            trace=self.trace,
            logps=self.logps,
            finish_reason=finish_reason,
            thinking_ended_by=self.thinking_ended_by,
        )


def encode_steps(
    step: SoftStep,
    is_soft: Tensor,
    ended_by: list[ThinkingEnd | None],
    logps: Tensor | None,
    vocab_size: int,
) -> tuple[Tensor, Tensor]:
    """One step of N sequences of equal settings as columns of logprobs.

    Args:
        step: Their step; K columns.
        is_soft: [N] bool.
        ended_by: How each sequence's thinking has ended so far.
        logps: [N] float, or None when no log-density was asked for.
        vocab_size: V; ids on the wire lie in [0, V) if K + 2 <= V.

    Returns:
        ids [N, C] int32 and values [N, C] float32, C = K + 1, or K + 2 with logps.
    """
    device, num_columns = step.ids.device, step.ids.shape[1]
    columns = torch.arange(num_columns, device=device)
    # Nothing is recorded beside a token: any other ids do.
    ids = torch.where(is_soft[:, None], step.ids, (step.ids[:, :1] + columns) % vocab_size)
    ends = torch.tensor([_ENDS.index(end) for end in ended_by], device=device)
    is_finite = torch.isfinite(step.entropy)
    note = is_soft + 2 * ~is_finite + 4 * ends + 16 * step.support.sum(-1)
    values = [step.scores.float().nan_to_num(0.0), note[:, None].float()]
    if logps is not None:
        values.append(logps[:, None].float().nan_to_num(0.0))
    num_extra = len(values) - 1
    candidates = torch.arange(num_columns + num_extra, device=device)
    is_taken = (ids[:, :, None] == candidates).any(1)
    extra = torch.argsort(is_taken.int(), dim=-1, stable=True)[:, :num_extra]
    return torch.cat([ids, extra], dim=-1).int(), torch.cat(values, dim=-1)


def decode_steps(ids: Tensor, values: Tensor, request: Request, engine: str) -> Record:
    """Read T steps of one sequence.

    Args:
        ids: [T, K] int or wider, what ``encode_steps`` gave, step after step (without the reported
            token that vLLM puts in front).
        values: [T, C] float32.
        request: What had been asked for.
        engine: Where they come from, for the trace.

    Raises:
        ValueError: No steps, or what is none: a value that is not finite, an id that no token has,
            a soft step without a support.
    """
    num_columns = request.config.num_columns
    if not len(ids) or not torch.isfinite(values).all():
        raise ValueError("a record without steps, or with a value that is not finite")
    if ((ids < 0) | (ids.int() != ids)).any():
        raise ValueError("a record with an id that no token has")
    ids, scores = ids[:, :num_columns].int(), values[:, :num_columns]
    note = values[:, num_columns].int()
    is_soft = (note & 1).bool()
    is_non_finite = (note & 2).bool()
    support = torch.arange(num_columns) < (note >> 4)[:, None]
    if not support[is_soft & ~is_non_finite, 0].all():
        raise ValueError("a record of a soft step without a support")
    is_used = is_soft[:, None] | (torch.arange(num_columns) == 0)
    last_end = int(note[-1] >> 2) & 3
    trace = SoftTrace(
        ids=ids.masked_fill(~is_used, 0)[None],
        scores=scores[None],
        support=support[None],
        is_soft=is_soft[None],
        lengths=torch.tensor([len(ids)], dtype=torch.int32),
        settings=request.config.replay_settings(),
        source=request.source(engine),
    )
    return Record(
        trace=trace,
        logps=None if request.objective is None else values[:, num_columns + 1].tolist(),
        thinking_ended_by=_ENDS[last_end],
        non_finite_step=int(is_non_finite.int().argmax()) + 1 if is_non_finite.any() else None,
    )


def decode_response(steps: Sequence[Mapping[str, float]], request: Request) -> Record:
    """Read what the HTTP server returned.

    ``steps`` are the ``top_logprobs`` of each step in their order, tokens as ``token_id:17``
    (``return_tokens_as_token_ids``), ``num_logprobs(request)`` of them or one more.
    """
    width = num_logprobs(request)
    ids = [[int(token.removeprefix("token_id:")) for token in step][:width] for step in steps]
    values = [list(step.values())[:width] for step in steps]
    return decode_steps(torch.tensor(ids), torch.tensor(values), request, "vllm-server")
