"""The laboratory's base model: a 0.64M-parameter Llama that learnt chains from unreliable books.

Supervised training on thoughts with slips gives a model whose thoughts have the right form and are
often wrong, and whose mistakes are its own: reinforcement learning has something to mend and can
find it by sampling. `make_base` makes the model that ships as `softgrpo.lab.BASE_MODEL`.

It is not the method: sampling is ordinary, and nothing here knows of soft thinking.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

from softgrpo.lab.chains import NUM_OPERANDS, ChainProblem, make_problems, stated_answer
from softgrpo.lab.tokenizer import EOS, make_tokenizer

NUM_PROMPT_TOKENS = 2 * NUM_OPERANDS
NUM_COMPLETION_TOKENS = 3 * (NUM_OPERANDS - 1) + 3  # the steps, the marker, the answer, the end

_CONTEXT = 64
_CORRUPT = 0.3  # share of wrong results in the thoughts trained on, see `make_problems`
_LEARNING_RATE = 1e-3  # after a tenth of the steps of warm-up; then a cosine to 0
_EVAL_SEED = 1
_NUM_EVAL_PROBLEMS = 200
_EVAL_SAMPLES = 4


def make_base(
    output_dir: Path, *, seed: int = 0, steps: int = 500, batch_size: int = 128
) -> list[float]:
    """Trains a base model, saves it with its tokenizer and prints how good it is.

    Args:
        output_dir: Folder for model and tokenizer, in Hugging Face format. Written at the end only.
        seed: Seed of weights, problems and slips.
        steps: Optimizer steps.
        batch_size: Problems a step.

    Returns:
        Training loss of each step, in nats per token of the completion.

    Raises:
        ValueError: `output_dir` holds something already.
    """
    if output_dir.exists() and any(output_dir.iterdir()):
        raise ValueError(f"OUTPUT={output_dir}: is not empty; choose another folder")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = make_tokenizer(_CONTEXT)
        model = _new_model(tokenizer)
        started = time.process_time()
        problems = make_problems(steps * batch_size, seed, corrupt=_CORRUPT)
        losses = _train(model, _encode(problems, tokenizer).split(batch_size))
        seconds = time.process_time() - started
        _save(model, tokenizer, output_dir)

        model.float()  # the values as saved: measured is what was rounded to half precision
        heldout = make_problems(_NUM_EVAL_PROBLEMS, _EVAL_SEED, "heldout")
        greedy = pass_at_1(model, tokenizer, heldout)
        sampled = pass_at_1(model, tokenizer, heldout, num_samples=_EVAL_SAMPLES)
    print(
        f"base model in {output_dir}, {seconds:.0f} CPU-seconds; "
        f"pass@1 on {len(heldout)} held-out problems: "
        f"greedy {greedy:.3f}, sampled {sampled:.3f} ({_EVAL_SAMPLES} samples each)"
    )
    return losses


@torch.no_grad()
def pass_at_1(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: Sequence[ChainProblem],
    *,
    num_samples: int | None = None,
) -> float:
    """Share of right answers with ordinary tokens: greedy, or `num_samples` a problem at T = 1."""
    encoded = tokenizer([problem.prompt for problem in problems], return_tensors="pt")
    sampling = (
        {"do_sample": False}
        if num_samples is None
        else {"do_sample": True, "num_return_sequences": num_samples, "top_k": 0}
    )
    # transformers types `self` of generate as a protocol that its own models do not meet.
    output = model.generate(  # type: ignore[misc]
        **encoded, **sampling, max_new_tokens=NUM_COMPLETION_TOKENS
    )
    completions = tokenizer.batch_decode(output[:, NUM_PROMPT_TOKENS:], skip_special_tokens=True)
    answers = [problem.answer for problem in problems for _ in range(num_samples or 1)]
    right = [
        stated_answer(text) == answer for text, answer in zip(completions, answers, strict=True)
    ]
    return sum(right) / len(right)


def _new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=_CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.08,  # at the default of .02 a model this narrow does not learn
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def _encode(problems: Sequence[ChainProblem], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """[N, NUM_PROMPT_TOKENS + NUM_COMPLETION_TOKENS] ids; every chain has the same length."""
    texts = [f"{problem.prompt} {problem.completion} {EOS}" for problem in problems]
    return torch.tensor(tokenizer(texts)["input_ids"])


def _train(model: LlamaForCausalLM, batches: Sequence[torch.Tensor]) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    schedule = get_cosine_schedule_with_warmup(optimizer, len(batches) // 10, len(batches))
    losses: list[float] = []
    bar = tqdm(batches, desc="making the base", unit="step")
    for batch in bar:
        labels = batch.clone()
        labels[:, :NUM_PROMPT_TOKENS] = -100  # a prompt is random: nothing to learn from it
        loss = model(input_ids=batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output_dir: Path) -> None:
    """Weights in half precision, to ship small; the config says float32, to be trained on as is."""
    model.half().save_pretrained(output_dir)
    model.config.dtype = torch.float32
    model.config.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
