"""A model's output head as a function: hidden states -> logits, all columns or only some.

It reads the head's weight at every call, because FSDP and PEFT replace it after construction, and
knows the three things that transformers' causal LMs do around the product: a bias, a scale, and
soft-capping. ``check_model`` proves, by running the model, that nothing else happens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softgrpo.modeling.parameters import whole
from softgrpo.replay.columns import column_logits


@dataclass(frozen=True)
class OutputHead:
    """logits = softcap(scale * (hidden @ weight^T + bias)).

    Attributes:
        weight: [V, D].
        bias: [V] or None.
        scale: Multiplies the logits before the cap.
        softcap: c in c * tanh(logits / c), or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> OutputHead:
        """The head of a transformers causal LM (or of a bare linear layer)."""
        linear: Any = model if isinstance(model, nn.Linear) else model.get_output_embeddings()
        weight, bias = whole(linear.weight), whole(linear.bias)
        if isinstance(model, nn.Linear):
            return cls(weight, bias)
        config = model.config.get_text_config()
        return cls(
            weight, bias, _logit_scale(config), getattr(config, "final_logit_softcapping", None)
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, V] logits from hidden [N, D]; in the product's dtype, unless scaled or capped."""
        return self.finish(F.linear(hidden, self.weight, self.bias))

    def columns(self, hidden: Tensor, ids: Tensor) -> tuple[Tensor, OutputHead]:
        """[N, K] logits of the columns ids [N, K], float32 at least, whatever autocast says.

        And the head for whatever else is computed (see column_logits).
        """
        logits, weight = column_logits(hidden, self.weight, ids.long())
        if self.bias is not None:
            logits = logits + self.bias[ids.long()].to(logits.dtype)
        return self.finish(logits), replace(self, weight=weight)

    def finish(self, logits: Tensor) -> Tensor:
        """The model's scale, then its cap, on the product of any columns."""
        if self.scale != 1.0 or self.softcap is not None:
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits


@torch.no_grad()
def check_model(model: Any) -> None:
    """Refuse a model whose logits are not its output head's, of hidden states from embeddings.

    Three tokens are run both ways. A model that fails (per-layer embeddings, an encoder-decoder, a
    head that does more) would be given a wrong density by a replay.

    Raises:
        ValueError: Names the model class and what differs.
    """
    name = type(model).__name__
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if embedding is None or head is None or getattr(head, "weight", None) is None:
        raise ValueError(f"{name} cannot be served: it has no input embeddings or no output head")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ValueError(f"{name} cannot be served: it is an encoder-decoder, not a causal LM")
    was_training = model.training
    model.eval()
    try:
        ids = torch.arange(3, device=embedding.weight.device)[None] % embedding.weight.shape[0]
        expected = model(input_ids=ids, use_cache=False).logits
        embedded = embedding(ids)
        hidden = model.base_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
        found = OutputHead.of(model).logits(hidden[0])
    except (TypeError, ValueError, AttributeError, NotImplementedError) as error:
        raise ValueError(f"{name} cannot be served: it takes no inputs_embeds ({error})") from error
    finally:
        model.train(was_training)
    difference = (found.float() - expected[0].float()).abs().max().item()
    tolerance = 0.1 if torch.finfo(hidden.dtype).bits < 32 else 1e-3
    if not difference <= tolerance * (1 + expected.abs().max().item()):
        raise ValueError(
            f"{name} cannot be served: its logits are not its output head of its hidden states "
            f"(they differ by {difference:.3g}), or it needs token ids beside their embeddings"
        )


def _logit_scale(config: Any) -> float:
    """The factor transformers' models put on their logits, under the names they give it."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return float(scaling) if config.model_type == "hyperclovax" else 1 / float(scaling)
