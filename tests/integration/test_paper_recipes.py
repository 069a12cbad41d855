"""The paper's recipes as they ship, two updates each: a tiny model in the real one's place.

Its architecture and tokenizer are like the real one's in what matters: the head tied or not, the
chat template with an open <think>, the marker one token that is not special.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from softgrpo.checkpoints import complete_checkpoints
from softgrpo.cli.main import main
from softgrpo.runs.recipe_files import listed
from softgrpo.thinking import SoftTrace
from tests.helpers import ROOT

pytestmark = pytest.mark.slow

RUNS = [[name] for name in listed() if name.startswith("paper/")]
RUNS += [["paper/r1-1.5b-soft", "on/1x80gb"], ["paper/llama-3b-discrete", "on/1x24gb"]]
RUNS += [["paper/r1-7b-soft", "on/1x24gb-7b"]]
R1 = (
    "{{ bos_token }}{% for m in messages %}{{ '<｜User｜>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
TINY = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2,
}  # fmt: skip
# Lengths, numbers and the device; everything else is the recipe's.
SHORT = {
    "max_steps": 2, "num_generations": 4, "generation_batch_size": 16, "update_batch_size": 8,
    "max_completion_length": 10, "num_train_problems": "null", "save_steps": 2, "use_cpu": "true",
    "bf16": "false", "num_samples_kept": 1, "sample_steps": 2,
}  # fmt: skip


def save_like(name: str, folder: Path) -> str:
    """A tiny model with the config of a published one but for its sizes, and such a tokenizer."""
    is_r1 = name.startswith("r1")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if is_r1:
        core.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<｜begin▁of▁sentence｜>" if is_r1 else "<|begin_of_text|>",
        eos_token="<｜end▁of▁sentence｜>" if is_r1 else "<|eot_id|>",
        chat_template=R1 if is_r1 else LLAMA,
        **({"pad_token": "<｜end▁of▁sentence｜>"} if is_r1 else {}),
    )
    tokenizer.save_pretrained(folder)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    published = AutoConfig.from_pretrained(ROOT / "tests" / "published" / name).to_dict()
    published.pop("layer_types", None)
    values = published | TINY | ids | {"vocab_size": len(tokenizer)}
    config = AutoConfig.for_model(**values)
    model = AutoModelForCausalLM.from_config(config)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (not is_r1)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    names = ("r1-1.5b", "llama-3b", "r1-7b")
    return {name: save_like(name, tmp_path_factory.mktemp(name)) for name in names}


@pytest.fixture
def problems(tmp_path, monkeypatch) -> str:
    """Rows as DeepScaleR has them, one of them too long."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    rows = [{"problem": f"{n} + 1?", "answer": str(n + 1), "solution": "so"} for n in range(8)]
    rows.append({"problem": "long " * 300, "answer": "1", "solution": ""})
    Path("deepscaler.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "deepscaler.jsonl"


@pytest.mark.parametrize("names", RUNS, ids="+".join)
def test_two_updates(names, places, problems, capsys):
    model = next(model for model in places if f"/{model}-" in names[0])
    words = [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    if model != "llama-3b":
        words += ["--max_think_tokens", "5"]
    words += ["--model", places[model], "--task", problems, "--output_dir", "run"]
    assert main(["train", *names, *words]) == 0
    assert "1 of 9 problems left out: prompts over 1,024 tokens" in capsys.readouterr().out

    lines = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "learning_rate" in line]
    assert [line["step"] for line in logs] == [1, 2]
    assert {line["learning_rate"] for line in logs} == {1e-5 if len(names) > 1 else 1e-6}
    way = names[0].partition(f"{model}-")[2]
    trace = SoftTrace.load(Path("run", "samples", "step-2.safetensors"))
    assert bool(trace.is_soft.any()) == (way in ("soft", "dirichlet", "gaussian"))
    # The answer's support is the thought's: five tokens, or all.
    values = yaml.safe_load(Path("run", "config.yaml").read_text())
    assert values["answer_top_k"] == values["top_k"] == (None if way == "discrete" else 5)
    assert complete_checkpoints(Path("run"))[0]
