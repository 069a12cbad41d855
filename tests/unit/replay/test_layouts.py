"""Every layout of a packed row is attention to ancestors; those without masks are linear."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from softgrpo.replay import pack
from softgrpo.replay.ancestors import AncestorMask
from softgrpo.replay.layouts import along_paths, choose_layout, in_blocks, in_one_call
from tests.helpers import ancestor_matrix, assert_same, gradients, tiny_model

HEADS, GROUPS, SIZE = 4, 2, 8


def varlen_reference(
    query, key, value, query_ends, key_ends, longest_query, longest_key, *, scale, window_size,
    enable_gqa,
):  # fmt: skip
    """torch's varlen_attn as its documentation has it: the last queries see the last keys."""
    assert window_size == (-1, 0) and query_ends.dtype == key_ends.dtype == torch.int32
    parts = []
    for i in range(len(query_ends) - 1):
        q = query[query_ends[i] : query_ends[i + 1]].transpose(0, 1)
        k, v = (x[key_ends[i] : key_ends[i + 1]].transpose(0, 1) for x in (key, value))
        assert q.shape[1] <= longest_query and k.shape[1] <= longest_key
        mask = torch.ones(q.shape[1], k.shape[1]).tril(k.shape[1] - q.shape[1]).bool()
        parts.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=scale, enable_gqa=enable_gqa
            ).transpose(0, 1)
        )
    return torch.cat(parts)


LAYOUTS = {
    "blocks": in_blocks,
    "short blocks": partial(in_blocks, block=5),
    "paths": along_paths,
    "varlen": partial(in_one_call, kernel=varlen_reference),
}


def _batch():
    """Prompts that begin alike, one that begins another, and completions of every length."""
    prompts = [[3, 4, 5], [3, 4, 5], [3, 4, 5, 6, 7], [3, 4, 8], [9], [9]]
    lengths = [7, 2, 13, 0, 1, 11]
    ids = torch.zeros(6, 5 + 13, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        ids[row, 5 - len(prompt) : 5] = torch.tensor(prompt)
        ids[row, 5 : 5 + length] = torch.randint(3, 20, (length,))
        mask[row, 5 - len(prompt) : 5 + length] = 1
    return ids, mask, 13


@pytest.mark.parametrize("groups", [GROUPS, HEADS])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_is_attention_to_ancestors(layout, groups):
    packed = pack(*_batch())
    size = len(packed.source)
    shapes = [(size, HEADS, SIZE), (size, groups, SIZE), (size, groups, SIZE)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    found = LAYOUTS[layout](packed)(*inputs, scale=0.3)
    wanted = F.scaled_dot_product_attention(
        *(x.transpose(0, 1) for x in inputs), attn_mask=ancestor_matrix(packed), scale=0.3,
        enable_gqa=True,
    ).transpose(0, 1)  # fmt: skip
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(wanted)
    for a, b in zip(*(torch.autograd.grad(x, inputs, upstream) for x in (found, wanted)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["kept", "again", "reentrant"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_that_attends_so_is_the_padded_model(layout, checkpointing):
    """A checkpointed layer meets its mask once more in the backward pass."""
    ids, mask, num_steps = _batch()
    packed = pack(ids, mask, num_steps)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    results = []
    for is_packed in (False, True):
        model = tiny_model("untied", attention="sdpa").train()
        if checkpointing is not None:
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        inputs = model.get_input_embeddings()(ids)
        arguments = {"inputs_embeds": inputs, "attention_mask": mask, "position_ids": positions}
        if is_packed:
            arguments = {
                "inputs_embeds": inputs.flatten(0, 1)[packed.source][None],
                "attention_mask": AncestorMask.of(packed, LAYOUTS[layout](packed), GROUPS),
                "position_ids": packed.positions[None],
            }
        hidden = model.base_model(**arguments, use_cache=False).last_hidden_state
        if not is_packed:
            hidden = hidden.flatten(0, 1)[packed.source][None]
        hidden.square().sum().backward()
        results.append(gradients(model) | {"hidden": hidden.detach()})
    # Tokens that sequences share are counted once here, and once there.
    assert_same(results[1], results[0], 1e-4)


def _saved_bytes(length):
    """What attention keeps for the backward pass of two completions of a length."""
    ids = torch.randint(3, 20, (1, 64)).expand(2, -1)
    ids = torch.cat([ids, torch.randint(3, 20, (2, length))], dim=1)
    packed = pack(ids, torch.ones_like(ids), length)
    inputs = [torch.randn(len(packed.source), h, SIZE, requires_grad=True) for h in (HEADS, 2, 2)]
    storages = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    layout = choose_layout(packed, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        output = layout(packed)(*inputs)
    return layout, output, sum(storages.values())


def test_long_completions_keep_memory_linear_in_tokens():
    saved = {}
    for length in (1024, 2048, 4096):
        layout, _, saved[length] = _saved_bytes(length)
        assert layout is along_paths
    for length in (1024, 2048):
        assert saved[2 * length] / saved[length] == pytest.approx(2, rel=0.1)


def test_short_completions_and_long_prompts_attend_in_blocks_on_a_cpu():
    assert _saved_bytes(64)[0] is in_blocks
    ids = torch.arange(3000)[None]
    packed = pack(ids, torch.ones_like(ids), 1200)
    assert choose_layout(packed, torch.float32) is in_blocks


def test_dropout_is_refused_where_the_kernel_has_none():
    packed = pack(*_batch())
    x = torch.randn(len(packed.source), 1, SIZE)
    with pytest.raises(ValueError, match="attention_dropout=0.1"):
        in_one_call(packed, varlen_reference)(x, x, x, dropout_p=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel runs on NVIDIA's GPUs only")
def test_the_kernel_is_what_its_documentation_says():
    ids, mask, num_steps = _batch()
    packed = pack(ids.cuda(), mask.cuda(), num_steps)
    shapes = [(len(packed.source), heads, 64) for heads in (HEADS, GROUPS, GROUPS)]
    inputs = [torch.randn(s, device="cuda", dtype=torch.bfloat16).requires_grad_() for s in shapes]
    assert choose_layout(packed, torch.bfloat16) is in_one_call
    results = []
    for layout in (in_one_call, in_blocks):
        output = layout(packed)(*inputs, scale=0.3)
        results.append([output, *torch.autograd.grad(output.float().square().sum(), inputs)])
    for found, wanted in zip(*results, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)
