"""The head as a function equals the model's own, whole and column by column; others are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from softgrpo.replay import OutputHead, check_model
from tests.helpers import MODELS, VOCAB_SIZE, tiny_model


@pytest.mark.parametrize("name", MODELS)
def test_the_head_of_the_hidden_states_gives_the_models_logits(name):
    model = tiny_model(name)
    ids = torch.randint(0, VOCAB_SIZE, (2, 6))
    hidden = model.base_model(input_ids=ids).last_hidden_state.flatten(0, 1)
    wanted = model(input_ids=ids).logits.flatten(0, 1)
    torch.testing.assert_close(OutputHead.of(model).logits(hidden), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_some_columns_are_columns_of_all(name):
    model = tiny_model(name)
    hidden, ids = torch.randn(5, 32), torch.randint(0, VOCAB_SIZE, (5, 3))
    head = OutputHead.of(model)
    wanted = head.logits(hidden).gather(1, ids)
    torch.testing.assert_close(head.columns(hidden, ids)[0], wanted, rtol=1e-5, atol=1e-5)


def test_columns_are_float32_under_autocast():
    head = OutputHead.of(tiny_model("bias"))
    hidden, ids = torch.randn(5, 32), torch.randint(0, VOCAB_SIZE, (5, 3))
    wanted = head.columns(hidden, ids)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head.columns(hidden, ids)[0], wanted)


@pytest.mark.parametrize("name", MODELS)
def test_models_that_can_be_served_pass_the_check_unchanged(name):
    model = tiny_model(name).train()
    check_model(model)
    assert model.training


def test_an_encoder_decoder_is_refused_by_its_class_name():
    config = T5Config(
        vocab_size=20, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    with pytest.raises(ValueError, match="T5ForConditionalGeneration.*encoder-decoder"):
        check_model(T5ForConditionalGeneration(config))


class _Base(PreTrainedModel):
    """A causal LM whose parts the classes below spoil, one each."""

    config_class = PretrainedConfig
    base_model_prefix = "model"

    def __init__(self, body: type[nn.Module]) -> None:
        super().__init__(PretrainedConfig(vocab_size=20, tie_word_embeddings=False))
        self.model = body()
        self.lm_head = nn.Linear(8, 20)

    def get_input_embeddings(self):
        return self.model.embedding

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids=None, **kwargs):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids=input_ids)[0]))


class _TakesIdsOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)

    def forward(self, input_ids):
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))


class _TakesEmbeddings(_TakesIdsOnly):
    def forward(self, input_ids=None, inputs_embeds=None, use_cache=False):
        if inputs_embeds is None:
            inputs_embeds = self.embedding(input_ids) + self.extra(input_ids)
        return BaseModelOutput(last_hidden_state=inputs_embeds)

    def extra(self, input_ids):
        return 0.0


class _AddsByTokenId(_TakesEmbeddings):
    def extra(self, input_ids):
        return input_ids[..., None].float()


class _RoundsIds(_TakesEmbeddings):
    def extra(self, input_ids):
        return self.embedding(input_ids) * torch.finfo(torch.bfloat16).eps


class IdsOnlyForCausalLM(_Base):
    pass


class PerTokenInputsForCausalLM(_Base):
    pass


class WarpedHeadForCausalLM(_Base):
    def forward(self, input_ids=None, **kwargs):
        logits = super().forward(input_ids, **kwargs).logits
        return CausalLMOutput(logits=logits * 2)


def test_the_toy_that_the_next_tests_spoil_passes():
    check_model(_Base(_TakesEmbeddings))


def test_a_model_in_bfloat16_may_round_by_its_last_bit():
    check_model(_Base(_RoundsIds).to(torch.bfloat16))
    with pytest.raises(ValueError, match="cannot be served"):
        check_model(_Base(_RoundsIds))


@pytest.mark.parametrize(
    ("model", "body", "why"),
    [
        (IdsOnlyForCausalLM, _TakesIdsOnly, "inputs_embeds"),
        (PerTokenInputsForCausalLM, _AddsByTokenId, "token ids beside"),
        (WarpedHeadForCausalLM, _TakesEmbeddings, "not its output head"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_by_its_class_name(model, body, why):
    with pytest.raises(ValueError, match=f"{model.__name__} cannot be served.*{why}"):
        check_model(model(body))
