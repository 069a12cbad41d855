import time

import pytest

from softgrpo.rewards.verdicts import chosen_letter, exact, has_answer, letter, numeric


def test_exact_is_text_equality_but_for_white_space_around() -> None:
    assert exact(" yes\n", "yes") == 1.0
    assert exact("Yes", "yes") == 0.0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("18", "18"),
        ("so 018.0.", "18"),
        ("1,000 dollars", "1000"),
        ("0.5", "1/2"),
        (r"\frac{1}{2}", ".5"),
        ("1.5/2", "0.75"),
        ("2e3", "2000"),
        ("-3", "\N{MINUS SIGN}3"),
        (r"\boxed{5}, as 2 + 3 = 5.0 and 7", "5"),
        ("72", "48/2 = 24, 48 + 24 = 72 #### 72"),
    ],
)
def test_numeric_equal(answer: str, gold: str) -> None:
    assert numeric(answer, gold) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "none",
        "NaN",
        "inf",
        "-Infinity",
        "6",
        "5.0000000000000000001",
        "1/0",
        "5/0",
        "0/0",
        "1e999999",
        "1e-999999",
        "5e999999999999999999",
        "1e999999/1e999999",
        "1" * 3_000_000,
        "0" * 3_000_000 + "5",
        "1/" + "3" * 100_000,
        "1e" + "9" * 100_000,
        "10**10**10",
        r"\boxed{} 5",
        r"\boxed{5",
        "\ud800",
        "\x00",
        "5" + "\N{COMBINING ENCLOSING KEYCAP}" + " 6",
    ],
)
def test_numeric_gives_a_verdict_on_anything_at_once(answer: str) -> None:
    start = time.process_time()
    assert numeric(answer, "5") == (1.0 if answer == r"\boxed{5" else 0.0)
    assert time.process_time() - start < 5


def test_numeric_has_nothing_to_say_where_gold_is_no_number() -> None:
    assert numeric("5", "Evelyn") is None
    assert numeric("5", "1/0") is None


def test_has_answer() -> None:
    assert has_answer(r"\boxed{x}", "x") == has_answer("7", "x") == 1.0
    assert has_answer("no idea", "x") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        r"\boxed{C}",
        r"\boxed{\text{C}}",
        r"\boxed{(C)}",
        r"\boxed{A} no, \boxed{C.}",
        r"\boxed{C) 5}",
        r"\boxed{C. 5}",
        r"\boxed{(C) \frac{1}{2}}",
        r"\boxed{C: 5}",
        r"\boxed{\textrm{C}}",
        r"\boxed{\mathbf{(C)}}",
        r"The answer is \(C\)",
        r"The answer is \(\mathrm{C}\).",
        r"The answer is $\textbf{(C)}$",
        "The answer is (C).",
        "the answer is A? No: The answer is C",
        "**Answer: C**",
        "Answer:\nC) because B is wrong",
        r"The final answer is $\text{C}$",
        "The answer is C because it is.",
    ],
)
def test_letter_chosen(answer: str) -> None:
    assert letter(answer, "C") == 1.0 and letter(answer, "D") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "C",
        "The answer is A matter of taste",
        "answer: I think so",
        "The answer is a number",
        r"\boxed{CC}",
        r"\boxed{C = 5}",
        r"\boxed{C, D}",
        r"\boxed{A B}",
        r"\boxed{7}",
    ],
)
def test_no_letter_chosen(answer: str) -> None:
    assert chosen_letter(answer) is None and letter(answer, "C") == 0.0


def test_a_gold_that_is_no_letter_gives_no_verdict() -> None:
    assert letter(r"\boxed{C}", "42") is None
