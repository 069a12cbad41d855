"""Rows that come and go in the cache see what they would see alone."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3NextConfig

from softgrpo.rollout.cache import SlotCache, affordable_tokens, bytes_of_a_token, cache_size
from tests.helpers import tiny_model

IDS = torch.randint(0, 30, (6, 40), generator=torch.Generator().manual_seed(0))
SLOTS, CAPACITY = 3, 20


class _Rows:
    """Sequences of IDS in a cache; every forward's hidden states are compared."""

    def __init__(self, model):
        self.model, self.cache = model, SlotCache(model.config, SLOTS, CAPACITY)
        self.rows = []  # (sequence, tokens so far)

    def add(self, sequence, length, copies=1):
        alone = SlotCache(self.model.config, 1, length)
        ids = IDS[sequence : sequence + 1, :length]
        self.model.base_model(input_ids=ids, past_key_values=alone, use_cache=True)
        alone.advance(length)
        self.cache.append(alone.extract(0, torch.arange(length)), copies)
        self.rows += [(sequence, length)] * copies

    def keep(self, rows):
        self.cache.select(rows)
        self.rows = [self.rows[row] for row in rows]

    def step(self):
        self.cache.make_room()
        starts, end = torch.tensor(self.cache.starts)[:, None], self.cache.window.end
        found = self.model.base_model(
            input_ids=torch.stack([IDS[row, length : length + 1] for row, length in self.rows]),
            attention_mask=(torch.arange(self.cache.window.start, end + 1) >= starts).long(),
            position_ids=end - starts,
            past_key_values=self.cache,
            use_cache=True,
        )[0]  # fmt: skip
        self.cache.advance(1)
        self.rows = [(sequence, length + 1) for sequence, length in self.rows]
        for row, (sequence, length) in enumerate(self.rows):
            assert end + 1 - self.cache.starts[row] == length
            wanted = self.model.base_model(input_ids=IDS[sequence : sequence + 1, :length])[0]
            torch.testing.assert_close(found[row, 0], wanted[0, -1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tied", "bias_gptj", "softcap"])
@torch.no_grad()
def test_rows_are_what_they_are_alone(name):
    rows = _Rows(tiny_model(name))
    rows.add(0, 4)
    rows.add(1, 2)
    for _ in range(3):
        rows.step()
    rows.add(2, 11)  # longer than anything that runs: the others move to the right
    rows.step()
    rows.keep([2, 1])  # the last row takes the first one's place
    rows.step()
    rows.add(3, 3)
    for _ in range(7):  # beyond the last column: all of them move back
        rows.step()
    rows.keep([2])
    for _ in range(9):
        rows.step()
    assert rows.cache.window.end <= CAPACITY
    rows.keep([])
    rows.add(4, 7, copies=3)
    rows.step()


@torch.no_grad()
def test_columns_that_no_row_uses_are_not_read():
    rows = _Rows(tiny_model())
    rows.add(0, 10)
    rows.add(1, 2)
    rows.step()
    assert rows.cache.get_seq_length() == 11
    rows.keep([1])
    assert rows.cache.get_seq_length() == 3
    rows.step()


def test_a_model_that_keeps_something_else_is_refused_by_name():
    with pytest.raises(ValueError, match="Qwen3NextConfig.*LinearAttentionLayer"):
        SlotCache(Qwen3NextConfig(num_hidden_layers=4), SLOTS, CAPACITY)


def test_the_last_rows_take_the_places_of_those_that_have_ended():
    cache = SlotCache(tiny_model().config, 40, CAPACITY)
    cache.starts = list(range(40))
    assert cache.order_without([3, 5]) == [0, 1, 2, 38, 4, 39, *range(6, 38)]
    assert cache.order_without(range(40)) == []


def test_a_tokens_bytes_are_those_of_the_buffers():
    model = tiny_model("untied")
    cache = SlotCache(model.config, 3, 20)
    model(input_ids=torch.tensor([[3, 4]]), past_key_values=cache)
    allocated = sum(buffer.nbytes for layer in cache.layers for buffer in layer.buffers)
    assert allocated == 3 * 20 * bytes_of_a_token(model.config, torch.float32)


def test_a_cpu_is_not_asked_for_its_memory():
    assert affordable_tokens(tiny_model()) is None


@pytest.mark.parametrize(
    ("lengths", "places", "budget", "wanted"),
    [
        ([10, 8], 128, None, (2, 10)),  # never refilled: no column more than is needed
        ([10, 8], 128, 20, (2, 10)),
        ([10, 8, 8], 2, None, (2, 13)),
        ([10] * 9, 128, 60, (4, 13)),
        ([10] * 9, 128, 12, (1, 10)),
    ],
)
def test_a_cache_is_as_large_as_it_must_be(lengths, places, budget, wanted):
    assert cache_size(lengths, places, budget) == wanted
