"""The FSDP2 recipe as far as accelerate reads it without a GPU: file, launcher, plugin, layers."""

from __future__ import annotations

import os

import pytest
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from tests.helpers import ROOT, tiny_model

RECIPE = str(ROOT / "recipes" / "accelerate" / "fsdp2.yaml")


@pytest.fixture
def plugin(monkeypatch):
    """The plugin that a process of ``accelerate launch`` makes from its environment."""
    command = ["--config_file", RECIPE, "-m", "softgrpo.cli.main", "train", "recipe.yaml"]
    arguments, *_ = _validate_launch_command(launch_command_parser().parse_args(command))
    assert arguments.use_fsdp and arguments.num_processes == 8
    assert arguments.training_script == "softgrpo.cli.main" and arguments.module
    environment = prepare_multi_gpu_env(arguments)
    for name in [name for name in os.environ if name.startswith("FSDP_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("FSDP_"):
            monkeypatch.setenv(name, value)
    assert environment["ACCELERATE_MIXED_PRECISION"] == "bf16"
    return FullyShardedDataParallelPlugin()


def test_accelerate_reads_the_file():
    config = load_config_from_file(RECIPE)
    assert config.distributed_type == DistributedType.FSDP
    assert config.fsdp_config["fsdp_version"] == 2


def test_the_plugin_is_fsdp2_with_whole_state_dicts(plugin):
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert not plugin.cpu_ram_efficient_loading  # check_model runs the weights of every process


def test_the_layers_of_a_model_are_wrapped(plugin):
    plugin.set_auto_wrap_policy(tiny_model())
    wrapped = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert {layer.__name__ for layer in wrapped} == {"LlamaDecoderLayer"}
