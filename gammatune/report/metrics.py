"""Every number that a report prints, each definition under its own name; docs/metrics.md has the same list for readers.

`turns`, `questions` and `rounds` are (parts of) the frames of gammatune.runs.frames; each function takes the rows of
one arm. A ratio whose denominator is zero (acceptance of an arm that never drafts) is NaN.
"""

import numpy as np
import pandas as pd

TIME_PARTS = ("prefill", "draft", "verify", "policy", "other")


def ratio(numerator: float, denominator: float) -> float:
    return float(numerator) / float(denominator) if denominator else float("nan")


def acceptance_rate(rows: pd.DataFrame) -> float:
    """sum accepted / sum drafted, pooled over all rounds: long answers weigh more (vLLM's pooled counter)."""
    return ratio(rows["accepted"].sum(), rows["drafted"].sum())


def acceptance_rate_per_question(questions: pd.DataFrame) -> float:
    """Mean over questions of (sum accepted / sum drafted) of that question: every question weighs the same.

    Questions that drafted nothing are left out.
    """
    sums = questions.groupby(["task", "question_id"])[["accepted", "drafted"]].sum()
    drafted = sums[sums["drafted"] > 0]
    return float((drafted["accepted"] / drafted["drafted"]).mean())


def mean_accepted_tokens(turns: pd.DataFrame) -> float:
    """sum emitted / number of rounds, pooled over rounds: Spec-Bench's "#Mean accepted tokens", 1 for the target alone.

    The target's own token of each round counts; the last, shortened round of an answer counts too.
    """
    return ratio(turns["emitted"].sum(), turns["rounds"].sum())


def tokens_per_target_forward(turns: pd.DataFrame) -> float:
    """tokens / (rounds + one prefill forward per turn): what one pass of the target yields, prefill included.

    A little under 1 for the target alone; the difference to mean_accepted_tokens is what short answers lose.
    """
    return ratio(turns["tokens"].sum(), turns["rounds"].sum() + turns["turns"].sum())


def wasted_draft_fraction(turns: pd.DataFrame) -> float:
    """(drafted - accepted) / drafted: tokens that the target rejected. Equals 1 - acceptance_rate."""
    return ratio(turns["drafted"].sum() - turns["accepted"].sum(), turns["drafted"].sum())


def wasted_forward_fraction(turns: pd.DataFrame) -> float:
    """(draft forwards - accepted) / draft forwards: draft passes that gave no token.

    Larger than wasted_draft_fraction where a policy drops the token it stopped at: that pass was paid for, too.
    """
    return ratio(turns["forwards"].sum() - turns["accepted"].sum(), turns["forwards"].sum())


def conditional_acceptance(rounds: pd.DataFrame) -> pd.DataFrame:
    """Per position i (from 1) of a block: the chance that draft token i is accepted, given that all before it were.

    accepted_i = rounds with accepted >= i, reached_i = rounds with drafted >= i and accepted >= i - 1; frame indexed by
    position with columns reached, accepted, rate = accepted_i / reached_i. Source: NVIDIA specdec_bench.
    """
    drafted, accepted = rounds["drafted"].to_numpy(), rounds["accepted"].to_numpy()
    positions = range(1, int(drafted.max(initial=0)) + 1)
    counts = [(i, ((drafted >= i) & (accepted >= i - 1)).sum(), (accepted >= i).sum()) for i in positions]
    table = pd.DataFrame(counts, columns=["position", "reached", "accepted"]).set_index("position")
    table = table[table["reached"] > 0]
    return table.assign(rate=table["accepted"] / table["reached"])


def question_speeds(questions: pd.DataFrame) -> pd.Series:
    """tokens/s of each question, indexed by (task, question_id): sum tokens / sum wall time over its turns.

    With several repetitions, the mean over them.
    """
    return questions.groupby(["task", "question_id"], sort=False)["tokens_per_second"].mean()


def tokens_per_second(questions: pd.DataFrame) -> float:
    """Mean over questions of question_speeds: Spec-Bench's speed of a task (and, over all questions, "overall")."""
    return float(question_speeds(questions).mean())


def speedup(questions: pd.DataFrame, baseline: pd.DataFrame) -> float:
    """tokens_per_second of the arm / tokens_per_second of the baseline on the same questions: Spec-Bench's speedup.

    A ratio of means, not a mean of ratios. With a fixed-gamma arm as the baseline: speedup over that gamma.
    """
    return ratio(tokens_per_second(questions), tokens_per_second(baseline))


def speedup_total(questions: pd.DataFrame, baseline: pd.DataFrame) -> float:
    """(sum tokens / sum wall time) of the arm / the same of the baseline: the saving on the whole batch of work.

    Long answers weigh more than in `speedup`.
    """
    return ratio(total_rate(questions), total_rate(baseline))


def total_rate(questions: pd.DataFrame) -> float:
    """sum tokens / sum wall time, in tokens per second."""
    return ratio(1000 * questions["tokens"].sum(), questions["wall_ms"].sum())


def speedup_spread(questions: pd.DataFrame, baseline: pd.DataFrame) -> float:
    """Sample standard deviation (ddof 1) over questions of (tokens/s of the arm / tokens/s of the baseline)."""
    return float((question_speeds(questions) / question_speeds(baseline)).std(ddof=1))


def gain_over_mean_fixed(questions: pd.DataFrame, policy: str) -> float:
    """mean over starting gammas of the policy's tokens/s / mean over the same gammas of fixed tokens/s.

    This project's reading of the paper's headline (Gautam et al. 2025, arXiv 2504.00030): what a policy gains over a
    fixed gamma chosen blindly. `questions` holds all arms with their `policy` and `gamma`. NaN without two common gammas.
    """
    speeds = questions.groupby(["policy", "gamma", "label"]).apply(tokens_per_second, include_groups=False)
    by_gamma = speeds.groupby(["policy", "gamma"]).mean().unstack("policy")
    if not {policy, "fixed"} <= set(by_gamma.columns):
        return float("nan")
    common = by_gamma[[policy, "fixed"]].dropna()
    return float(common[policy].mean() / common["fixed"].mean()) if len(common) >= 2 else float("nan")


def time_split(turns: pd.DataFrame) -> dict[str, float]:
    """Shares of wall time: prefill, draft, verify, policy, and other (what no clock of the loop covers). They sum to 1.

    draft, verify, policy and other are NaN where the run did not time the parts of its rounds.
    """
    wall = turns["wall_ms"].sum()
    measured = {part: ratio(turns[f"{part}_ms"].sum(), wall) for part in ("prefill", "draft", "verify", "policy")}
    if measured["verify"] == 0:
        return {part: measured["prefill"] if part == "prefill" else float("nan") for part in TIME_PARTS}
    return measured | {"other": 1 - sum(measured.values())}


def quantiles(values: pd.Series) -> dict[str, float]:
    """Quartiles, and the 99th percentile only from 1,000 values on: below that it is little else than the maximum."""
    levels = [25, 50, 75] + ([99] if len(values) >= 1000 else [])
    return {f"p{level}": float(np.percentile(values, level)) for level in levels}


# The metrics of one arm on its own, in the order of the columns of details.csv
PER_ARM = (
    tokens_per_second,
    mean_accepted_tokens,
    tokens_per_target_forward,
    acceptance_rate,
    acceptance_rate_per_question,
    wasted_draft_fraction,
    wasted_forward_fraction,
)
