"""The best fixed gamma of a tuning split, frozen: the baseline that an adaptive rule has to beat.

Comparing a rule with the best fixed gamma in hindsight is too strict, with a gamma out of the air too kind. An independent
study (Learning to Draft, arXiv 2603.01639, tables 1 and 5) found a grid-searched static setting ahead of most adaptive
rules. Tune on other questions than those that are reported: record them, let `python -m gammatune headline TABLE` name the
best fixed gamma by replay, and write it here.
"""

from dataclasses import dataclass

from gammatune.policies.fixed import Fixed


@dataclass
class TunedFixed(Fixed):
    """gamma: 1 was found best on the embedded pair; another pair or machine wants its own."""

    gamma: int = 1
