import time

import pytest

from softgrpo.rewards import answer_part, completion_text, last_boxed, last_number


def test_completion_text_joins_messages() -> None:
    assert completion_text("a") == "a"
    assert completion_text([{"role": "assistant", "content": "a"}]) == "a"


@pytest.mark.parametrize(
    ("text", "think_end", "part"),
    [
        ("1</think>2", ["</think>"], "2"),
        ("1</think>2</think>3", ["</think>"], "3"),
        ("never closed 7", ["</think>"], None),
        ("1</think>", ["</think>"], ""),
        ("no thinking", [], "no thinking"),
        ("7 #### 8", ["####", " ####"], " 8"),
        ("a</t>b####c", ["####", "</t>"], "c"),
        ("a####b</t>c", ["####", "</t>"], "c"),
    ],
)
def test_answer_part_follows_the_last_marker(
    text: str, think_end: list[str], part: str | None
) -> None:
    assert answer_part(text, think_end) == part


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7 + 7 = 14, 14 + 4 = 18", "18"),
        ("It costs $1,234,567.50.", "1234567.50"),
        ("1{,}234", "1234"),
        ("-5", "-5"),
        ("x = -3.5", "-3.5"),
        ("\N{MINUS SIGN}4", "-4"),
        ("10-3", "3"),
        (".5", ".5"),
        ("5.", "5"),
        ("(1,2,3)", "3"),
        ("1234,567", "567"),
        ("3 / 4", "3/4"),
        ("1.5/2.5", "1.5/2.5"),
        (r"-\dfrac{1}{2}", "-1/2"),
        ("1/2/3", "3"),
        ("2e5", "2e5"),
        ("50%", "50"),
        ("\N{ARABIC-INDIC DIGIT THREE}", None),
        ("none", None),
        ("", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{1} cut \boxed{2", "1"),
        (r"} { \boxed{1}", "1"),
        (r"\boxed{}", ""),
        (r"\boxed {4}", "4"),
        (r"\boxed{{5}", None),
        ("5", None),
    ],
)
def test_last_boxed(text: str, boxed: str | None) -> None:
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    "unit",
    ["{", "}", r"\boxed{", "1", "1,", "111,", "-", "1/", "1e", ".", "\\", r"\frac{1}{"],
)
def test_extraction_is_linear_in_hostile_text(unit: str) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        start = time.process_time()
        last_boxed(text)
        last_number(text)
        return time.process_time() - start

    seconds(1000)
    # Eight times the text may cost no more than twice that much: quadratic would be 64 times.
    assert seconds(400_000) < 16 * seconds(50_000) + 0.05
