"""How numbers are written in tables, advice and pages. One that there is not is NaN in a frame and null in JSON."""

import math

ABSENT = "-"


def absent(value: float | None) -> bool:
    return value is None or math.isnan(value)


def number(value: float | None, form: str = ".2f", instead: str = ABSENT) -> str:
    """instead: what stands for a number that there is not."""
    return instead if absent(value) else format(value, form)


def interval(low: float | None, high: float | None, form: str = "[{:.2f}, {:.2f}]", instead: str = ABSENT) -> str:
    return instead if absent(low) else form.format(low, high)


def plus_minus(mean: float, std: float) -> str:
    return number(mean) if absent(std) else f"{mean:.2f} ± {std:.2f}"
