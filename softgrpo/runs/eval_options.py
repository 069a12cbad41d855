"""What an evaluation can be told, the published settings among it. Values only, no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from softgrpo.runs.errors import OptionError
from softgrpo.runs.recipe import unknown_field
from softgrpo.thinking.fields import ThinkingFields
from softgrpo.values import between, check_fields

# The published settings (paper, section 5, and its authors' scripts), thought and answer alike.
_PAPER_LIMITS = {"samples": 32, "max_new_tokens": 32768}
_PAPER_SOFT = {"temperature": 1.0, "top_p": 0.95, "top_k": 5, "tau": 0.1}
_PAPER_BASE = {"temperature": 0.6, "top_p": 0.95, "top_k": 30}
PRESETS: dict[str, dict[str, Any]] = {
    "paper-softgrpo": {**_PAPER_LIMITS, "policy": "gumbel", **_PAPER_SOFT},
    "paper-discrete": {**_PAPER_LIMITS, "policy": "discrete", **_PAPER_BASE},
    "paper-soft": {**_PAPER_LIMITS, "policy": "gumbel", **_PAPER_BASE, "tau": 0.5},
}


def _option(text: str, default: Any = None) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class EvalOptions:
    """The options of an evaluation, each with its help, of which the command line is made.

    ``model`` is a source as in softgrpo.models; ``thinking`` are fields of ThinkingConfig that win
    over the run's.

    Raises:
        ValueError: A value of another type or out of its range; the message names it.
    """

    model: str
    benchmarks: list[str] | None = _option("Separated by commas.")
    task: str | None = _option(
        "Where there are no benchmarks: reasoning_gym:NAME, a file, hub:ORG/NAME. With neither, a "
        "run's own held-out problems."
    )
    task_options: str | dict[str, Any] | None = _option("YAML, as task_options of a recipe.")
    data: str | None = _option("Folder of benchmark files, in the place of the hub.")
    verifier: str | None = _option(
        "As a reward of a recipe; none: the benchmark's or the run's, else math_verify."
    )
    limit: int | None = _option("The first so many problems.")
    subset: str | None = _option("random:N, ids with commas between them, or a file of ids.")

    preset: Literal["paper-softgrpo", "paper-discrete", "paper-soft"] | None = _option(
        "The published settings; other options win over them."
    )
    samples: int = _option("Of each problem.", 8)
    max_new_tokens: int | None = _option("Thought and answer; none: the run's limit, else 2048.")
    seed: Annotated[int, between(0, 2**32 - 1)] = _option("Of the noise and the subset.", 0)
    prompt: str | None = _option(
        "Template with {question} in it; none: the benchmark's or the run's."
    )
    system_prompt: str | None = _option("The system message; none: the run's.")
    plain: bool = _option("Put prompts as plain text, without the chat template.", False)

    output: str | None = _option("Folder of the records; none: results/MODEL-POLICY.")
    overwrite: bool = _option("Delete the records that are there.", False)
    engine: Literal["transformers", "vllm"] = _option("Of the rollouts.", "transformers")
    batch_size: int = _option("Sequences decoded together.", 64)
    batch_tokens: int | None = _option("Positions of the key-value cache, at most.")
    dtype: Literal["float32", "bfloat16", "float16"] = _option("Of the weights.", "float32")
    revision: str | None = _option("Branch, tag or commit on the hub.")
    subfolder: str = _option("Where in the hub's repository.", "")
    trust_remote_code: bool = _option("Run the model's own code.", False)
    thinking: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("samples", "limit", "max_new_tokens", "batch_size", "batch_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(name, value, "must be at least 1")


def eval_options(model: str | Path, given: Mapping[str, Any]) -> EvalOptions:
    """Options by their names, those of thinking among them, over the preset that they name.

    Args:
        model: A source as in softgrpo.models.
        given: Fields of EvalOptions, where None leaves the default, and of ThinkingConfig.

    Raises:
        ValueError: An unknown name (with the nearest that is known) or a value of no use.
    """
    of_thinking = {item.name for item in fields(ThinkingFields)}
    own = {item.name for item in fields(EvalOptions)} - {"model", "thinking"}
    for name in given:
        if name not in own | of_thinking:
            raise unknown_field(name, sorted(own | of_thinking), "evaluate")
    given = {
        name: value for name, value in given.items() if name in of_thinking or value is not None
    }
    values = {**PRESETS.get(str(given.get("preset")), {}), **given}
    if "preset" in values:  # an answer is sampled like its thought
        for name in ("temperature", "top_k", "top_p"):
            values.setdefault(f"answer_{name}", values.get(name))
    values = {name: str(x) if isinstance(x, Path) else x for name, x in values.items()}
    thinking = {name: values.pop(name) for name in list(values) if name in of_thinking}
    return EvalOptions(str(model), thinking=thinking, **values)
