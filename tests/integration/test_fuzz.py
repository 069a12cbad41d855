"""Files of ours, mutated at random: they are read, or refused by a message, and nothing is lost.

Seeded: a case that fails is found again. SOFTGRPO_FUZZ=N runs N times as many, with other seeds.
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from softgrpo.cli.main import main
from softgrpo.evaluation import RecordFile, read_records
from softgrpo.rollout import Request
from softgrpo.rollout.vllm_client import Client
from softgrpo.rollout.vllm_plugin.packed import KEY, PackedRecord
from softgrpo.rollout.vllm_plugin.wire import encode_steps
from softgrpo.runs.directory import RunDirectory
from softgrpo.runs.recipe import read_recipe
from softgrpo.runs.style import read_style
from softgrpo.tasks import BENCHMARKS, PromptFormat, load_benchmark, load_problems, to_dataset
from softgrpo.thinking import SoftTrace, ThinkingConfig, draw_step, from_tokens
from tests.unit.evaluation.test_records import _record

pytestmark = pytest.mark.slow

TIMES = int(os.environ.get("SOFTGRPO_FUZZ", "1"))

RECIPE = {
    "model": "m", "task": "t.jsonl", "use_cpu": True, "bf16": False, "tau": 0.1, "top_k": 5,
    "policy": "gumbel", "think_end": ["</t>"], "learning_rate": 1e-5, "max_steps": 3, "seed": 3,
    "num_generations": 4, "per_device_train_batch_size": 4, "rewards": ["numeric"],
    "lora": {"r": 2}, "gradient_checkpointing_kwargs": {"use_reentrant": False}, "deepspeed": None,
    "lr_scheduler_kwargs": {}, "problem_seed": 1, "eval_threshold": 0.5, "num_eval_problems": 2,
    "task_options": {"a": [1]}, "examples": [["q", "a"]], "report_to": "none", "chat": False,
}  # fmt: skip
THINKING = ThinkingConfig(top_k=3, top_p=1.0, think_end=("#",))
REQUEST = Request((1,), THINKING, 4)
VALUES = [
    None, "", "x", "0", -1, 0, 1, 2**63, 10**400, 1e308, float("nan"), float("inf"), True, [], {},
    [None], [[]], {"a": {}}, "\x00", "\ud800", "null", "1e999", ["x", 1], "a" * 10_000,
    "!!python/name:os",
]  # fmt: skip


def _rngs(count: int, seed: int) -> list[random.Random]:
    return [random.Random(f"{seed} {i}") for i in range(count * TIMES)]


def _damaged(rng: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, doubled, zeroed, or something else altogether."""
    kind, at = rng.randrange(7), rng.randrange(len(content) + 1)
    piece = rng.choice(
        [b"\x00", b"\n", b"{", b"[" * 5000, b"\xff", b'"', b"}", b"NaN", b"1" * 5000]
    )
    match kind:
        case 0:
            return content[:at]
        case 1:
            return content[:at] + piece + content[at:]
        case 2:
            return content[:at] + piece + content[at + len(piece) :]
        case 3:
            return content[at:]
        case 4:
            return content[:at] + content[rng.randrange(len(content)) :]
        case 5:
            return content[:at] + bytes(len(content) - at)
        case _:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(200)))


def _changed(rng: random.Random, values: dict) -> dict:
    """Some values replaced, dropped or renamed."""
    values = dict(values)
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(list(values) or ["a"])
        match rng.randrange(4):
            case 0:
                values.pop(name, None)
            case 1:
                values[rng.choice(["taw", "", 3, None, "output_dir"])] = values.get(name)
            case _:
                values[name] = rng.choice(VALUES)
    return values


def test_recipes(tmp_path):
    path = tmp_path / "r.yaml"
    for number, rng in enumerate(_rngs(300, 1)):
        content = yaml.safe_dump(_changed(rng, RECIPE)).encode()
        if rng.random() < 0.3:
            content = _damaged(rng, content)
        path.write_bytes(content)
        try:
            read_recipe(str(path), [])
        except ValueError as error:
            assert str(error), number
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_records(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    with RecordFile(path, {"task": "t", "num_samples": 2}) as file:
        for i in range(4):
            file.append(_record(f"p/{i // 2}", i % 2, sequence=i))
    whole = path.read_bytes()
    for number, rng in enumerate(_rngs(1000, 2)):
        if rng.random() < 0.5:
            content = _damaged(rng, whole)
        else:
            lines = whole.splitlines()
            at = rng.randrange(len(lines))
            value = json.loads(lines[at])
            if at == 0 and rng.random() < 0.5:
                value["settings"] = _changed(rng, value["settings"])
            else:
                value = _changed(rng, value)
            lines[at] = json.dumps(value).encode()
            content = b"\n".join(lines) + b"\n" * rng.randrange(2)
        path.write_bytes(content)
        try:
            read_records(path)
        except ValueError as error:
            assert str(error), number
        assert main(["compare", str(path)]) in (0, 2), number
        assert path.read_bytes() == content
        try:
            RecordFile(path, {"task": "t", "num_samples": 2}).close()
        except ValueError:
            assert path.read_bytes() == content
        else:  # what was put aside is beside it
            kept = path.read_bytes()
            aside = [p.read_bytes() for p in tmp_path.glob("a.jsonl.damaged*")]
            assert kept + b"".join(aside) == content or b"\n" not in content, number
        for p in tmp_path.glob("a.jsonl.damaged*"):
            p.unlink()
    capsys.readouterr()


def test_traces(tmp_path):
    path = tmp_path / "t.safetensors"
    from_tokens([[5, 6, 7], [8]], ThinkingConfig()).save(path)
    whole = path.read_bytes()
    for number, rng in enumerate(_rngs(600, 3)):
        path.write_bytes(_damaged(rng, whole))
        try:
            trace = SoftTrace.load(path)
        except ValueError as error:
            assert str(error), number
        else:
            assert trace.mask.shape == trace.ids.shape[:2] and torch.is_tensor(trace.scores)
            assert len(trace.tokens) == len(trace)


ROWS = {
    "own": {"question": "1 + 1?", "answer": "2", "level": 3, "tags": ["a", {"b": None}]},
    "chat": {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
             "answer": 2, "id": "x"},
    "gsm8k": {"question": "q", "answer": "#### 5"},
    "math500": {"problem": "q", "answer": "5", "id": "x"},
    "gpqa_diamond": {"question": "q", "answer": "a", "choices": ["a", "b"]},
    "humaneval": {"prompt": "def f():", "canonical_solution": "1", "test": "t", "entry_point": "f"},
    "mbpp": {"prompt": "f", "code": "x", "test_list": ["assert f"], "test_imports": []},
}  # fmt: skip


def test_problems(tmp_path):
    for number, rng in enumerate(_rngs(500, 5)):
        name = rng.choice(list(ROWS))
        rows = [ROWS[name], _changed(rng, ROWS[name])]
        content = "".join(json.dumps(row, skipkeys=True) + "\n" for row in rows).encode()
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(_damaged(rng, content) if rng.random() < 0.3 else content)
        options = {"eval_source": str(path)}
        if rng.random() < 0.2:
            options = _changed(rng, options | {"question_column": "question"})
        try:
            if name in BENCHMARKS:
                problems = load_benchmark(name, data=str(tmp_path))
            else:
                problems = load_problems(
                    str(path), split="eval", num_problems=None, seed=0, options=options
                )
            rows = to_dataset(problems, PromptFormat(), conversational=rng.random() < 0.5)
        except (ValueError, OSError) as error:
            assert str(error) and getattr(error, "filename", "its own words"), number
        else:
            assert len(rows) == len(problems) == len({p.id for p in problems}), number


def _answers() -> dict[str, bytes]:
    """What a server answers: its list of models, a stream of one step, that step packed."""
    torch.manual_seed(0)
    step = draw_step(torch.randn(1, 20), THINKING)
    ids, values = encode_steps(step, torch.tensor([True]), [None], None, 20)
    pairs = zip(ids[0].tolist(), values[0].tolist(), strict=True)
    top = {f"token_id:{token}": value for token, value in pairs}
    event = {"choices": [{"logprobs": {"top_logprobs": [top]}}]}
    packed = PackedRecord(REQUEST)
    packed.append(*(torch.cat([c[0, :1], c[0]]).numpy() for c in (ids, values)))
    whole = {"choices": [{"finish_reason": "stop"}], "kv_transfer_params": {KEY: packed.text()}}
    return {
        "models": json.dumps({"data": [{"id": "m"}]}).encode(),
        "stream": f"data: {json.dumps(event)}\n\ndata: [DONE]\n".encode(),
        "packed": json.dumps(whole).encode(),
    }


def test_servers(monkeypatch):
    whole = _answers()
    sent = dict(whole)
    kind = "models"
    monkeypatch.setattr(
        Client,
        "_open",
        lambda self, path, body=None: io.BytesIO(sent["models" if body is None else kind]),
    )
    for number, rng in enumerate(_rngs(600, 6)):
        kind, damaged = rng.choice(["stream", "packed"]), rng.choice(list(whole))
        sent.update(whole)
        if damaged != "stream" and rng.random() < 0.5:
            sent[damaged] = json.dumps(_changed(rng, json.loads(whole[damaged]))).encode()
        else:
            sent[damaged] = _damaged(rng, whole[damaged])
        try:
            client = Client("http://x")
            if kind == "stream":
                steps = list(client.stream([1], THINKING, max_new_tokens=4))
                assert steps and all(0 <= token < 2**31 for step in steps for token in step.ids)
                assert all(math.isfinite(sum(step.weights)) for step in steps), number
            else:
                record, _ = client.complete(REQUEST)
                assert len(record.trace.tokens[0]) > 0, number
        except ValueError as error:
            assert str(error), number


def test_run_folders(tmp_path):
    names = ["config.yaml", "versions.json", "metrics.jsonl", "model/w",
             "evaluation/before-soft.jsonl", "checkpoint-3/w", "samples/step-1.jsonl"]  # fmt: skip
    theirs = [
        "notes.txt",
        "README.md",
        "model.py",
        "checkpoint-best/w",
        "evaluation/mine",
        "samples/mine",
    ]
    for number, rng in enumerate(_rngs(200, 4)):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        directory = RunDirectory(folder)
        directory.write_config(RECIPE, "softgrpo train r.yaml", 3)
        for name in rng.sample(names[2:], 4) + theirs:
            (folder / name).parent.mkdir(exist_ok=True, parents=True)
            (folder / name).write_text("x")
        for name in rng.sample(names[:2], rng.randint(0, 2)):
            (folder / name).write_bytes(_damaged(rng, (folder / name).read_bytes()))
        before = _content(folder)
        try:
            directory.check(resume=False, overwrite=True)
        except ValueError:
            assert _content(folder) == before, number
            continue
        assert _content(folder) == before, number
        directory.clear()
        left = {str(path.relative_to(folder)) for path in _content(folder)}
        assert left == set(theirs), number


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_configs_of_runs(tmp_path):
    """A model of a run is thought with as its config.yaml says, or not at all."""
    values = RECIPE | {"max_completion_length": 7, "chat_template_kwargs": {"a": 1}}
    for number, rng in enumerate(_rngs(300, 7)):
        content = yaml.safe_dump(_changed(rng, values)).encode()
        (tmp_path / "config.yaml").write_bytes(
            _damaged(rng, content) if rng.random() < 0.3 else content
        )
        try:
            style = read_style(str(tmp_path), {})
        except ValueError as error:
            assert str(error), number
        else:
            assert style.run is not None and isinstance(style.max_new_tokens, (int, type(None)))
