"""Command line over YAML over defaults; what is not a field, or not of its type, is refused."""

from dataclasses import fields

import pytest
import yaml

from softgrpo.cli.recipe import RunConfig, read_recipe
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
    ],
)
def test_refused_by_name(tmp_path, arguments, values, said):
    with pytest.raises(ValueError) as error:
        _read(tmp_path, arguments, **values)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- list\n", "a: [1", "!!python/object/apply:os.getcwd []"])
def test_a_file_that_is_no_recipe(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="recipe.yaml"):
        read_recipe(str(path), [])
