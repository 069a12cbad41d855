"""The settings of thinking: names, types, ranges, defaults and meaning, and nothing else.

``ThinkingConfig`` is made of them, and so are a recipe's fields, the options of the command line,
their help, and the ``soft_*`` settings of a request to vLLM. It imports nothing heavy, so that help
is fast.

Every default is the published SofT-GRPO setting (arXiv 2511.06411, Sec. 5 and Appendix) unless the
field says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

from softgrpo.values import Range, above, at_least, between

MixerName = Literal["discrete", "soft", "gumbel", "dirichlet", "gaussian", "embedding_gaussian"]

_NUCLEUS = Range("in (0, 1]", lambda x: (x > 0) & (x <= 1))
_SHARE = Range("in [0, 1)", lambda x: (x >= 0) & (x < 1))
_INTERVAL = Range("(low, high) with low < high", lambda ends: ends[0] < ends[1])
# Below, scores over tau leave the range of float32.
_TAU = Range("> 0, and no less than 1e-30 (the paper: 0.1)", lambda x: x >= 1e-30)


def setting(default: Any, text: str, **more: Any) -> Any:
    """A field of a dataclass with its help, and what else a parser of options is told of it."""
    return field(default=default, metadata={"help": text, **more})


@dataclass(frozen=True)
class ThinkingFields:
    """Sampling of the thinking steps, of the answer, and the border between the two.

    A field's help says what it means.
    """

    # discrete: one token, sampled. soft: the mixture of the support's probabilities, no noise
    # (Zhang et al. 2505.15778). gumbel: Gumbel-Softmax weights (Eq. 9). dirichlet: weights from
    # Dirichlet(alpha * p). gaussian: p + N(0, sigma^2), normalised. embedding_gaussian: the
    # mixture's embedding + N(0, sigma^2 I) (Butt et al. 2509.19170).
    policy: MixerName = setting(
        "gumbel", "What a thinking step feeds the model.", choices=list(get_args(MixerName))
    )
    temperature: Annotated[float, above(0)] = setting(1.0, "Divides the logits of a thinking step.")
    top_k: Annotated[int | None, at_least(1)] = setting(
        None, "Likeliest tokens that a thinking step may mix; none: 5 (policy discrete: all)."
    )
    top_p: Annotated[float | None, _NUCLEUS] = setting(
        None,
        "Nucleus kept of those; the token that crosses it stays; none: .95 (policy discrete: 1).",
    )
    min_p: Annotated[float, _SHARE] = setting(
        0.0, "Of those, drop what is less likely than this share of the likeliest."
    )
    tau: Annotated[float, _TAU] = setting(
        0.1, "Gumbel-Softmax temperature of policy gumbel: softer when higher."
    )
    # Not in the paper: see densities.censored.
    min_weight: Annotated[float, between(0, 1)] = setting(
        0.0,
        "Policy gumbel: cut weights below this share of the largest. 0 cuts none, 1 all but one; "
        "density censored is exact for each.",
    )
    # Deviation [3] of the authors' code from the paper.
    prob_floor: Annotated[float, _SHARE] = setting(
        1e-6, "Added to a probability before its logarithm and Gumbel noise; 0 is exact."
    )
    # Deviation [2].
    noise_clamp: Annotated[tuple[float, float] | None, _INTERVAL] = setting(
        (-1.5, 3.0), "Range to which Gumbel noise is clamped; none leaves it alone."
    )
    alpha: Annotated[float, above(0)] = setting(1.0, "Concentration of policy dirichlet.")
    # Butt et al. take .33 times the root mean square entry of the embedding matrix for the latter.
    sigma: Annotated[float, above(0)] = setting(
        0.05,
        "Standard deviation of policies gaussian (of a probability) and embedding_gaussian (of one "
        "entry of an embedding).",
    )
    answer_temperature: Annotated[float, above(0)] = setting(
        1.0, "As temperature, for the tokens after the thinking."
    )
    answer_top_k: Annotated[int | None, at_least(1)] = setting(
        None, "As top_k, for the answer; none: all."
    )
    answer_top_p: Annotated[float, _NUCLEUS] = setting(1.0, "As top_p, for the answer.")
    answer_min_p: Annotated[float, _SHARE] = setting(0.0, "As min_p, for the answer.")
    think_end: tuple[str, ...] = setting(
        ("</think>",),
        "Texts that end the thinking, however the tokenizer cuts them; the first is the one that "
        "is forced. Without one the thinking ends only with the sequence.",
    )
    max_think_tokens: Annotated[int | None, at_least(1, ", or None for no budget")] = setting(
        None, "Thinking budget in steps; then the marker is forced."
    )
    # Zhang et al., Sec. 3.3.
    cold_stop_entropy: Annotated[float | None, above(0, " nats, or None")] = setting(
        None,
        "Force the marker once the support's entropy has stayed below this for cold_stop_steps "
        "consecutive steps; none: never.",
    )
    cold_stop_steps: Annotated[int, at_least(1)] = setting(256, "See cold_stop_entropy.")
