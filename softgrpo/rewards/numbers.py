r"""The number that a text ends with: written for people or in LaTeX, read exactly or not at all.

    text ──> plain (no LaTeX, one sign a meaning) ──> the last number ──> what stands around it

What stands around a number decides whether it is the number that is meant: the 3 of `2 + 3`, of
`x^3`, `3\pi`, `3:4`, `|-3|` or `\sqrt{3}` is none. Where it is not clear there is no number, never
another one. Conventions: 1,234 and 1 234 are thousands, 1.234 is a decimal; 1,5 and (1,234) are
nothing. Units, currencies, degrees and percent signs are not read, so that 50% is 50 and 3 dozen
are 3; 3 million are 3,000,000.

Every pattern is linear in the length of the text, of which the last 20,000 characters are read.
"""

from __future__ import annotations

import re
from fractions import Fraction

_MAX_LENGTH = 20_000  # characters
_MAX_DIGITS = 1000  # 1e999999999 is short to write but not to store

# What cannot be read as a number and stands for a value; and any power of a letter.
_OPAQUE = "\N{CURRENCY SIGN}"
_LETTER_POWER = "\N{SUPERSCRIPT TWO}"

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_VULGAR = {
    "½": "1/2", "⅓": "1/3", "⅔": "2/3", "¼": "1/4", "¾": "3/4", "⅕": "1/5", "⅖": "2/5", "⅗": "3/5",
    "⅘": "4/5", "⅙": "1/6", "⅚": "5/6", "⅛": "1/8", "⅜": "3/8", "⅝": "5/8", "⅞": "7/8",
}  # fmt: skip

_DEGREES = r"(?:°|º|\\degree(?![A-Za-z])|\^\s?\{?\s?(?:\\circ(?![A-Za-z])|\\text\{o\}|o\b)\s?\}?)"

# 1. One sign for each meaning. Order matters: `,\!` is a comma before `\!` is nothing.
_PLAIN: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        ("[\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d]", "-"),
        (r"\{,\}|,\\!", ","),
        (r"\\!|\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle)(?![A-Za-z])", ""),
        ("[\u00a0\u2007\u2009\u202f]|" + r"\\[ ,;:>]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\\[()\[\]]", " "),
        (r"\\\{", "["),
        (r"\\\}", "]"),
        ("[\u2044\u2215]", "/"),
        (r"(?<=\d)\s?,\s(?=000(?!\d))", ","),
        (r"(?<=\d)\\?\$(?=\d)", " "),
        (_DEGREES + r"\s?(?=\d)", ":"),  # 5°30' has minutes
        (r"\b(?:US|CA|AU|NZ|HK|[ACS])(?=\\?\$[-.\d])", ""),
        (r"\\?[$%]|[€£¥₹]|" + _DEGREES, ""),
        (r"\b(?:USD|EUR|GBP|INR|CAD|AUD|Rs\.?)\s?(?=[-.\d])", ""),
        (r"(?<=\d)\s?(?:\\(?:times|cdot|ast)(?![A-Za-z])|[×·⋅∙∗])\s?", "*"),
        (r"\\(?:approx|sim|simeq|equiv|to|Rightarrow|implies|therefore)(?![A-Za-z])|≈", " = "),
        (r"\\(?:leq?|geq?|lt|gt|neq?|pm|mp)(?![A-Za-z])|[≤≥≠±∓]", "<"),
        (r"\\[cl]?dots(?![A-Za-z])|…", "..."),
        (r"(?<=\d)\*\*(?=-?\d)", "^"),
        (r"\*\*|__", ""),
    )
]
_POWER_SIGNS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
_FRACTION_SIGNS = re.compile(f"(?:([0-9]) ?)?([{''.join(_VULGAR)}])")

# 2. LaTeX with braces, from the inside out.
_DEPTH = 5
_WORDS = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf|tt)|mbox|hbox|operatorname|emph|bm|boldsymbol"
    r"|underline|boxed|fbox)\s?\{([^{}]*)\}"
)
_LATEX_POWER = re.compile(r"\^\s?\{\s?(-?\d++)\s?\}")
_LATEX_FRACTION = re.compile(
    r"(?:(\d)\s?)?\\[cdt]?frac\s?(?:\{([^{}]*)\}|(\d))\s?(?:\{([^{}]*)\}|(\d))(?!\d)"
)
_LATEX_VALUE = re.compile(
    r"\\(?:sqrt\s?(?:\[[^\[\]{}]*\])?\s?(?:\{[^{}]*\}|\d++)|(?:overline|bar|dot)\s?(?:\{[^{}]*\}|\d)"
    r"|[dt]?binom\s?\{[^{}]*\}\s?\{[^{}]*\})"
)
_BRACE = re.compile(r"[{}]")
_UNREAD = re.compile(r"\\(?:[cdt]?frac|sqrt|overline|bar|dot|[dt]?binom)(?![A-Za-z])")
_OPEN_BOX = re.compile(r"\\boxed\s?\{")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s?\^\s?-?\d++")
_ORDINAL = re.compile(r"(?<=\d)\^(?:st|nd|rd|th)\b")

# 3. Numbers. Groups are counted, so that no digit is looked at more than so many times.
_UNSIGNED = r"""(?:
      [1-9]\d{0,2} (?: \.\d{3} ){2,40}+ (?: ,\d++ )?      # 1.234.567,8
    | [1-9]\d{0,2} (?: \.\d{3} ){1,40}+ ,\d++            # 1.234,5
    | [1-9]\d{0,2} (?: [ ]\d{3} ){1,40}+ ,\d++           # 1 234,5
    | (?: [1-9]\d{0,2} (?: ,\d{3} ){1,40}+               # 1,234
        | [1-9]\d? (?: ,\d{2}(?!\d) ){1,40}+ ,\d{3}      # 12,34,567
        | [1-9]\d{0,2} (?: [ '’_]\d{3} ){1,40}+          # 1 234, 1'234, 1_234
        | \d++ ) (?!\d) (?: \.\d++ )?
    | \.\d++ )(?: [eE][-+]?\d++ )?"""
_SCALES = {
    "hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "billion": 9, "trillion": 12,
}  # fmt: skip
_SPAN = re.compile(
    rf"""
    {_OPAQUE}
    | (?<! [A-Za-z\d] ) (?<! \d\. ) (?<! [\w)\]}}]_ )
      (?P<sign> [-+]\s? )?
      (?: (?P<whole> [1-9]\d{{0,2}} (?: ,\d{{3}} ){{1,40}}+ | \d++ )
          (?: \s | \s?and\s ) (?= [1-9]\d*+ / \d ) )?
      (?P<top> {_UNSIGNED} ) (?: \^ (?P<power> -?\d++ ) )?
      (?: \s?[*x]\s?10\^ (?P<ten> -?\d++ ) | \s?/\s? (?P<bottom> {_UNSIGNED} ) )?
      (?: \s? (?i: (?P<scale> {"|".join(_SCALES)} ) s? )\b )?
    """,
    re.VERBOSE | re.ASCII,
)

# 4. What stands before and behind it where it is not the number that is meant.
_AROUND = 32  # characters
_BEFORE = re.compile(
    rf"""(?:
      [\w)\]{_OPAQUE}{_LETTER_POWER}] \s* [-+/^÷] \s* \(*            # x - 5, 2 + (5
    | [\w)\]{_OPAQUE}{_LETTER_POWER}] (?: \* | \s+ \* \s+ ) \(*     # and not the *5* of Markdown
    | [<>√] \s* | \\[A-Za-z]+ (?:_\w+)? \s* [({{]*    # x > 5, \sin 5, \log_2 5
    | [A-Za-z\d){_LETTER_POWER}] \( | - \s? \(                       # f(5), 2(5), -(5
    | \d: | \d\s:\s | \d[,.'’٫٬] | \d['’′"″]\s       # 2:5, 1234,567, 5' 6
    | [-+—][ ]? | {_OPAQUE}[ ]? | \|\s? | (?: [Mm]inus | [Nn]egative )\s?
    )\Z""",
    re.VERBOSE | re.ASCII,
)
_BEFORE_SIGN = re.compile(rf"(?:[\d)\]{_OPAQUE}{_LETTER_POWER}]|\b[A-Za-z])\s*\Z", re.ASCII)
_BEFORE_DASH = re.compile(r"(?:[\w)\]]\s|\n)\Z")
_UNITS = "mgshLlAVWJNCFT"  # K may be a thousand
_BEHIND = re.compile(
    rf"""[)\]}}]* (?:
      \s? \^ | _ [\w{{] | \( [\d.-]                   # 5^x, 101_2, 5(3)
    | (?: \* | \s\*\s | \s?÷\s? ) [\w(\\.{_OPAQUE}]
    | \s?/\s? (?: [\d(\\.{_OPAQUE}] | (?! [{_UNITS}]\b ) [A-Za-z]\b )
    | \s? [-+] \s? (?: [\d.(\\{_OPAQUE}] | [A-Za-z]\b )
    | [.,'’:٫٬] \d | \s:\s \d | \s?\|                # 1.5.2, 2:5, |5|
    | \.?\s? [eE][-+]?\d | [\u0300-\u036f]          # 1.e5, a line above
    | \s? (?: \\[A-Za-z] | [{_OPAQUE}π√∞<>] )
    | [A-Za-z]+ \d | \s? (?! [{_UNITS}aAI]\b ) [A-Za-z]\b | [aAI]\b
    )""",
    re.VERBOSE | re.ASCII,
)


# What may be said to equal a number: a calculation, or a name such as f(5), x_1 or the y-intercept.
# Not 2x, -x, x + y or x^2, whose values are not x's, nor the `5, y` of x = 5, y = 6.
_OTHER_SIDE = re.compile(
    rf"""
    [^A-Za-z{_OPAQUE}{_LETTER_POWER}]*+
    | (?: [^-+*/^<>÷\d,;(_{_OPAQUE}{_LETTER_POWER}] | (?<=[A-Za-z])-(?=[A-Za-z]{{2}})
        | [(_] [\w\s,.\\]*+ )*+
    """,
    re.VERBOSE | re.ASCII,
)


def last_number(text: str) -> Fraction | None:
    """The number that a text ends with, whatever else it says before or behind."""
    spans = list(_SPAN.finditer(plain := _plain(text)))
    return _value(plain, spans[-1]) if spans else None


def only_number(text: str) -> Fraction | None:
    """The number that a text is, but for what it is a number of: of `x = 5 apples` 5.

    Of several that are said to be equal, the last one. Otherwise a text of two numbers is none,
    and so is one too long to be read whole.
    """
    if len(text) > _MAX_LENGTH:
        return None
    sides = _plain(text).split("=")
    for i, side in reversed(list(enumerate(sides))):
        spans = list(_SPAN.finditer(side))
        if spans:
            is_factorial = side[spans[0].end() :].lstrip(" )").startswith("!")
            is_equation = not all(map(_OTHER_SIDE.fullmatch, sides[:i] + sides[i + 1 :]))
            if len(spans) > 1 or is_factorial or is_equation:
                return None
            return _value(side, spans[0])
    return None


def written(value: Fraction) -> str:
    """A number as one writes it, the same for equal numbers: -3, 0.25, 1/3."""
    if value.denominator == 1:
        return str(value.numerator)
    for places in range(1, 7):
        if 10**places % value.denominator == 0:
            sign, digits = "-" * (value < 0), str(abs(value) * 10**places).zfill(places + 1)
            return f"{sign}{digits[:-places]}.{digits[-places:]}"
    return str(value)


def _plain(text: str) -> str:
    if len(text) > _MAX_LENGTH:  # and not the rest of a number
        text = text[-_MAX_LENGTH:].lstrip("0123456789.,")
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    text = _POWER_SIGNS.sub(lambda match: "^" + match[0].translate(_SUPERSCRIPTS), text)
    text = _FRACTION_SIGNS.sub(
        lambda match: (f"{match[1]} " if match[1] else "") + _VULGAR[match[2]], text
    )
    for _ in range(_DEPTH):
        before = text
        text = _WORDS.sub(r"\1", text)
        text = _LATEX_POWER.sub(r"^\1", text)
        text = _LATEX_VALUE.sub(_OPAQUE, text)
        text = _LATEX_FRACTION.sub(_fraction, text)
        if text == before:
            break
    text = _UNREAD.sub(_OPAQUE, _OPEN_BOX.sub(" ", text))
    return _ORDINAL.sub("", _UNIT_POWER.sub(_LETTER_POWER, _BRACE.sub("", text)))


def _fraction(match: re.Match[str]) -> str:
    """A fraction of two numbers as one writes it in a line, behind a digit as a mixed number."""
    digit, *parts = match.groups()
    top, bottom = (part.strip() for part in parts if part is not None)
    sign = "-" if top.startswith("-") else ""
    is_plain = all(
        re.fullmatch(_UNSIGNED, x, re.VERBOSE | re.ASCII) for x in (top[len(sign) :], bottom)
    )
    return f"{f'{digit} ' if digit else ''}{f'{top}/{bottom}' if is_plain else _OPAQUE}"


def _value(text: str, span: re.Match[str]) -> Fraction | None:
    if span["top"] is None:
        return None
    before = text[max(0, span.start() - _AROUND) : span.start()]
    behind = text[span.end() : span.end() + _AROUND]
    sign = span["sign"] or ""
    if _BEFORE.search(before) or _BEHIND.match(behind):
        return None
    if sign and _BEFORE_SIGN.search(before) or len(sign) > 1 and _BEFORE_DASH.search(before):
        return None
    if behind.startswith("...") and "." in span["top"]:
        return None
    if "," in span["top"] and before.endswith(("(", "[")) and behind.startswith((")", "]")):
        return None  # two numbers as well as one
    top, bottom = _read(span["top"]), _read(span["bottom"] or "1")
    if top is None or not bottom:
        return None
    value = top / bottom
    power, ten = _exponent(span["power"]), _exponent(span["ten"])
    if power is None or ten is None:
        return None
    if span["power"]:
        if span["bottom"] or abs(power) * len(span["top"]) > _MAX_DIGITS or not top:
            return None
        value = top**power
    if span["whole"]:
        whole = _read(span["whole"])
        if not top < bottom or whole is None:
            return None
        value += whole
    value *= Fraction(10) ** (ten + _SCALES.get((span["scale"] or "").lower(), 0))
    return -value if sign.startswith("-") else value


def _read(digits: str) -> Fraction | None:
    """What `_UNSIGNED` matches."""
    mantissa, _, written_exponent = digits.lower().partition("e")
    exponent = _exponent(written_exponent)
    if len(mantissa) > _MAX_DIGITS or exponent is None:
        return None
    if re.fullmatch(r"\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:[. ]\d{3})+,\d+", mantissa):
        mantissa = re.sub("[. ]", "", mantissa).replace(",", ".")
    return Fraction(re.sub("[ ,'’_]", "", mantissa)) * Fraction(10) ** exponent


def _exponent(digits: str | None) -> int | None:
    """An exponent, 0 where none is written; None where it is more than anyone needs.

    Python itself reads no number of more than 4,300 digits.
    """
    value = int(digits or 0) if len(digits or "") < 6 else _MAX_DIGITS + 1
    return value if abs(value) <= _MAX_DIGITS else None
