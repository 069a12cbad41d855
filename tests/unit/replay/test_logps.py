"""k head columns = full logits, chunked tokens = unchunked: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical

from softgrpo.replay import OutputHead, logps_from_logits, replay_steps
from softgrpo.replay.logps import replay_logits
from softgrpo.thinking import Objective, Steps, ThinkingConfig
from tests.helpers import MODELS, POLICY_DENSITIES, VOCAB_SIZE, assert_same, gradients, tiny_model

N, K = 12, 4
DENSITIES = [(d, r) for _, d, r in POLICY_DENSITIES if d not in ("embedding_gaussian", "token")]


def _steps(seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(VOCAB_SIZE, generator=generator)[:K] for _ in range(N)])
    support = torch.arange(K) < torch.randint(1, K + 1, (N, 1), generator=generator)
    scores = torch.rand(N, K, generator=generator) + 0.1
    return ids, scores, support, torch.arange(N) % 3 > 0


def _gradients_of(model, hidden, values):
    model.zero_grad()
    hidden.grad = None
    (values * torch.linspace(-1, 2, N)).sum().backward()
    return gradients(model) | {"hidden": hidden.grad.clone()}


@pytest.mark.parametrize(("density", "reduction"), DENSITIES)
@pytest.mark.parametrize("name", MODELS)
def test_k_columns_equal_full_logits_in_values_and_gradients(name, density, reduction):
    model = tiny_model(name, dtype=torch.float64)
    head, steps = OutputHead.of(model), _steps()
    hidden = torch.randn(N, 32, dtype=torch.float64, requires_grad=True)
    objective = Objective.of_density(density, reduction, temperature=1.3, answer_temperature=0.7)
    few = replay_steps(hidden, head, Steps.of(*steps), objective).logps
    few_gradients = _gradients_of(model, hidden, few)
    full = logps_from_logits(
        head.logits(hidden), *steps, temperature=1.3, answer_temperature=0.7, density=density,
        reduction=reduction,
    )  # fmt: skip
    torch.testing.assert_close(few, full, rtol=1e-9, atol=1e-9)
    assert_same(few_gradients, _gradients_of(model, hidden, full), 1e-9)


def test_a_token_is_the_categorical_and_a_soft_step_has_its_supports_entropy():
    head, (ids, scores, support, is_soft) = OutputHead.of(tiny_model("untied")), _steps()
    hidden = torch.randn(N, 32)
    objective = Objective.of_density("argmax", "sum", temperature=1.3, answer_temperature=0.7)
    found = replay_steps(hidden, head, Steps.of(ids, scores, support, is_soft), objective)
    logits = head.logits(hidden)
    tokens = Categorical(logits=logits[~is_soft] / 0.7)
    torch.testing.assert_close(found.logps[~is_soft], tokens.log_prob(ids[~is_soft, 0]))
    torch.testing.assert_close(found.entropies[~is_soft], tokens.entropy())
    columns = (logits.gather(1, ids) / 1.3).masked_fill(~support, -1e9)[is_soft]
    torch.testing.assert_close(found.entropies[is_soft], Categorical(logits=columns).entropy())


def test_columns_that_a_token_does_not_use_may_hold_anything():
    logits, is_soft = torch.randn(2, 6), torch.tensor([True, False])
    settings = {"scores": torch.randn(2, 3), "support": torch.ones(2, 3, dtype=torch.bool),
                "is_soft": is_soft, "temperature": 0.7}  # fmt: skip
    ids = torch.tensor([[1, 2, 3], [4, 0, 0]])
    wanted = logps_from_logits(logits, ids=ids, **settings)
    ids[1, 1:] = torch.tensor([-1, 10**6])
    assert torch.equal(logps_from_logits(logits, ids=ids, **settings), wanted)


@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_with_nothing_to_score_still_has_a_graph(count):
    model = tiny_model("bias")
    hidden = torch.randn(count, 32, requires_grad=True)
    empty = [x[:count] for x in _steps()]
    head = OutputHead.of(model)
    replayed = replay_steps(hidden, head, Steps.of(*empty), Objective())
    (replayed.logps.sum() * 0).backward()
    assert all(x.grad is not None for x in (hidden, head.weight, head.bias))


def test_discrete_at_two_temperatures_is_refused_by_name():
    config = ThinkingConfig(policy="discrete", temperature=1.3, answer_temperature=0.8)
    with pytest.raises(ValueError, match="answer_temperature=0.8"):
        Objective(config, "token")


def test_log_densities_of_half_precision_hidden_states_are_float32():
    model = tiny_model(dtype=torch.bfloat16)
    hidden = torch.randn(N, 32, dtype=torch.bfloat16)
    replayed = replay_steps(hidden, OutputHead.of(model), Steps.of(*_steps()), Objective())
    assert replayed.logps.dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "autocast", "has_gradient"),
    [
        (torch.float32, None, False),
        (torch.bfloat16, None, True),
        (torch.float32, torch.bfloat16, True),
        (torch.float32, torch.float16, False),
    ],
)
@pytest.mark.parametrize("from_hidden", [True, False])
def test_the_edge_of_the_clamp_is_as_wide_as_the_model_rounds(
    from_hidden, weights, autocast, has_gradient
):
    """Draws .1 beyond the clamp: rounding, if the model computes in bfloat16."""
    model = tiny_model(dtype=weights)
    head, hidden = OutputHead.of(model), torch.randn(N, 32, dtype=weights)
    ids, _, support, _ = _steps()
    everywhere, is_soft = torch.ones_like(support), torch.ones(N, dtype=torch.bool)
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        logits = head.logits(hidden).float().gather(1, ids)
        columns = head.columns(hidden, ids)[0] if from_hidden else logits
        scores = (torch.log_softmax(columns, -1) + 3.1).detach().requires_grad_()
        steps = (
            Steps.of(ids, scores, everywhere, is_soft),
            Objective(ThinkingConfig(prob_floor=0.0)),
        )
        if from_hidden:
            found = replay_steps(hidden, head, *steps).logps
        else:
            found = replay_logits(head.logits(hidden), *steps)
    found.sum().backward()
    counts = torch.log_softmax(columns, -1) > -2.9
    assert ((scores.grad != 0) == has_gradient)[counts].all()
