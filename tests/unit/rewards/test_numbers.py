"""A number is read right in whatever form it is written, or not at all."""

from __future__ import annotations

import random
import time
from fractions import Fraction

import pytest

from softgrpo.rewards.numbers import last_number, only_number, written
from softgrpo.rewards.verdicts import numeric

# Form -> value, alone and in a box; None where nobody can tell, or it is another kind of thing.
FORMS = {
    # whole, decimal, signed
    "18": 18, "018": 18, "18.": 18, "18,": 18, " 18 ": 18, "18.0": 18, ".5": "1/2", "0.50": "1/2",
    "-3": -3, "- 3": -3, "\N{MINUS SIGN}3": -3, "\N{EN DASH}3": -3,
    "\N{FULLWIDTH HYPHEN-MINUS}3": -3,
    "+3": 3, "-.5": "-1/2", "(5)": 5, "(-5)": -5, "[5]": 5, "--5": None, "-(5)": None,
    # thousands
    "1,234": 1234, "1,234,567.5": "2469135/2", "1{,}234": 1234, r"10,\!000": 10000, "10 000": 10000,
    r"10\,000": 10000, r"10\ 000": 10000, "10~000": 10000, "10\N{NO-BREAK SPACE}000": 10000,
    "10\N{THIN SPACE}000": 10000, "10\N{NARROW NO-BREAK SPACE}000": 10000, r"1\;234\;567": 1234567,
    "1'234'567": 1234567, "1’234": 1234, "1_234": 1234, "12,34,567": 1234567,
    "1.234.567": 1234567, "1.234.567,8": "6172839/5", "1.234,5": "2469/2", "1 234,5": "2469/2",
    "1.234": "617/500", "1,5": None, "1234,567": None, "1,23,4": None, "1,2345": None,
    r"1,\!234,\!567": 1234567, "10, 000": 10000, "0,500": None, "02,500": None, "(0,100)": None,
    "(1,234)": None, "[1,234]": None, r"\{1,234\}": None, r"\left(1,234\right)": None,
    "1٫5": None, "1٬234": None,
    # fractions and mixed numbers
    "3/4": "3/4", "3 / 4": "3/4", "1.5/2.5": "3/5", "-3/4": "-3/4", r"\frac{1}{2}": "1/2",
    r"\frac12": "1/2", r"\frac{1}2": "1/2", r"\frac1{2}": "1/2", r"\frac 1 2": "1/2",
    r"\dfrac{1}{2}": "1/2", r"\tfrac12": "1/2", r"\cfrac{1}{2}": "1/2", r"-\frac{1}{2}": "-1/2",
    r"\frac{-1}{2}": "-1/2", r"\frac{1,000}{3}": "1000/3", r"\frac{ 1 }{ 2 }": "1/2",
    r"\frac{2.5}{5}": "1/2", r"2\frac{1}{2}": "5/2", r"2\frac12": "5/2", r"-2\frac{1}{2}": "-5/2",
    r"2 \frac{1}{2}": "5/2", r"2\,\frac{1}{2}": "5/2", r"2\dfrac{1}{2}": "5/2", "2 1/2": "5/2",
    "-2 1/2": "-5/2", "2 and 1/2": "5/2", "½": "1/2", "2½": "5/2", "-¾": "-3/4", "3 ⅓": "10/3",
    "1,234 1/2": "2469/2", r"1,234\frac{1}{2}": "2469/2", "1,234½": "2469/2", "1⁄2": "1/2",
    "1∕2": "1/2", r"\frac123": None, r"\frac12\pi": None,
    "2 7/4": None, "10 000/4": 2500, "1/0": None, "0/5": 0, "1/2/3": None, r"\frac{1}{0}": None,
    r"\frac{\sqrt{3}}{2}": None, r"\frac{\pi}{2}": None, r"\frac{1}{\sqrt{2}}": None,
    r"\frac{\frac{1}{2}}{3}": None, r"\left(\frac{1}{2}\right)": "1/2",
    # powers and scientific notation
    "1e4": 10000, "1E4": 10000, "1.5e-3": "3/2000", "1e+4": 10000, r"3 \times 10^{5}": 300000,
    r"3\times10^5": 300000, "3 × 10^5": 300000, "3*10^5": 300000, "3 x 10^5": 300000,
    "3·10⁵": 300000, r"3 \cdot 10^{-2}": "3/100", "3.2 × 10⁻¹": "8/25", "10^5": 100000,
    "10^{5}": 100000, "10**5": 100000, "10⁵": 100000, r"2^{10}": 1024, "-2^2": -4, "2^{1/2}": None,
    "2^x": None, r"2^{\pi}": None, "10^999999999": None, "1e999999999": None, "0^{-1}": None,
    "1.e5": None, "1 e5": None,
    # currencies, percent, degrees, units
    "$5": 5, r"\$5": 5, "-$5": -5, "$-5": -5, r"-\$5": -5, "$5$": 5, "$$5$$": 5,
    "$1,234.50": "2469/2",
    "US$5": 5, "-US$5": -5, r"A\$5": 5,
    "€5": 5, "5€": 5, "£5": 5, "¥5": 5, "5 USD": 5, "USD 5": 5, "Rs. 5": 5, "5 dollars": 5,
    "50%": 50, r"50\%": 50, r"25\,\%": 25, "50 percent": 50, "120°": 120, r"120^\circ": 120,
    r"120^{\circ}": 120, r"120\degree": 120, "20°C": 20, r"20^\circ\text{C}": 20,
    r"25\text{ cm}^2": 25, "25 cm^2": 25, "25 cm²": 25, "25cm": 25, r"25\,\mathrm{kg}": 25,
    r"5\text{ m}/\text{s}": 5, "5 m/s": 5, "5 km/h": 5, "5/hour": 5, "5 m": 5, "5m^3": 5, "5 s": 5,
    "5th": 5, "5-year": 5, r"10 \text{ inches}": 10, r"5\;\text{units}^{3}": 5, "5'": 5,
    "3 million": 3000000, "2.5 billion": 2500000000, "5 thousand": 5000,
    "3 Million": 3000000, "3 millions": 3000000, "$3 million": 3000000, "3 hundred": 300,
    "3 lakh": 300000, "3 crore": 30000000, "3 dozen": 3, "3K": None, "3k": None, "$3M": None,
    r"5^{\text{th}}": 5, "5^{th}": 5, "5^th": 5,
    "5°30'": None, r"5^\circ 30'": None, "5° 30' 10\"": None, "5' 6\"": None,
    # what stands around it
    "x = 5": 5, "x=-5": -5, r"x \approx 5": 5, "≈ 5": 5, r"\text{5}": 5, r"\mathbf{5}": 5,
    r"\boldsymbol{-5}": -5, "**5**": 5, "*5*": 5, "__5__": 5, r"\(5\)": 5, r"\[5\]": 5, "{5}": 5,
    r"\displaystyle 5": 5, "5 = x": 5, "x_1 = 5": 5, r"\boxed{5}": 5, "2 + 3 = 5": 5,
    r"\frac{10}{2} = 5": 5, "5 apples.": 5, "f(x) = 5": 5, r"\text{Answer: } 5": 5,
    # not a number, or not only one
    "": None, "none": None, "x": None, "10-3": None, "2 + 3": None, "2 * 3": None,
    r"2 \cdot 3": None, r"2\times 3": None, "2 - 3": None, "5x": None, "5 x": None, "x5": None,
    "x_5": None, "2x + 5": None, "x^2 + 5": None, "x^2 - 5": None, "x^2 -5": None,
    "x^2 * 5": None, r"x^{2}/5": None, "f^{-1}(5)": None,
    r"2\pi": None, "2π": None, r"\sqrt{5}": None, r"\sqrt 5": None, r"\sqrt13": None, "√5": None,
    r"5\sqrt{2}": None, r"\sqrt[3]{8}": None, r"0.\overline{3}": None, r"0.\dot3": None,
    "0.333...": None,
    "101_2": None, "101_{2}": None, "0x1F": None, "f(5)": None, r"\sin 5": None, r"\log_2 8": None,
    r"\binom{5}{2}": None, "5(3)": None, "(5)^2": None, "3:4": None, "5:30": None, "5–7": None,
    "5-7": None, "2024-01-05": None, "1.5.2": None, "x > 5": None, r"x \le 5": None, "±5": None,
    r"\pm 5": None, "3i": None, "2+3i": None, "5/x": None, "\N{ARABIC-INDIC DIGIT THREE}": None,
    "５": None, "1e": None, "5÷2": None,
    "|5|": None, "|-5|": None, r"\left| -5 \right|": None, "+-5": None, "- -5": None,
    "\N{EM DASH}5": None, "minus 5": None, "negative 5": None, r"\text{negative }5": None,
    "0.3\N{COMBINING OVERLINE}": None,
}  # fmt: skip

# Of several numbers a text ends with the last one, and a box that holds them holds none.
SEVERAL = {
    "7 + 7 = 14, 14 + 4 = 18": 18, "48/2 = 24, 48 + 24 = 72 #### 72": 72, "5 of 7 apples": 7,
    "The answer is 5, see A4.": 5, "Step 1: 2 apples.\nStep 2: 5": 5, "1, 2, 3": 3,
    "5 in 2024": 2024,
    "at 5 he paid $3.": 3, "It is 5 \N{EM DASH} or 6": 6,
}  # fmt: skip


# Equations that are not solved for one value.
EQUATIONS = [
    "2x = 10", "-x = 5", "x^2 = 25", "25 = x^2", "x² = 25", "x + y = 5", "5x - 7y + 4 = 0",
    "x - 3 = 5",
    r"\frac{x}{2} = 3", r"\sqrt{x} = 3", "x/2 = 3", "2 x = 10", "3xy = 6", "x^n = 5", "2(x) = 10",
    "10 = 2x", "|x - 1| = 5",
    "x = 5, y = 6", r"x = 5 \text{ or } x = 6", r"n=5\text{ and }n=6", "x = 5; y = 6",
    "a = 1, b = 2, c = 3",
]  # fmt: skip


def _fraction(value) -> Fraction | None:
    return None if value is None else Fraction(value)


def test_there_are_enough_forms():
    assert len(FORMS) >= 150


@pytest.mark.parametrize(("form", "value"), FORMS.items(), ids=repr)
def test_a_form_alone_and_in_a_box(form, value):
    assert only_number(form) == _fraction(value)
    assert last_number(form) == _fraction(value)


@pytest.mark.parametrize(("form", "value"), FORMS.items(), ids=repr)
def test_a_form_as_answer_and_as_gold(form, value):
    if value is None or form.startswith(("- ", "+")) or "boxed" in form:
        return
    assert last_number(f"So the answer is {form}") == _fraction(value)
    assert numeric(rf"first \boxed{{99}}, then \boxed{{{form}}}.", str(value)) == 1.0
    assert numeric(str(Fraction(value)), form) == 1.0


@pytest.mark.parametrize(("text", "value"), SEVERAL.items(), ids=repr)
def test_of_several_the_last_and_in_a_box_none(text, value):
    assert last_number(text) == _fraction(value)
    assert only_number(text) == (_fraction(value) if text.endswith(("= 18", "A4.")) else None)


@pytest.mark.parametrize("text", EQUATIONS)
def test_an_equation_is_no_number(text):
    assert only_number(text) is None


@pytest.mark.parametrize(
    "side",
    ["x", "f(5)", "f(x, y)", "x_1", "a_{10}", r"\theta", r"\text{Total cost}", "Area of ABC", "",
     "1,234/2", "600 + 17", r"x = \frac{1234}{2}", "The y-intercept", r"m\angle ABC", "P(A)",
     r"\sin \theta", "n!"],
)  # fmt: skip
def test_what_is_said_to_be_equal_to_a_number_names_or_calculates_it(side):
    assert only_number(f"{side} = 617") == 617


def test_a_box_longer_than_anyone_reads_is_not_read_from_its_end():
    assert only_number("3 + " + " " * 30_000 + "5") is None


def test_an_exclamation_mark_is_a_factorial_in_a_box_alone():
    assert last_number("The answer is 5!") == 5 and only_number("5!") is None


def test_a_dash_that_may_be_a_bullet_or_a_pause_is_no_sign():
    for text in ("Costs:\n- 5", "the total - 5", "the total \N{EN DASH} 5"):
        assert last_number(text) is None
    assert last_number("Answer: - 5") == -5


def _write(rng: random.Random, value: Fraction) -> str:
    """A number in a random form."""
    sign, size = "-" * (value < 0), abs(value)
    whole, rest = divmod(size, 1)
    if size.denominator == 1:
        digits = rng.choice([
            str(size), f"{int(size):,}", f"{int(size):,}".replace(",", "{,}"), f"{size}.00",
            f"{int(size):,}".replace(",", r"\,"), f"{int(size):,}".replace(",", r",\!"),
            f"{int(size):,}".replace(",", "\N{THIN SPACE}"), f"{size}e0",
            rf"\frac{{{2 * size}}}{{2}}",
        ])  # fmt: skip
    else:
        top, bottom = size.numerator, size.denominator
        forms = [f"{top}/{bottom}", rf"\frac{{{top}}}{{{bottom}}}", rf"\dfrac{{{top}}}{{{bottom}}}"]
        if whole:
            a, b = rest.numerator, rest.denominator
            forms += [
                f"{whole} {a}/{b}",
                rf"{whole}\frac{{{a}}}{{{b}}}",
                rf"{whole} \tfrac{{{a}}}{{{b}}}",
            ]
        if 1000 % bottom == 0:
            forms += [f"{float(size):.3f}"]
        digits = rng.choice(forms)
    before, behind = rng.choice([
        ("", ""), ("$", ""), (r"\$", ""), ("€", ""), ("", r"\%"), ("", " dollars"),
        ("", r"\text{ cm}^2"),
        ("", r"^\circ"), ("", "."), ("", r" \text{ apples}"), ("", r"\,\mathrm{m}"), ("{", "}"),
        (r"\left(", r"\right)"), ("**", "**"),
    ])  # fmt: skip
    if "(" in before and "," in digits:  # (1,234) is two numbers as well as one
        before, behind = "", ""
    if before in ("$", r"\$", "€"):
        return rng.choice([f"{sign}{before}{digits}", f"{before}{sign}{digits}"])
    return f"{before}{sign}{digits}{behind}"


@pytest.mark.parametrize("seed", range(5))
def test_what_is_written_in_a_random_form_is_read_back(seed):
    rng = random.Random(seed)
    for _ in range(1000):
        value = Fraction(
            rng.choice([rng.randint(-9, 9), rng.randint(-(10**7), 10**7)]),
            rng.choice([1, 1, 2, 3, 8, 25]),
        )
        form = _write(rng, value)
        assert only_number(form) == value, form
        assert last_number(f"The answer is {form}") == value, form
        assert only_number(written(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [("3", "3"), ("-1/4", "-0.25"), ("1/3", "1/3"), ("-7/2", "-3.5"), ("1/1000000", "0.000001"),
     ("1/10000000", "1/10000000"), ("0", "0"), ("12345678901234567890", "12345678901234567890")],
)  # fmt: skip
def test_written(value, text):
    assert written(Fraction(value)) == text


UNITS = [
    "{", "}", r"\boxed{", "1", "1,", "111,", "1 111 ", "-", "1/", "1e", ".", "\\", r"\frac{1}{",
    r"\frac", r"\text{", "\\text{a} ", "^", "^{", "1^", "*", "1*", "$", " ", "1.", "111.", "_",
    "1_", "½", "⁵", "=", "1=", "~", "\\,", r"\left", "and ", "1 and ", "a", "(", "- ", ",\\!",
    "1x10^", r"\sqrt[", r"\sqrt{", "=1,a", "1 \\", "|1", "1° ", "minus ", "1' ", "1,000 1/2 ",
    "US$",
]  # fmt: skip


@pytest.mark.parametrize("read", [last_number, only_number])
@pytest.mark.parametrize(
    "form", ["10^{}", "10^-{}", "2^{{{}}}", "3 x 10^{}", "1e{}", "5/{}", "{} 1/2", "{}", "1.5^{}"]
)
def test_more_digits_than_python_reads_are_no_number(form, read):
    assert read(form.format("9" * 5000)) is None


@pytest.mark.parametrize("read", [last_number, only_number])
@pytest.mark.parametrize("unit", UNITS, ids=repr)
def test_hostile_text_takes_little_time(unit, read):
    for text in (unit * (100_000 // len(unit)), unit * 3000 + "5", "5" + unit * 3000):
        start = time.process_time()
        read(text)
        assert time.process_time() - start < 2
