"""The paper's runs as recipes: every published value, and machines that hold them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from softgrpo.cli.main import main
from softgrpo.runs.recipe import read_recipe
from softgrpo.runs.recipe_files import listed, read_recipes
from tests.helpers import ROOT, SHARED

RUNS = [name for name in listed() if name.startswith("paper/")]
MODELS = {"r1-1.5b": 4, "llama-3b": 8, "r1-7b": 8}  # and the GPUs of the authors
PARAMETERS = {"r1-1.5b": 1_777_088_000, "llama-3b": 3_212_749_824, "r1-7b": 7_615_616_512}
SETTINGS = SHARED / "reference" / "authors_settings.md"

# A line of the authors' settings, the runs that it is about (all that begin or end so), and what it
# says in a recipe's fields.
FEW_TOKENS = {
    f"{part}{name}": value
    for part in ("", "answer_")
    for name, value in {"temperature": 1.0, "top_p": 0.95, "top_k": 5, "min_p": 0.0}.items()
}
PUBLISHED: list[tuple[str, str, dict[str, Any]]] = [
    (
        "- Data: DeepScaleR (40,315 problems), one epoch; prompts over 1,024 tokens left out; "
        "answers to 8,192 tokens; max_model_len 12,000.",
        "",
        {
            "task": "hub:agentica-org/DeepScaleR-Preview-Dataset", "num_train_problems": 40_315,
            "num_train_epochs": 1, "max_prompt_tokens": 1024, "max_completion_length": 8192,
            "vllm_max_model_length": 12_000,
            "task_options": {
                "question_column": "problem", "answer_column": "answer", "eval_share": 0
            },
        },
    ),
    (
        "- 64 prompts x 8 samples a rollout, mini-batches of 32 prompts (two updates a rollout), "
        "AdamW 1e-6, no warm-up named, entropy",
        "",
        {
            "generation_batch_size": 64 * 8, "num_generations": 8, "update_batch_size": 32 * 8,
            "learning_rate": 1e-6, "lr_scheduler_type": "constant", "warmup_steps": 0,
        },
    ),
    (
        "coefficient 0, KL loss .001 (low_var_kl), clip .2,",
        "",
        {"entropy_coef": 0.0, "beta": 0.001, "epsilon": 0.2},
    ),
    ("- Thinking: T 1, top-p .95, top-k 5, tau .1.", "soft", FEW_TOKENS | {"tau": 0.1}),
    (
        "**The answer after it: T 1, top-p .95, top-k 5 as well.** Dirichlet run: tau 1,",
        "dirichlet",
        FEW_TOKENS | {"tau": 1.0, "policy": "dirichlet"},
    ),
    ("noise factor 1; Gaussian run: tau 1.", "gaussian", FEW_TOKENS | {"tau": 1.0}),
    ("noise factor 1; Gaussian run: tau 1.", "dirichlet", {"alpha": 1.0}),
    (
        "- Discrete GRPO baseline: T 1, top-p 1, no top-k.",
        "-discrete",
        {
            "policy": "discrete", "temperature": 1.0, "top_p": 1.0, "top_k": None,
            "answer_temperature": 1.0, "answer_top_p": 1.0, "answer_top_k": None,
        },
    ),
]  # fmt: skip
GPUS = "| GPUs, micro-batch a GPU | 4, 2 | 8, 2 | 8, 1 |"
SAVES = "| save / test every | 200 / 40 | 80 / 20 | 200 / 20 |"  # in rollouts, of two updates each
for model, size, saves in zip(MODELS, (2, 2, 1), (400, 160, 400), strict=True):
    PUBLISHED.append((GPUS, f"paper/{model}-", {"per_device_train_batch_size": size}))
    PUBLISHED.append((SAVES, f"paper/{model}-", {"save_steps": saves}))
# What verl 0.4 does where the scripts say nothing, and the authors' code of the densities.
IN_CODE = {
    "weight_decay": 0.01, "max_grad_norm": 1.0, "adam_beta1": 0.9, "adam_beta2": 0.999,
    "delta": 3.0, "loss_type": "bnpo", "num_iterations": 1, "scale_rewards": "group",
    "old_logps": "trainer",
}  # fmt: skip
DENSITIES = {"soft": "gumbel", "dirichlet": "dirichlet", "gaussian": "gaussian"}
# What a machine is called, how it is planned, and the models it is for.
MACHINES = {
    "": (["--device", "h100", "--fsdp"], list(MODELS)),
    "on/1x80gb": (["--device", "a100-80"], list(MODELS)),
    "on/1x24gb": (["--device", "4090"], ["r1-1.5b", "llama-3b"]),
    "on/1x24gb-7b": (["--device", "4090"], ["r1-7b"]),
}


def resolved(*names: str) -> dict[str, Any]:
    return read_recipe(names, ["--use_cpu", "true", "--bf16", "false"])[2]


def model_of(name: str) -> str:
    return next(model for model in MODELS if name.startswith(f"paper/{model}-"))


def test_every_model_and_way_to_think_is_there():
    ways = {"soft", "discrete", "discrete-top5"}
    wanted = {f"paper/{model}-{way}" for model in MODELS for way in ways}
    assert set(RUNS) == wanted | {"paper/r1-1.5b-dirichlet", "paper/r1-1.5b-gaussian"}


@pytest.mark.parametrize("name", RUNS)
def test_published_values(name):
    found = resolved(name)
    said = [fields for _, runs, fields in PUBLISHED if name.endswith(runs) or name.startswith(runs)]
    assert len(said) >= 5
    for field, value in [pair for fields in (*said, IN_CODE) for pair in fields.items()]:
        assert found[field] == value, field
    way = name.rpartition("-")[2]
    assert (found["density"], found["reduction"]) == (DENSITIES.get(way, "token"), "masked_mean")
    assert found["output_dir"] == f"runs/{name.removeprefix('paper/')}"
    assert found["num_eval_problems"] == 0


def test_the_settings_are_those_of_the_authors():
    if not SETTINGS.exists():
        pytest.skip(f"the authors' settings not found: {SETTINGS}")
    text = " ".join(SETTINGS.read_text().split())
    for quote, _, _ in PUBLISHED:
        assert quote in text, quote


def test_discrete_grpo_on_the_same_support_differs_in_the_softness_alone():
    for model in MODELS:
        soft, discrete = (resolved(f"paper/{model}-{w}") for w in ("soft", "discrete-top5"))
        other = {name for name, value in soft.items() if value != discrete[name]}
        assert other == {"policy", "density", "output_dir"}


def test_no_value_is_said_twice_along_a_run():
    """A piece changes what its base says on purpose only: a machine, and the two baselines."""
    base = read_recipes(["paper/parts/base"])
    for name in RUNS:
        whole = read_recipes([name])
        assert {field: whole[field] for field in base} == base


def machines() -> Iterator[tuple[str, str]]:
    for name in RUNS:
        yield from (
            (name, machine) for machine, (_, of) in MACHINES.items() if model_of(name) in of
        )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "machine"), list(machines()))
def test_the_planner_finds_it_to_fit(name, machine, capsys):
    model, (device, _) = model_of(name), MACHINES[machine]
    gpus = 1 if machine else MODELS[model]
    words = [name, *filter(None, [machine]), "--prompt-tokens", "1024", "--gpus", str(gpus)]
    words += [*device, "--model", str(ROOT / "tests" / "published" / model), "--json"]
    assert main(["plan", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["shape"]["parameters"] == PARAMETERS[model]
    assert plan["fits"] and plan["peak"]["bytes"] <= plan["usable_bytes"]
    job = plan["job"]
    assert gpus * job["sequences"] == 512
    assert gpus * job["micro_batch"] * job["micro_batches"] == 256
    assert job["updates"] == 2 * job["rollouts"] == (100 if "24gb" in machine else 1258)
