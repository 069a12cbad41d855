"""How many steps a run has, runs that would have none, and weights that are no numbers."""

from __future__ import annotations

import pytest

from softgrpo.training.engines import check_servers
from tests.helpers import TRAIN_PROMPTS, make_trainer, run_processes, train_config

# Settings, and the prompts that one rollout takes with four generations of each.
ROLLOUTS = [
    ({}, 2),
    ({"gradient_accumulation_steps": 3}, 6),
    ({"gradient_accumulation_steps": 3, "steps_per_generation": 2}, 4),
    ({"num_iterations": 2}, 2),
    ({"generation_batch_size": 32}, 8),
    ({"generation_batch_size": 32, "update_batch_size": 16}, 8),
]


@pytest.mark.parametrize(("settings", "needed"), ROLLOUTS, ids=str)
def test_fewer_prompts_than_a_rollout_takes_are_refused_with_the_numbers(
    settings, needed, tmp_path
):
    args = train_config(tmp_path, **settings)
    assert args.num_steps(needed) == 1
    with pytest.raises(ValueError, match=f"{needed - 1} training problems .* {needed} prompts"):
        args.num_steps(needed - 1)


@pytest.mark.parametrize(
    ("settings", "size"),
    [({}, 8), ({"gradient_accumulation_steps": 2}, 16), ({"generation_batch_size": 24}, 24)],
    ids=str,
)
def test_a_rollout_of_no_whole_groups_is_refused_with_what_makes_its_size(settings, size, tmp_path):
    said = f"num_generations=5: .* it has {size} .*per_device_train_batch_size=8 x 1 processes"
    with pytest.raises(ValueError, match=said):
        train_config(tmp_path, num_generations=5, **settings)


def test_the_trainer_refuses_them_too(tmp_path):
    args = train_config(tmp_path, generation_batch_size=4 * (len(TRAIN_PROMPTS) + 1), max_steps=2,
                        per_device_train_batch_size=4)  # fmt: skip
    with pytest.raises(ValueError, match="8 training problems are fewer than the 9 prompts"):
        make_trainer("tied", args).train()


@pytest.mark.parametrize(
    ("settings", "accumulation", "of_a_rollout"),
    [
        ({}, 3, 24),
        ({"gradient_accumulation_steps": 3}, 3, 24),
        ({"generation_batch_size": 48}, 3, 48),
        ({"steps_per_generation": 1}, 3, 8),
        ({"per_device_train_batch_size": 4}, 6, 24),
    ],
)
def test_an_update_has_as_many_completions_as_it_says(
    settings, accumulation, of_a_rollout, tmp_path
):
    args = train_config(tmp_path, update_batch_size=24, **settings)
    assert args.gradient_accumulation_steps == args.accumulation_steps(1) == accumulation
    assert args.generation_batch_size == of_a_rollout


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"update_batch_size": 20}, r"generation_batch_size \(20\) must be divisible"),
        (
            {"update_batch_size": 20, "generation_batch_size": 40},
            r"update_batch_size=20: must be a multiple of 8 \(per_device_train_batch_size=8 in 1 ",
        ),
        (
            {"update_batch_size": 24, "gradient_accumulation_steps": 2},
            "gradient_accumulation_steps=2: update_batch_size=24 makes 3 of it; leave one of them",
        ),
        ({"update_batch_size": 0}, "update_batch_size=0: must be >= 1"),
    ],
)
def test_batches_that_contradict_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train_config(tmp_path, **settings)


@pytest.mark.parametrize("settings", [settings for settings, _ in ROLLOUTS], ids=str)
@pytest.mark.parametrize("length", [{"max_steps": 3}, {"num_train_epochs": 1.5, "max_steps": -1}])
def test_steps_are_those_that_the_trainer_makes(settings, length, tmp_path):
    args = train_config(tmp_path, **settings | length)
    trainer = make_trainer("tied", args)
    *_, planned = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    assert args.num_steps(len(TRAIN_PROMPTS)) == planned


@pytest.mark.parametrize(
    "settings", [{"max_steps": 0}, {"max_steps": -2}, {"max_steps": -1, "num_train_epochs": 0}]
)
def test_a_run_of_no_steps_is_refused(settings, tmp_path):
    with pytest.raises(ValueError, match=r"^(max_steps|num_train_epochs)=(0|-2).*: must be"):
        train_config(tmp_path, **settings)


@pytest.mark.parametrize("weight", [float("inf"), float("nan")])
def test_a_weight_that_is_not_finite_is_refused(weight, tmp_path):
    with pytest.raises(ValueError, match="reward_weights"):
        train_config(tmp_path, reward_weights=[1.0, weight])


@pytest.mark.slow
@pytest.mark.alone
def test_it_is_an_update_of_all_processes(tmp_path):
    script = (
        "import sys\nfrom tests.helpers import train_config\n"
        "args = train_config(sys.argv[1], update_batch_size=32, generation_batch_size=64)\n"
        "print(args.gradient_accumulation_steps, args.steps_per_generation, flush=True)\n"
        "args.distributed_state.destroy_process_group()"
    )
    for processes, wanted in ((1, "4 8"), (2, "2 4")):
        output = run_processes(script, str(tmp_path), processes=processes, timeout=300)
        assert output.splitlines()[-1] == wanted


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("http://a:1", ["http://a:1"]),
        ("http://a:1,http://b:2", ["http://a:1", "http://b:2"]),
        (["http://a:1", "http://b:2, http://c:3"], ["http://a:1", "http://b:2", "http://c:3"]),
        (None, None),
    ],
)
def test_servers_are_a_list_however_they_are_written(given, found, tmp_path):
    assert train_config(tmp_path, vllm_server_base_url=given).vllm_server_base_url == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (5, "vllm_server_base_url=5: must be"),
        (None, "vllm_server_base_url: must be the address of softgrpo serve"),
        (" , ", "vllm_server_base_url: must be the address of softgrpo serve"),
    ],
)
def test_servers_of_no_use_are_refused(given, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        train_config(tmp_path, engine="vllm-server", vllm_server_base_url=given)


def test_a_vllm_over_several_devices_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vllm_tensor_parallel_size=2: not supported by softgrpo"):
        train_config(tmp_path, vllm_tensor_parallel_size=2)


def test_more_servers_than_processes_are_refused(tmp_path):
    urls = ["http://a:1", "http://b:2"]
    args = train_config(tmp_path, engine="vllm-server", vllm_server_base_url=urls)
    with pytest.raises(ValueError, match="more servers than processes, of which there are 1"):
        check_servers(args, None)
