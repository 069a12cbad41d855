"""Command line over YAML over defaults; what is not a field, or not of its type, is refused."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from softgrpo.runs.recipe import RunConfig, read_recipe
from softgrpo.training import SofTGRPOConfig

_LEAST = {"model": "m", "task": "t.jsonl", "use_cpu": True, "bf16": False}


def _read(tmp_path, arguments=(), **values):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(_LEAST | values))
    return read_recipe(str(path), list(arguments))


def test_command_line_over_yaml_over_defaults(tmp_path):
    run, training, _ = _read(tmp_path, ["--tau", "0.3"], tau=0.2, learning_rate="1e-5", chat=False)
    assert (training.tau, training.learning_rate, training.top_k) == (0.3, 1e-5, 5)
    assert (run.chat, run.eval_samples) == (False, 8)


def test_structured_fields_from_both_sides(tmp_path):
    options = ["--task_options", "{min_terms: 2}", "--rewards", "exact", "format"]
    run, training, _ = _read(tmp_path, options, think_end="####", examples=[["q", "a"]])
    assert run.task_options == {"min_terms": 2}
    assert run.rewards == ["exact", "format"]
    assert run.examples == [["q", "a"]]
    assert training.thinking.think_end == ("####",)


def test_resolved_values_are_a_recipe_for_the_same_run(tmp_path):
    values = {"steps_per_generation": 2, "per_device_train_batch_size": 8, "lora": {"r": 2}}
    run, training, resolved = _read(tmp_path, ["--report_to", "tensorboard"], **values)
    again = tmp_path / "config.yaml"
    again.write_text(yaml.safe_dump(resolved))
    run_again, training_again, _ = read_recipe(str(again), [])
    assert run_again == run
    assert training_again.to_dict() == training.to_dict()


@pytest.mark.parametrize(
    ("arguments", "density"),
    [
        ([], "argmax"),
        (["--policy", "gumbel"], "argmax"),
        (["--policy", "discrete"], "token"),
        (["--policy=dirichlet"], "dirichlet"),
        (["--policy", "gaussian", "--density", "gaussian"], "gaussian"),
    ],
)
@pytest.mark.parametrize("values", [{}, {"policy": "gumbel"}], ids=["default", "named"])
def test_another_policy_trains_by_its_own_density(tmp_path, arguments, density, values):
    _, training, resolved = _read(tmp_path, arguments, density="argmax", **values)
    assert training.density == density
    assert _read(tmp_path, **resolved)[1].density == density


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        (["--policy", "discrete"], {"policy": "discrete"}),
        (["--tau", "0.3"], {"tau": 0.3}),
        (["--learning_rate", "5e-6", "--seed", "7"], {"learning_rate": 5e-6, "seed": 7}),
        (["--rewards", "exact", "format"], {"rewards": ("exact", "format")}),
        (["--chat", "false", "--output_dir", "a/b"], {"chat": False, "output_dir": Path("a/b")}),
        (["--chat_template_kwargs", '{"a": 1}'], {"chat_template_kwargs": {"a": 1}}),
    ],
)
def test_python_s_values_do_what_the_command_line_s_text_does(tmp_path, arguments, fields):
    _, training, resolved = _read(tmp_path, arguments, density="argmax")
    values = _LEAST | {"density": "argmax", "output_dir": "runs/recipe"}
    for recipe in (tmp_path / "recipe.yaml", values):
        _, found, again = read_recipe(recipe, fields)
        assert again == resolved and found.density == training.density


def test_none_is_a_value_of_python_s_where_a_field_can_have_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(_LEAST | {"max_think_tokens": 5}))
    assert read_recipe(path, {"max_think_tokens": None})[1].max_think_tokens is None
    with pytest.raises(ValueError, match="tau: must have a value"):
        read_recipe(path, {"tau": None})


def test_policy_and_density_that_contradict_are_refused(tmp_path):
    with pytest.raises(ValueError, match="density='argmax': policy 'discrete'"):
        _read(tmp_path, ["--policy", "discrete", "--density", "argmax"])


@pytest.mark.parametrize(
    ("arguments", "values", "is_on", "is_auto"),
    [
        ([], {}, True, True),
        ([], {"gradient_checkpointing": True}, True, False),
        ([], {"gradient_checkpointing": False}, False, False),
        ([], {"gradient_checkpointing": "auto"}, True, True),
        (["--gradient_checkpointing", "auto"], {"gradient_checkpointing": False}, True, True),
        (["--gradient_checkpointing", "false"], {}, False, False),
        (["--gradient-checkpointing", "yes"], {}, True, False),
        (["--gradient_checkpointing"], {"gradient_checkpointing": False}, True, False),
    ],
)
def test_checkpointing_is_on_off_or_auto_and_then_a_bool(
    arguments, values, is_on, is_auto, tmp_path
):
    _, training, resolved = _read(tmp_path, arguments, **values)
    again = _read(tmp_path, **resolved)[1]
    for config in (training, again):
        assert config.gradient_checkpointing is is_on
        assert config.is_checkpointing_auto is is_auto
        assert config.to_dict()["gradient_checkpointing"] is is_on


def test_processes_wait_longer_than_one_may_evaluate_alone(tmp_path):
    """Waves of 128 sequences of 32,768 tokens, at 25 ms a step."""
    run, training, _ = _read(tmp_path)
    sequences = run.num_eval_problems * run.eval_samples * len(run.eval_decodings)
    seconds = sequences / training.rollout_batch_size * 32768 * 0.025
    assert training.ddp_timeout_delta.total_seconds() > 1.5 * seconds
    assert _read(tmp_path, ddp_timeout=30)[1].ddp_timeout_delta.total_seconds() == 30


def test_output_directory_has_the_name_of_the_recipe(tmp_path):
    assert _read(tmp_path)[1].output_dir == "runs/recipe"


def test_no_field_has_two_owners():
    names = {f.name for f in fields(RunConfig)} & {f.name for f in fields(SofTGRPOConfig)}
    assert not names


@pytest.mark.parametrize(
    ("arguments", "values", "said"),
    [
        ([], {"learning_rat": 1}, "'learning_rat'; did you mean learning_rate?"),
        (["--num-train-problem", "3"], {}, "did you mean num_train_problems?"),
        ([], {"env": {"LD_PRELOAD": "x"}}, "unknown field 'env'"),
        (["stray"], {}, "'stray'"),
        ([], {"max_steps": 1.5}, "max_steps"),
        ([], {"max_steps": [3]}, "max_steps"),
        ([], {"noise_clamp": ["low", "high"]}, "noise_clamp"),
        ([], {"model": None}, "model"),
        ([], {"eval_samples": 0}, "eval_samples"),
        ([], {"eval_decodings": ["loud"]}, "eval_decodings"),
        ([], {"task_options": "[1]"}, "task_options"),
        ([], {"examples": ["q"]}, "examples"),
        ([], {"rewards": []}, "rewards"),
        (["--policy", "loud"], {}, "policy"),
        (["--gradient_checkpointing", "perhaps"], {}, "gradient_checkpointing='perhaps'"),
        ([], {"gradient_checkpointing": None}, "gradient_checkpointing: must have a value"),
        ([], {"gradient_checkpointing": [True]}, "gradient_checkpointing=[True]"),
        (
            [],
            {"gradient_checkpointing_kwargs": "x"},
            "gradient_checkpointing_kwargs='x': must be a",
        ),
        (["--chat_template_kwargs", "[1]"], {}, "chat_template_kwargs='[1]': must be a mapping"),
        ([], {"lr_scheduler_kwargs": [1]}, "lr_scheduler_kwargs=[1]: must be a mapping"),
        ([], {"deepspeed": "x"}, "deepspeed='x': must be a mapping"),
        ([], {"accelerator_config": "x"}, "accelerator_config='x': must be a mapping"),
        ([], {"accelerator_config": {"x": 1}}, "unexpected keyword argument 'x'"),
        ([], {"log_level": "loud"}, "log_level='loud': choose from"),
        ([], {"seed": -1}, "seed=-1: must be in [0, 4294967295]"),
        (["--seed", str(2**40)], {}, "seed=1099511627776: must be in"),
        ([], {"data_seed": -1}, "data_seed=-1: must be in"),
        ([], {"problem_seed": -1}, "problem_seed=-1: must be in"),
        ([], {"learning_rate": float("nan")}, "learning_rate=nan: must be a finite number"),
        (["--learning_rate", "inf"], {}, "learning_rate=inf: must be a finite number"),
        ([], {"learning_rate": -1e-5}, "learning_rate=-1e-05: must be >= 0"),
        ([], {"eval_threshold": float("inf")}, "eval_threshold=inf: must be a finite number"),
        ([], {"num_train_problems": 0}, "num_train_problems=0: must be >= 1"),
        ([], {"examples": [["q", 1]]}, "examples=[['q', 1]]: must be a list"),
        ([], {"lora": {1: 2}}, "lora={1: 2}: must be a mapping {name: value}"),
        ([], {"tau": 10**400}, "tau"),
    ],
)
def test_refused_by_name(tmp_path, arguments, values, said):
    with pytest.raises(ValueError) as error:
        _read(tmp_path, arguments, **values)
    assert said in str(error.value)


def test_mappings_come_as_yaml_as_json_and_as_a_file(tmp_path):
    options = ["--gradient_checkpointing_kwargs", '{"use_reentrant": false}']
    file = tmp_path / "accelerator.json"
    file.write_text('{"split_batches": false}')
    values = {"lr_scheduler_kwargs": {"a": 1}, "accelerator_config": str(file)}
    _, training, resolved = _read(tmp_path, options, **values)
    assert training.gradient_checkpointing_kwargs == {"use_reentrant": False}
    assert resolved["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    assert training.lr_scheduler_kwargs == {"a": 1}
    assert training.accelerator_config.split_batches is False
    assert resolved["accelerator_config"] == str(file)


@pytest.mark.parametrize("name", ["num_eval_problems", "problem_seed", "eval_threshold", "chat"])
@pytest.mark.parametrize("value", [{"a": 1}, [1], "x", None])
def test_a_run_of_values_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}=.*: must be (a|true)"):
        RunConfig(model="m", task="t", **{name: value})


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [1", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="recipe.yaml"):
        read_recipe(str(path), [])
