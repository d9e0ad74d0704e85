"""nbval, but numbers are compared as numbers: two processors round differently, and a printed 6.21 is 6.20 on another.

Words must be equal. A number may differ by 2 % or by one unit of its last decimal; whole numbers by 2 % (so small ones are
equal), percentages by one point, and what is below a thousandth may be anything below it. A verdict counts where
its interval is farther from 0 than such a difference. `pytest -p tests.notebook_numbers --nbval-lax notebooks`.
"""

import re

from nbval.plugin import IPyNbCell

RELATIVE = 0.02
NEAR = 0.006
"""An end of an interval that is so near to 0 may be on its other side elsewhere."""
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?")
INTERVAL = re.compile(r"\[(-?[\d.]+), (-?[\d.]+)\]")
VERDICT = re.compile(r"does not hold|holds|open")


def same(one, other):
    """Whether two outputs say the same."""
    one, other = ([_settled(line) for line in text.splitlines()] for text in (one, other))
    return len(one) == len(other) and all(map(_same_line, one, other))


def _settled(line):
    """A line without a verdict that rounding could change."""
    ends = [abs(float(end)) for interval in INTERVAL.findall(line) for end in interval]
    return VERDICT.sub("(near)", line) if ends and min(ends) < NEAR else line


def _same_line(one, other):
    if "(near)" in one or "(near)" in other:
        one, other = VERDICT.sub("(near)", one), VERDICT.sub("(near)", other)
    words = [re.sub(r"\s+", " ", NUMBER.sub("#", line)).strip() for line in (one, other)]
    return words[0] == words[1] and all(map(_same_number, NUMBER.findall(one), NUMBER.findall(other)))


def _same_number(one, other):
    a, b = (float(text.rstrip("%").replace(",", "")) for text in (one, other))
    if abs(a) < 1e-3 and abs(b) < 1e-3:
        return True
    unit = 1.0 if "%" in one else 0.0
    mantissa, _, exponent = one.rstrip("%").partition("e")
    if "." in mantissa or exponent:
        unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(a - b) <= max(RELATIVE * max(abs(a), abs(b)), 1.01 * unit)


class Printed(str):
    """An output that equals another which says the same."""

    def __eq__(self, other):
        return isinstance(other, str) and same(str(self), str(other))

    def __ne__(self, other):
        return not self == other

    __hash__ = str.__hash__


def pytest_configure(config):
    IPyNbCell.sanitize = lambda self, output: Printed(output) if isinstance(output, str) else output
