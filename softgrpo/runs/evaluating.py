"""A model on benchmarks: its samples recorded one by one, and the table of them."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from softgrpo.evaluation import Results
from softgrpo.files import locked
from softgrpo.models import default_device, load_weights, resolve_model
from softgrpo.rewards import RewardError
from softgrpo.rollout import TransformersEngine
from softgrpo.runs.display import Display
from softgrpo.runs.errors import OptionError, reward_failed
from softgrpo.runs.eval_folder import check_output, records_path, report
from softgrpo.runs.eval_options import EvalOptions, eval_options
from softgrpo.runs.eval_plan import EvalPlan, plan_evaluation
from softgrpo.runs.recording import record
from softgrpo.together import num_processes


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation came to."""

    output: Path  # the folder of the records, with summary.md and cost.json
    results: dict[str, Results]  # by task; those that are whole, where it was interrupted
    interrupted: bool = False  # whether Ctrl-C has stopped it; the same call goes on


def evaluate(model: str | Path, *, display: Display | None = None, **options: Any) -> Evaluation:
    """Evaluate a model; the same call again makes what is missing, and repeats nothing.

        evaluate("runs/x", benchmarks=["gsm8k"], data="FOLDER", samples=8, tau=0.2)

    Args:
        model: A source as in softgrpo.models; a run brings its way of thinking and its problems.
        display: Where it says how it goes; None: as the command line does.
        options: Fields of EvalOptions and of ThinkingConfig.

    Raises:
        ValueError: An unknown option or a value of no use, or several processes; nothing has been
            touched.
        RunFailed: A reward failed on the way.
    """
    _require_one_process()
    display = display or Display()
    started, cpu = time.perf_counter(), time.process_time()
    chosen = eval_options(model, options)
    plan = plan_evaluation(chosen)
    output = plan.output
    engine = _engine(chosen, plan)
    results: dict[str, Results] = {}
    with locked(output):
        check_output(output)
        paths = {task.name: records_path(output, task.name) for task in plan.tasks}
        if chosen.overwrite:
            for path in paths.values():
                path.unlink(missing_ok=True)
        try:
            for name, sampling, settings in plan.tasks:
                results[name] = record(engine, sampling, paths[name], settings, name, display)
        except KeyboardInterrupt:
            return Evaluation(output, results, interrupted=True)
        except RewardError as error:
            raise reward_failed(error, f"what is finished is in {output}") from error
        report(output, time.perf_counter() - started, time.process_time() - cpu, display)
    return Evaluation(output, results)


def _require_one_process() -> None:
    """Refuse what a launcher has started several times; all would write the same files."""
    count = max(num_processes(), int(os.environ.get("WORLD_SIZE", "1")))
    if count > 1:
        raise ValueError(
            f"WORLD_SIZE={count}: an evaluation is made by one process; start it without a "
            "launcher, on each device other benchmarks into an output of their own"
        )


def _engine(options: EvalOptions, plan: EvalPlan) -> Any:
    if options.engine == "vllm":
        if options.batch_tokens is not None:
            why = "vLLM's cache takes what memory it is given"
            raise OptionError("batch_tokens", options.batch_tokens, why)
        if options.subfolder:
            why = "vLLM opens no subfolder; download it and give its path"
            raise OptionError("subfolder", options.subfolder, why)
        from softgrpo.rollout.vllm_engine import VLLMEngine

        return VLLMEngine(
            resolve_model(options.model),
            dtype=options.dtype,
            max_model_len=plan.longest,
            max_num_seqs=options.batch_size,
            revision=options.revision,
            trust_remote_code=options.trust_remote_code,
        )
    model = load_weights(
        options.model,
        getattr(torch, options.dtype),
        options.trust_remote_code,
        options.revision,
        options.subfolder,
    )
    return TransformersEngine(
        model.to(default_device()),
        plan.tokenizer,
        max_batch_size=options.batch_size,
        max_batch_tokens=options.batch_tokens,
    )
