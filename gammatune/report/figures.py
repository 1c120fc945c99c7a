"""The figures of one run, drawn from its stored files. Intervals are 95 % paired bootstrap; nothing is smoothed."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gammatune.policies import POLICIES
from gammatune.records import TurnLog
from gammatune.report import style
from gammatune.report.names import OVERALL, arm_names, order_tasks, policy_name, task_name
from gammatune.report.results import results_table
from gammatune.report.show import choose_arm
from gammatune.runs.store import BASELINE, StoredRun

PANELS_PER_ROW = 4
FEWEST_ROUNDS, MOST_ROUNDS = 20, 80


def draw_all(run: StoredRun, folder: Path) -> list[Path]:
    """Draw every figure that this run has the data for; returns the files written (PNG and SVG)."""
    with matplotlib.rc_context(style.STYLE):
        drawn = {
            "speedup_by_task": draw_speedup_by_task(run),
            "speedup_by_start": draw_speedup_by_start(run),
            "gamma_over_rounds": draw_gamma_over_rounds(run),
            "accepted_lengths": draw_accepted_lengths(run),
        }
        figures = {name: figure for name, figure in drawn.items() if figure is not None}
        return [file for name, figure in figures.items() for file in style.save(figure, Path(folder), name)]


def draw_speedup_by_task(run: StoredRun):
    """Speedup per task and arm as bars from 1.0, adaptive policies above fixed lengths. None without a baseline."""
    arms = sorted_arms(run)
    if not run.has_baseline or not arms:
        return None
    tasks = order_tasks(run.questions["task"])
    panels = tasks + [OVERALL] if len(tasks) > 1 else tasks
    figure, axes = panel_grid(len(panels), height=0.9 + 0.27 * len(arms))
    for axis, task in zip(axes, panels, strict=True):
        draw_speedup_bars(axis, arms, results_of(run, task))
        axis.set_title(task_name(task))
    label_arms(axes, arms, arm_names(run.arms))
    figure.supxlabel("speedup over autoregressive (whiskers: 95 % interval)", fontsize=9)
    return figure


def sorted_arms(run: StoredRun) -> list:
    """Arms that draft: fixed lengths first, by gamma, then each policy with its starts."""
    order = list(POLICIES)
    rank = {policy: order.index(policy) if policy in order else len(order) for policy in {arm.policy for arm in run.arms}}
    drafting = [arm for arm in run.arms if arm.label != BASELINE]
    return sorted(drafting, key=lambda arm: (rank[arm.policy], arm.policy, arm.gamma or 0, arm.label))


def panel_grid(count: int, height: float):
    """`count` panels in rows of four with shared axes; returns the figure and the flat list of its panels."""
    columns = min(count, PANELS_PER_ROW)
    rows = -(-count // columns)
    size = 1.9 + 2.2 * columns, height * rows + 0.5
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for unused in grid.flat[count:]:
        unused.remove()
    return figure, list(grid.flat[:count])


def results_of(run: StoredRun, task: str) -> pd.DataFrame:
    """Speedup with its interval, indexed by arm label."""
    results = results_table(run)
    return results[results["task"] == task].set_index("label")[["speedup", "speedup_low", "speedup_high"]]


def draw_speedup_bars(axis, arms, results: pd.DataFrame) -> None:
    for place, arm in enumerate(arms):
        value, low, high = results.loc[arm.label]
        axis.barh(place, value - 1, left=1, height=0.66, color=style.colour(arm.policy))
        whisker_end = value if np.isnan(high) else high
        if not np.isnan(low):
            axis.plot([low, high], [place, place], color=style.INK, linewidth=1.2, solid_capstyle="butt")
        axis.annotate(
            f"{value:.2f}",
            (max(whisker_end, 1), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )
    axis.axvline(1, color=style.INK, linewidth=1)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.2)
    axis.tick_params(labelbottom=True)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def label_arms(axes, arms, names: dict[str, str]) -> None:
    """Arm names beside the first panel of each row, first arm on top, and a gap line between fixed and adaptive arms."""
    axes[0].set_yticks(range(len(arms)), [names[arm.label] for arm in arms])
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    fixed = sum(arm.policy == "fixed" for arm in arms)
    for axis in axes:
        axis.tick_params(axis="y", length=0)
        if 0 < fixed < len(arms):
            axis.axhline(fixed - 0.5, color="#c4c8ce", linewidth=0.8, linestyle=(0, (4, 3)))


def draw_speedup_by_start(run: StoredRun):
    """Speedup against the gamma that decoding started from; None unless some policy has two starts and a baseline exists."""
    families = list(starts(run).values())
    if not run.has_baseline or max(map(len, families), default=0) < 2:
        return None
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axis = figure.subplots()
    gammas = sorted({arm.gamma for arms in families for arm in arms})
    shift = 0.006 * (gammas[-1] - gammas[0])
    for offset, arms in zip(np.linspace(-shift, shift, len(families)), families, strict=True):
        draw_family(axis, results_of(run, OVERALL), arms, offset)
    axis.set_xticks(gammas)
    axis.axhline(1, color=style.INK, linewidth=1)
    axis.set_xlabel("starting gamma (fixed: the gamma of every round)")
    axis.set_ylabel("speedup over autoregressive")
    figure.legend(loc="outside upper left", ncols=len(families))
    return figure


def starts(run: StoredRun) -> dict[str, list]:
    """Arms with a gamma, by policy, in order of gamma; one arm per gamma (ablations with equal starts stay out)."""
    found: dict[str, dict] = {}
    for arm in sorted_arms(run):
        if arm.gamma is not None:
            found.setdefault(arm.policy, {}).setdefault(arm.gamma, arm)
    return {policy: list(arms.values()) for policy, arms in found.items()}


def draw_family(axis, results: pd.DataFrame, arms, offset: float) -> None:
    """One line with whiskers for the arms of one policy, shifted along x so that whiskers stay apart."""
    values, low, high = (results.loc[[arm.label for arm in arms], column].to_numpy() for column in results)
    # A percentile interval of few questions may lie beside the value; whiskers have no negative length.
    lengths = np.maximum([values - low, high - values], 0)
    policy = arms[0].policy
    axis.errorbar(
        [arm.gamma + offset for arm in arms],
        values,
        yerr=np.nan_to_num(lengths),
        color=style.colour(policy),
        marker=style.marker(policy),
        markersize=5,
        linewidth=1.6,
        elinewidth=1,
        capsize=2,
        label=policy_name(policy),
    )


def draw_gamma_over_rounds(run: StoredRun):
    """Gamma asked for, tokens drafted and tokens accepted in each round of one answer. None where no arm drafts."""
    arm = choose_arm(run)
    if arm.label == BASELINE:
        return None
    turn = typical_answer(arm.turns)
    rounds = np.arange(1, len(turn.rounds) + 1)
    planned, drafted, accepted = (np.array([getattr(r, n) for r in turn.rounds]) for n in ("planned", "drafted", "accepted"))
    figure = Figure(figsize=(min(11, 3.6 + 0.13 * len(rounds)), 3.2), layout="constrained")
    axis = figure.subplots()
    axis.bar(rounds, drafted, width=0.8, color="#dfe3e8", label="drafted, rejected")
    axis.bar(rounds, accepted, width=0.8, color="#56b4e9", label="drafted, accepted")
    edges = np.append(rounds - 0.5, rounds[-1] + 0.5)
    axis.stairs(planned, edges, baseline=None, color=style.colour(arm.policy), linewidth=1.8, label="gamma of the policy")
    axis.set(xlabel="round", ylabel="tokens", xlim=(0.3, len(rounds) + 0.7))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axis.grid(axis="x", visible=False)
    place = f"question {turn.question_id} ({task_name(turn.task)}), turn {turn.turn + 1}"
    axis.set_title(f"{arm_names(run.arms)[arm.label]}, {place}", loc="left")
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def typical_answer(turns: list[TurnLog]) -> TurnLog:
    """The answer of median acceptance among those long enough to show something and short enough for legible bars."""
    legible = [turn for turn in turns if FEWEST_ROUNDS <= len(turn.rounds) <= MOST_ROUNDS]
    ranked = sorted(legible or turns, key=lambda turn: len(turn.output_ids) / len(turn.rounds))
    return ranked[len(ranked) // 2]


def draw_accepted_lengths(run: StoredRun):
    """Share of rounds by number of accepted tokens, one row per arm. None where no arm drafts."""
    arms = sorted_arms(run)
    if not arms:
        return None
    table, columns = share_table([accepted_shares(run.rounds, arm.label) for arm in arms])
    width = len(columns)
    figure = Figure(figsize=(2.6 + 0.46 * width, 1.3 + 0.3 * len(arms)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.ma.masked_equal(table, 0), cmap="Blues", vmin=0, vmax=table.max(), aspect="auto")
    for row, column in zip(*np.nonzero(table >= 0.005), strict=True):
        ink = "white" if table[row, column] > 0.5 * table.max() else style.INK
        axis.text(column, row, f"{100 * table[row, column]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
    names = arm_names(run.arms)
    axis.set_yticks(range(len(arms)), [names[arm.label] for arm in arms])
    axis.set_xticks(range(width), columns)
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    axis.set_xlabel("accepted tokens in a round (numbers: % of rounds)")
    return figure


def share_table(shares: list[np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """Arms x lengths, and the name of each column; lengths that no arm reaches in 1 % of its rounds share the last one."""
    longest = max(len(share) for share in shares)
    table = np.stack([np.pad(share, (0, longest - len(share))) for share in shares])
    cut = int(np.flatnonzero(table.max(axis=0) >= 0.01)[-1]) + 1
    columns = [str(length) for length in range(cut)]
    if cut == longest:
        return table, columns
    return np.column_stack([table[:, :cut], table[:, cut:].sum(axis=1)]), [*columns, f"{cut}+"]


def accepted_shares(rounds: pd.DataFrame, label: str) -> np.ndarray:
    """Share of rounds with 0, 1, 2, ... accepted tokens."""
    counts = np.bincount(rounds.loc[rounds["label"] == label, "accepted"])
    return counts / counts.sum()
