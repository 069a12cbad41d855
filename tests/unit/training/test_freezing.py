"""Which parameters get no gradient from a soft thought: those that are frozen, and no others."""

from __future__ import annotations

import pytest
from peft import LoraConfig, get_peft_model

from softgrpo.replay import add_replay
from softgrpo.thinking import Objective
from softgrpo.training.freezing import freeze_input_embedding
from tests.helpers import MODELS, batch_of, roll_out, thinking, tiny_model


def _without_gradient(model, base):
    """Names of the trainable parameters that no gradient reaches, by computing it."""
    config = thinking()
    ids, mask, trace, _ = batch_of(roll_out(base, config))
    add_replay(base, Objective(config, "concrete"))
    base(input_ids=ids, attention_mask=mask, trace=trace)["logps"].sum().backward()
    return {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}


def _frozen(model, base):
    before = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = freeze_input_embedding(base)
    names = before - {n for n, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in frozen} == {id(p) for n, p in model.named_parameters() if n in names}
    assert freeze_input_embedding(base) == []
    return names


@pytest.mark.parametrize("name", MODELS)
def test_what_gets_no_gradient_is_frozen(name):
    model = tiny_model(name)
    expected = _without_gradient(model, model)
    assert _frozen(model, model) == expected
    assert bool(expected) == (not model.config.tie_word_embeddings)


ADAPTERS = {
    "layers": {"target_modules": ["q_proj"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "copy of the embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "copy of the head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
}


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ["tied", "untied"])
def test_so_are_adapters_on_the_embedding(name, adapter):
    model = get_peft_model(tiny_model(name), LoraConfig(r=2, **ADAPTERS[adapter]))
    base = model.get_base_model()
    expected = _without_gradient(model, base)
    assert _frozen(model, base) == expected
    assert bool(expected) == ("embedding" in adapter)
