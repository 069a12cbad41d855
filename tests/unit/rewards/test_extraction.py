import time

import pytest

from softgrpo.rewards import answer_part, completion_text, last_boxed


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


@pytest.mark.parametrize("unit", ["{", "}", r"\boxed{", "1", "\\"])
def test_extraction_is_linear_in_hostile_text(unit: str) -> None:
    def seconds(length: int) -> float:
        text = unit * (length // len(unit))
        start = time.process_time()
        last_boxed(text)
        return time.process_time() - start

    seconds(1000)
    # Eight times the text may cost no more than twice that much: quadratic would be 64 times.
    assert seconds(400_000) < 16 * seconds(50_000) + 0.05
