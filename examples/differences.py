"""Differences between experiments: every measure, intervals, tests, and a correction for their number.

Runs with the same seed are a pair: they begin with the same weights and batches. A family is everything that
is compared at once, such as one table of a page; a difference holds if its p stays below 5 % after Holm's
correction for the number of tests in its family.

Source: Student 1908, with scipy; Holm 1979.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from report import MEASURES

ALPHA = 0.05
DIGITS = 4
CLAIM = "after the correction"  # ends the sentence of a difference that holds, and no other

Rows = Mapping[str, Mapping[str, Any]]  # experiment -> measure -> values, see `report.mean_sd`


@dataclass(frozen=True)
class Difference:
    """Hold a difference in one measure over runs.

    Args:
        name: what is compared, such as "kept - new".
        each: the difference in each run.
        of: the mean of what is subtracted.
        low, high: the ends of the 95 % interval; like the next two, None for a single run.
        p: of the test that the difference is 0.
        corrected: p after the correction.
    """

    name: str
    measure: str
    each: tuple[float, ...]
    of: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected: float | None = None

    @property
    def mean(self) -> float:
        """The mean difference."""
        return statistics.mean(self.each)

    @property
    def holds(self) -> bool:
        """Whether it is still significant after the correction."""
        return self.corrected is not None and self.corrected < ALPHA

    @property
    def cell(self) -> str:
        """The difference with interval and p, in bold if it holds: for a table."""
        if self.low is None or self.high is None or self.p is None:
            return f"{self.mean:+.{DIGITS}f}"
        interval = f"({self.low:+.{DIGITS}f} to {self.high:+.{DIGITS}f})"
        text = f"{self.mean:+.{DIGITS}f} {interval}, {p_text(self.p)}"
        return f"**{text}**" if self.holds else text

    @property
    def claim(self) -> str:
        """The sentence about a difference that holds."""
        assert self.corrected is not None
        n_alike = sum(math.copysign(1, value) == math.copysign(1, self.mean) for value in self.each)
        share = f" ({100 * self.mean / self.of:+.1f} %)" if self.of else ""
        return (
            f"{self.name}: {self.measure} {self.mean:+.{DIGITS}f}{share}, of this sign in {n_alike} of "
            f"{len(self.each)} seeds; {p_text(self.corrected)} {CLAIM}"
        )


def p_text(p: float) -> str:
    """Return p as text: "p = 0.43", "p = 0.0004", "p < 0.0001"; near 5 %, on the right side of it."""
    if p < 1e-4:
        return "p < 0.0001"
    return f"p = {p:.2f}" if p >= 0.01 and f"{p:.2f}" != f"{ALPHA:.2f}" else f"p = {p:.4f}"


def paired(
    rows: Rows, pairs: Mapping[str, tuple[str, str]], measures: Sequence[str] = MEASURES
) -> list[Difference]:
    """Return the family of the differences a - b of paired runs, in every measure.

    Args:
        pairs: name -> experiments (a, b), whose runs have the same seeds. If one of them has a single run, it
            is compared with the first of the other.

    Raises: ValueError if the numbers of their runs differ in any other way.
    """
    found = []
    for name, (a, b) in pairs.items():
        for measure in measures:
            ours, others = (rows[experiment][measure]["each"] for experiment in (a, b))
            n = min(len(ours), len(others))
            if len(ours) != len(others) and n != 1:
                raise ValueError(f"{name}: {a} has {len(ours)} runs and {b} {len(others)}: expected pairs")
            each = tuple(x - y for x, y in zip(ours[:n], others[:n], strict=True))
            difference = Difference(name, measure, each, statistics.mean(others[:n]))
            found.append(_tested(difference, 1 / len(each)))
    return corrected(found)


def beside(rows: Rows, published: Mapping[str, Mapping[str, float]]) -> list[Difference]:
    """Return the family of the differences ours - published, in every measure that was published.

    A published figure is one run. The question is whether it could be one more of ours: the interval is that
    of the difference between our mean and one run of the same kind (a prediction interval).
    """
    found = []
    for name, figures in published.items():
        for measure, figure in figures.items():
            each = tuple(value - figure for value in rows[name][measure]["each"])
            found.append(_tested(Difference(name, measure, each, figure), 1 + 1 / len(each)))
    return corrected(found)


def _tested(difference: Difference, factor: float) -> Difference:
    """Return it with interval and p by Student's t: the squared standard error is `factor` * variance."""
    from scipy.stats import t

    n = len(difference.each)
    if n < 2:
        return difference
    mean, error = difference.mean, statistics.stdev(difference.each) * math.sqrt(factor)
    half = float(t.ppf(1 - ALPHA / 2, n - 1)) * error
    # Without an error, the difference is the same in each run.
    p = 2 * float(t.sf(abs(mean) / error, n - 1)) if error else float(mean == 0)
    return replace(difference, low=mean - half, high=mean + half, p=p)


def corrected(family: Sequence[Difference]) -> list[Difference]:
    """Return a family's differences with p after Holm's correction for the number of its tests."""
    order = sorted((d.p, i) for i, d in enumerate(family) if d.p is not None)
    found, largest = list(family), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, p * (len(order) - rank))
        found[i] = replace(family[i], corrected=min(1.0, largest))
    return found


def claims(family: Sequence[Difference]) -> list[str]:
    """Return the sentences about the differences that hold in a family."""
    return [difference.claim for difference in family if difference.holds]


def wrong_claims(page: str, families: Sequence[Sequence[Difference]]) -> list[str]:
    """Return the differences that hold but are not on a page, and the page's claims that do not hold."""
    true = [claim for family in families for claim in claims(family)]
    said = re.findall(rf"^- (.+ {CLAIM})\.?$", page, re.MULTILINE)
    omitted = [f"omitted: {claim}" for claim in true if claim not in said]
    return omitted + [f"does not hold: {claim}" for claim in said if claim not in true]


def table(family: Sequence[Difference], head: str) -> str:
    """Return a family as markdown: a row for each comparison, a column for each measure."""
    cells: dict[str, dict[str, str]] = {}
    for difference in family:
        cells.setdefault(difference.name, {})[difference.measure] = difference.cell
    measures = list(dict.fromkeys(difference.measure for difference in family))
    lines = [f"| {head} | {' | '.join(measures)} |", "|" + "---|" * (len(measures) + 1)]
    lines += [
        f"| {name} | {' | '.join(row.get(measure, '') for measure in measures)} |"
        for name, row in cells.items()
    ]
    return "\n".join(lines)


def told(family: Sequence[Difference], where: str = " (bold above)") -> str:
    """Return the differences that hold in a family as a list, or that none does; and how they were tested.

    Args:
        where: how the family's table marks differences that hold; "" if there is no table.
    """
    n_tests = sum(difference.p is not None for difference in family)
    lines = [f"- {claim}" for claim in claims(family)]
    if not lines:
        return f"None of the {n_tests} tested differences holds after Holm's correction."
    return f"What holds after Holm's correction for {n_tests} tests{where}:\n\n" + "\n".join(lines)
