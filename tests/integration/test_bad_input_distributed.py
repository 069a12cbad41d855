"""Bad input in two processes: both end with exit code 2 before a model is loaded, one says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers import run_processes, save_tiny_model, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.alone]

RUN = """
import io, json, os, sys
from contextlib import redirect_stderr
from pathlib import Path
import httpx, psutil
import torch.distributed as dist
from huggingface_hub.errors import GatedRepoError
from transformers.utils import hub
from softgrpo.cli.main import main
from softgrpo.runs import training

def gated(*arguments, **options):
    answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    raise GatedRepoError("403 Client Error", response=answer)

def load_weights(*arguments):
    raise AssertionError("a model is loaded")

hub.hf_hub_download = gated
training.load_weights = load_weights
found = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with redirect_stderr(io.StringIO()) as said:
        code = main(["train", *arguments])
    lines = [x for x in said.getvalue().splitlines() if x.startswith("softgrpo: ")]
    assert psutil.Process().children(recursive=True) == []
    found[name] = [code, lines]
Path(sys.argv[2], os.environ["RANK"]).write_text(json.dumps(found))
dist.destroy_process_group()
"""
WANTED = {
    "folder": "used: holds files that are no run's",
    "column": "no column 'query'; there are ['answer', 'question']",
    "group": "num_generations=3: a rollout of all processes must hold whole groups",
    "server": "no server answers at http://127.0.0.1:9",
    "model": "nowhere",
    "gated": "model 'org/gated': ",
    "problems": "training problems are fewer than the",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """By process: exit code and messages of every case."""
    folder = tmp_path_factory.mktemp("bad")
    model = save_tiny_model(folder / "tiny")
    path = write_recipe(folder, Path(model), ddp_timeout=30)
    (folder / "used").mkdir()
    (folder / "used" / "letter.txt").write_text("mine")
    cases = {
        "folder": ["--output_dir", str(folder / "used")],
        "column": ["--task_options", "{question_column: query}"],
        "group": ["--num_generations", "3"],
        "server": ["--engine", "vllm-server", "--vllm_server_base_url", "http://127.0.0.1:9"],
        "model": ["--model", str(folder / "nowhere")],
        "gated": ["--model", "org/gated"],
        "problems": ["--num_train_problems", "1"],
    }
    arguments = {name: [path, *more] for name, more in cases.items()}
    run_processes(RUN, json.dumps(arguments), str(folder), processes=2, timeout=100)
    return [json.loads((folder / str(rank)).read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", WANTED)
def test_both_end_and_one_says_why(name, told):
    assert [both[name][0] for both in told] == [2, 2]
    lines = [line for both in told for line in both[name][1]]
    assert len(lines) == 1
    assert WANTED[name] in lines[0]
