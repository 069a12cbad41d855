"""What a model says cannot do anything to the terminal it is shown on."""

import json

import pytest

from softgrpo.cli.generate import printable, stream_text, thought_line
from softgrpo.cli.main import main
from softgrpo.models import context_length, load_config
from softgrpo.rollout import StreamedStep
from tests.helpers import save_tiny_model, word_tokenizer


def test_control_characters_are_shown_not_sent():
    assert printable("a\x1b[2Jb\r\x07\u202e\x9b") == "a\\x1b[2Jb\\r\\x07\\u202e\\x9b"
    assert printable("naïve 思考 ∑\n\t") == "naïve 思考 ∑\n\t"


def test_thought_line():
    tokenizer = word_tokenizer()
    ids = tokenizer.convert_tokens_to_ids(["a", "b"])
    soft = StreamedStep(ids[0], ids, [0.75, 0.25], is_soft=True, is_forced=False)
    assert thought_line(3, soft, tokenizer).split() == ["3", "soft", '"a"', "0.750", '"b"', "0.250"]
    token = StreamedStep(ids[0], ids[:1], [1.0], is_soft=False, is_forced=False)
    assert thought_line(4, token, tokenizer).split() == ["4", "token", '"a"', "1.000"]


@pytest.mark.parametrize(
    ("weight", "text"),
    [(1.0, "1.000"), (0.0005, "0.001"), (0.0004, "4e-04"), (1e-13, "1e-13"), (0.99999, "1.000")],
)
def test_a_small_weight_is_not_nothing(weight, text):
    step = StreamedStep(3, [3], [weight], is_soft=True, is_forced=False)
    assert thought_line(1, step, word_tokenizer()).split()[-1] == text


class _Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens, skip_special_tokens):
        return bytes(tokens).decode("utf-8", errors="replace")


def test_a_character_waits_for_its_last_byte():
    steps = [StreamedStep(byte, [byte], [1.0], False, False) for byte in "aé!".encode()]
    assert list(stream_text(iter(steps), _Bytes())) == ["a", "é", "!", ""]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_json_for_programs(model, capsys):
    options = ["--json", "--show-thoughts", "--think-end", "</t>", "--max-think-tokens", "3"]
    assert main(["generate", model, "a b", *options, "--max-new-tokens", "6", "--tau", "1"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["num_tokens"] == len(result["steps"]) <= 6
    assert result["num_soft_tokens"] <= 3
    first = result["steps"][0]
    assert first["is_soft"]
    assert sum(choice["weight"] for choice in first["alternatives"]) == pytest.approx(1, abs=1e-5)
    assert result["thinking"]["tau"] == 1.0


@pytest.mark.parametrize("more", [[], ["--show-thoughts"]], ids=["text", "thoughts"])
def test_the_text_ends_it_and_an_endless_thought_is_said(model, capsys, more):
    command = ["generate", model, "a b", "--think-end", "</t>", "--seed", "1", *more]
    assert main([*command, "--max-new-tokens", "6", "--max-think-tokens", "2"]) == 0
    ended = capsys.readouterr()
    assert "</t>" in ended.out.splitlines()[-1] and "never ended" not in ended.err
    assert main([*command, "--max-new-tokens", "2"]) == 0
    assert "never ended in 2 tokens" in capsys.readouterr().err


def test_the_context_bounds_a_length_that_nobody_asked_for(model, capsys):
    context = context_length(load_config(model))
    command = ["generate", model, "a b", "--json", "--think-end", "</t>", "--seed", "3"]
    assert context is not None and context < 256
    assert main(command) == 0
    assert 0 < json.loads(capsys.readouterr().out)["num_tokens"] <= context - 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--think-end", "WORD"], "think_end"),
        (["--tau", "0"], "tau"),
        (["--policy", "loud"], "policy"),
        (["--top-k", "99"], "top_k"),
        (["--max-new-tokens", "999"], "max_new_tokens"),
    ],
)
def test_bad_options(model, capsys, options, said):
    assert main(["generate", model, "a", "--think-end", "</t>", *options]) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys):
    assert main(["generate", "./nowhere", "a"]) == 2
    assert "./nowhere" in capsys.readouterr().err
