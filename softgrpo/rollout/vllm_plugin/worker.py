"""vLLM's worker with soft thinking in its model runner, whichever runner that is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import vllm
from safetensors import safe_open
from torch import Tensor
from vllm.config import set_current_vllm_config
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform
from vllm.tokenizers import cached_tokenizer_from_config

from softgrpo import __version__
from softgrpo.rollout.vllm_plugin.thoughts import Thoughts
from softgrpo.rollout.weights import shapes_by

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Worker
else:
    from vllm.v1.worker.gpu_worker import Worker


class SoftWorker(Worker):
    """The platform's worker; ``thoughts`` holds its thinking requests."""

    thoughts: Thoughts

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then put soft thinking into the runner."""
        super().load_model(*args, **kwargs)
        tokenizer = cached_tokenizer_from_config(self.model_config)
        tokenizer.clean_up_tokenization_spaces = False
        self.thoughts = Thoughts(tokenizer, self.model_config.get_vocab_size())
        runner: Any = self.model_runner
        if self.use_v2_model_runner:
            from softgrpo.rollout.vllm_plugin import runner_v2

            _extend(runner, runner_v2.SoftRunnerV2, self.thoughts)
            _extend(runner.model_state, runner_v2.SoftModelState, self.thoughts)
            _extend(runner.sampler, runner_v2.SoftSampler, self.thoughts)
        else:
            from softgrpo.rollout.vllm_plugin.runner_v1 import SoftRunnerV1

            _extend(runner, SoftRunnerV1, self.thoughts)

    def begin_weights(self) -> None:
        """Make ready for ``take_weights``, in any number of calls; ``end_weights`` follows."""
        with set_current_vllm_config(self.vllm_config):
            initialize_layerwise_reload(self.model_runner.get_model())

    def take_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take some weights over, named as in a Hugging Face checkpoint."""
        model: Any = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            model.load_weights(weights)

    def end_weights(self) -> None:
        """From here on the model computes with the weights that were taken over."""
        model: Any = self.model_runner.get_model()
        with set_current_vllm_config(self.vllm_config):
            finalize_layerwise_reload(model, self.model_config)
        if current_platform.is_cpu() and self.model_config.hf_text_config.tie_word_embeddings:
            # On a CPU the head multiplies by a packed copy, which reloading leaves as it was.
            from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

            dispatch_cpu_unquantized_gemm(getattr(model, "lm_head", None), remove_weight=False)

    def update_weights_from(self, path: str) -> None:
        """Take over the weights in a safetensors file that this process can read."""
        self.begin_weights()
        with safe_open(path, "pt") as file:
            self.take_weights((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        self.end_weights()

    def served(self) -> dict[str, Any]:
        """What a trainer compares before it trusts a server: versions, shapes of weights."""
        config, trusted = self.model_config.hf_config, self.model_config.trust_remote_code
        return {
            "softgrpo": __version__,
            "vllm": vllm.__version__,
            "shapes": shapes_by(config, trusted),
        }

    def num_thoughts(self) -> int:
        """Thinking requests that this worker keeps state of."""
        return len(self.thoughts)


def _extend(instance: Any, mixin: type, thoughts: Thoughts) -> None:
    """Put a mixin over the class of an object that vLLM has made."""
    base = type(instance)
    instance.__class__ = type(f"Soft{base.__name__}", (mixin, base), {})
    instance.thoughts = thoughts
