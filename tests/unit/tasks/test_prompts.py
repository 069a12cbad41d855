import pytest

from softgrpo.tasks import Problem, PromptFormat, reward_columns, to_dataset

PROBLEM = Problem("a/0", "1 + {x} + {question}?", "2")
FEW_SHOT = PromptFormat(system="Add.", examples=(("2 + 2?", "4"),), template="Q: {question}")


def test_messages() -> None:
    assert FEW_SHOT.messages(PROBLEM) == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "Q: 2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "Q: 1 + {x} + {question}?"},
    ]


def test_text() -> None:
    assert FEW_SHOT.text(PROBLEM) == "Add.\n\nQ: 2 + 2?\n4\n\nQ: 1 + {x} + {question}?\n"
    assert PromptFormat(separator="").text(PROBLEM) == PROBLEM.question


def test_context_of_a_problem_stands_in_place_of_the_formats() -> None:
    context = ({"role": "system", "content": "Be brief."},)
    problem = Problem("a/0", "1 + 1?", "2", context=context)
    assert FEW_SHOT.messages(problem) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 1 + 1?"},
    ]


@pytest.mark.parametrize(
    "template",
    [
        r"{question} Put the answer within \boxed{}.",
        r"{question} Put it in \boxed{answer}, as \frac{a}{b}, or as {}.",
    ],
)
def test_latex_braces_of_a_template_are_text(template: str) -> None:
    prompt = PromptFormat(template=template).messages(PROBLEM)[-1]["content"]
    assert prompt == PROBLEM.question + template.removeprefix("{question}")


@pytest.mark.parametrize("template", ["", "Q:", "{ question }", "{question} {answer}", "{query}"])
def test_template_must_hold_the_question_and_nothing_else(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        PromptFormat(template=template)


@pytest.mark.parametrize("example", [("2 + 2?",), ("2 + 2?", 4), "ab", ("a", "b", "c")])
def test_malformed_example(example: object) -> None:
    with pytest.raises(ValueError, match=r"examples\[0\]"):
        PromptFormat(examples=(example,))  # type: ignore[arg-type]


def test_to_dataset() -> None:
    chat = to_dataset([PROBLEM], FEW_SHOT, conversational=True)
    assert chat[0] == {"prompt": FEW_SHOT.messages(PROBLEM), "answer": "2", "problem_id": "a/0"}
    plain = to_dataset([PROBLEM], FEW_SHOT, conversational=False)
    assert plain[0]["prompt"] == FEW_SHOT.text(PROBLEM)


def test_rewards_are_told_what_the_source_says_but_under_no_name_of_trls() -> None:
    said = {"level": 3, "answer": "raw", "prompt": "raw", "images": [], "completions": ["x"]}
    problem = Problem("a/0", "1 + 1?", "2", said)
    assert reward_columns(problem) == {"level": 3, "answer": "2", "problem_id": "a/0"}


def test_columns_of_several_types_come_back_as_they_were() -> None:
    notes = [1, "a", [1, "a"], {"b": [1]}, {}, None, 0.5]
    problems = [Problem(f"a/{i}", "?", "2", {"note": note}) for i, note in enumerate(notes)]
    rows = to_dataset([*problems, Problem("b", "?", "2")], PromptFormat(), conversational=True)
    assert [row["note"] for row in rows] == [*notes, None]
    assert rows[0]["prompt"] == [{"role": "user", "content": "?"}]


def test_a_column_that_no_data_set_can_hold_is_named() -> None:
    problems = [Problem("a", "q", "1", {"level": 3, "size": 10**30})]
    with pytest.raises(ValueError, match="column 'size' of the problems: a data set cannot hold"):
        to_dataset(problems, PromptFormat(), conversational=False)
