"""The base model: its tokenizer, a run of thirty steps, and the model that ships."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from softgrpo.lab import BASE_MODEL
from softgrpo.lab.base import (
    NUM_COMPLETION_TOKENS,
    NUM_PROMPT_TOKENS,
    make_base,
    pass_at_1,
)
from softgrpo.lab.chains import THINK_END, make_problems, stated_answer


@pytest.fixture(scope="module")
def shipped():
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(BASE_MODEL)


@pytest.fixture(scope="module")
def micro_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("lab") / "base"
    return folder, make_base(folder, steps=30, batch_size=32)


def test_every_word_is_one_token_and_comes_back(shipped):
    _, tokenizer = shipped
    for problem in make_problems(50, seed=0, split="heldout"):
        for text in (problem.prompt, problem.completion):
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == text
        ended = tokenizer(f"{problem.completion} {tokenizer.eos_token}")["input_ids"]
        assert len(ended) == NUM_COMPLETION_TOKENS
        assert len(tokenizer(problem.prompt)["input_ids"]) == NUM_PROMPT_TOKENS


def test_the_marker_survives_skipping_special_tokens(shipped):
    _, tokenizer = shipped
    ids = tokenizer(f"+ 4 1 {THINK_END} 1 {tokenizer.eos_token}")["input_ids"]
    assert ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert text == f"+ 4 1 {THINK_END} 1"
    assert stated_answer(text) == "1"


def test_a_conversation_is_its_text(shipped):
    _, tokenizer = shipped
    prompt = make_problems(1, seed=0)[0].prompt
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == prompt


def test_shipped_model_loads_as_float32_and_is_small(shipped):
    model, _ = shipped
    assert model.dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(BASE_MODEL).dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert sum(file.stat().st_size for file in BASE_MODEL.iterdir()) < 1.5e6


def test_shipped_model_has_something_to_learn(shipped):
    model, tokenizer = shipped
    problems = make_problems(100, seed=0, split="heldout")
    assert 0.25 < pass_at_1(model, tokenizer, problems, num_samples=4) < 0.5
    assert 0.25 < pass_at_1(model, tokenizer, problems) < 0.55


def test_a_micro_run_lowers_the_loss(micro_run: tuple[Path, list[float]]):
    _, losses = micro_run
    assert len(losses) == 30
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_makes_the_same_base(micro_run: tuple[Path, list[float]], tmp_path: Path):
    folder, losses = micro_run
    random_state = torch.get_rng_state()
    assert make_base(tmp_path, steps=30, batch_size=32) == losses
    assert (tmp_path / "model.safetensors").read_bytes() == (
        folder / "model.safetensors"
    ).read_bytes()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_folder_in_use_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("chapter one")
    with pytest.raises(ValueError, match="not empty"):
        make_base(tmp_path)
    with pytest.raises(NotADirectoryError):
        make_base(tmp_path / "thesis.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
