"""The longest rows that fit, by a few dry runs."""

from __future__ import annotations

import functools
from collections.abc import Callable

from longspan.plan.predict import Subject, predict

STEP = 64
MOST = 1 << 22  # a search ends here: rows of four million tokens
FIRST = 4096  # dry runs of short rows are quick, and above some segments of rows peaks are affine in the length


def largest_length(subject: Subject, budget: int) -> int | None:
    """The largest multiple of 64 tokens whose predicted peak is at most `budget` bytes; None when no row fits.

    The last dry runs confirm it: this length fits, 64 tokens more do not (or the recipe cannot have them, or MOST is
    reached).
    """

    @functools.cache
    def peak(units: int) -> int | None:
        try:
            longer = subject.replace({"data.length": units * STEP})
        except ValueError:
            return None  # the attention method has no rows of this length
        return predict(longer).peak

    start = FIRST // STEP
    if peak(start) is None:
        start = max(1, min(subject.recipe.data.length, MOST) // STEP)
    found = search(peak, budget, start, MOST // STEP)
    return None if found is None else found * STEP


def search(peak: Callable[[int], int | None], budget: int, start: int, most: int) -> int | None:
    """The largest n in [1, most] with peak(n) <= budget, for a rising peak that is nearly affine in long stretches."""
    known: dict[int, int | None] = {}

    def fits(n: int) -> bool:
        if n not in known:
            known[n] = peak(n)
        value = known[n]
        return value is not None and value <= budget

    low, high = (start, most + 1) if fits(start) else (0, start)
    if low == start and low < most and not fits(min(2 * start, most)):
        high = min(2 * start, most)
    elif low == start:
        low = min(2 * start, most)
    while high - low > 1:
        guess = _crossing({n: p for n, p in known.items() if p is not None}, budget, low, high)
        low, high = (guess, high) if fits(guess) else (low, guess)
        if high - low > 1 and guess in (low, high):
            beside = guess + 1 if guess == low else guess - 1  # the line is often exact: look at the neighbour
            if low < beside < high:
                low, high = (beside, high) if fits(beside) else (low, beside)
    return low or None


def _crossing(known: dict[int, int], budget: int, low: int, high: int) -> int:
    """Where the line through the two nearest figures reaches the budget, strictly between low and high."""
    nearest = sorted(known, key=lambda n: min(abs(n - low), abs(n - high)))[:2]
    middle = (low + high) // 2
    if len(nearest) == 2 and known[nearest[0]] != known[nearest[1]]:
        (a, b) = nearest
        slope = (known[b] - known[a]) / (b - a)
        middle = int(a + (budget - known[a]) / slope) if slope > 0 else middle
    return min(max(middle, low + 1), high - 1)
