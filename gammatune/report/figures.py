"""Every figure, from stored runs and the frames of studies. Intervals are 95 % paired bootstrap; nothing is smoothed."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from gammatune.policies import POLICIES
from gammatune.records import Round, TurnLog
from gammatune.replay.prices import PriceList
from gammatune.report import style
from gammatune.report.names import arm_names, policy_name, task_name
from gammatune.report.results import results_table
from gammatune.report.show import choose_arm
from gammatune.runs.store import BASELINE, StoredRun
from gammatune.studies.headline import CLAIMS, OVERALL, STARTS, order_tasks
from gammatune.studies.study import ADAPTIVE, TUNABLE, Study

PANELS_PER_ROW = 4
FEWEST_ROUNDS, MOST_ROUNDS = 20, 80
CONTEXTS = (128, 1024)
BOUNDED = ("fixed", "gammatune", "hf_heuristic")
LABEL_GAP = 0.05
TOKEN_COLOURS = {
    "drafted and accepted": "#7bbf9d",
    "the target's token": "#4a5560",
    "drafted and rejected (depth: how many)": "#e58b6b",
}
BAND = 0.3
DEEPEST = 0.5


def draw_run(run: StoredRun, folder: Path) -> list[Path]:
    """Draw every figure that this run has the data for; returns the files written (PNG and SVG)."""
    with matplotlib.rc_context(style.STYLE):
        figures = {
            "speedup_by_task": draw_speedup_by_task(run),
            "speedup_by_start": draw_speedup_by_start(run),
            "gamma_over_rounds": draw_gamma_over_rounds(run),
            "accepted_lengths": draw_accepted_lengths(run),
        }
        return style.save(figures, folder)


def draw_study(study: Study, folder: Path) -> list[Path]:
    """Draw all figures of a study; returns the files written (PNG and SVG)."""
    with matplotlib.rc_context(style.STYLE):
        figures = {
            "headline": draw_headline(study.headline),
            "ranking": draw_ranking(study.ranking),
            "starts": draw_starts(study.starts),
            "best_gamma_by_task": draw_lengths(study.lengths),
            "sensitivity": draw_sensitivity(study.sensitivity),
            "prices": draw_prices(study.curve),
        }
        return style.save(figures, folder)


def draw_bounds(starts: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw `bounds`; returns the files written (PNG and SVG)."""
    with matplotlib.rc_context(style.STYLE):
        return style.save({"bounds": draw_bounded_starts(starts)}, folder)


def new_figure(width: float, height: float, *grid, **shared):
    """A figure of that size in inches and its axes: one, or an array of rows x columns."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(*grid, **shared)


def draw_speedup_by_task(run: StoredRun) -> Figure | None:
    """Speedup per task and arm as bars from 1.0, fixed lengths above adaptive policies. None without a baseline."""
    arms, names = sorted_arms(run), arm_names(run.arms)
    if not run.has_baseline or not arms:
        return None
    tasks = order_tasks(run.questions["task"])
    panels = tasks + [OVERALL] if len(tasks) > 1 else tasks
    columns = min(len(panels), PANELS_PER_ROW)
    rows = -(-len(panels) // columns)
    size = 1.9 + 2.2 * columns, (0.9 + 0.27 * len(arms)) * rows + 0.5
    figure, grid = new_figure(*size, rows, columns, sharex=True, sharey=True, squeeze=False)
    fixed = sum(arm.policy == "fixed" for arm in arms)
    for axis, task in zip(grid.flat, panels, strict=False):
        draw_speedup_bars(axis, arms, results_of(run, task))
        axis.set_title(task_name(task))
        axis.tick_params(axis="y", length=0)
        if 0 < fixed < len(arms):
            axis.axhline(fixed - 0.5, color="#c4c8ce", linewidth=0.8, linestyle=(0, (4, 3)))
    for unused in grid.flat[len(panels) :]:
        unused.remove()
    # The panels share this axis: arm names stand beside the first panel of each row, first arm on top
    grid.flat[0].set_yticks(range(len(arms)), [names[arm.label] for arm in arms])
    grid.flat[0].set_ylim(len(arms) - 0.4, -0.6)
    figure.supxlabel("speedup over autoregressive (whiskers: 95 % interval)", fontsize=9)
    return figure


def sorted_arms(run: StoredRun) -> list:
    """Arms that draft: fixed lengths first, by gamma, then each policy with its starts."""
    rank = {policy: place for place, policy in enumerate(POLICIES)}
    drafting = [arm for arm in run.arms if arm.label != BASELINE]
    return sorted(drafting, key=lambda arm: (rank.get(arm.policy, len(rank)), arm.policy, arm.gamma or 0, arm.label))


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
        text = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 7.5}
        axis.annotate(f"{value:.2f}", (max(whisker_end, 1), place), **text)
    axis.axvline(1, color=style.INK, linewidth=1)
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.2)
    axis.tick_params(labelbottom=True)
    axis.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def draw_speedup_by_start(run: StoredRun) -> Figure | None:
    """Speedup against the gamma that decoding started from; None unless some policy has two starts and a baseline exists."""
    found: dict[str, dict] = {}
    for arm in sorted_arms(run):
        if arm.gamma is not None:
            # One arm per policy and gamma: ablations with equal starts stay out
            found.setdefault(arm.policy, {}).setdefault(arm.gamma, arm)
    if not run.has_baseline or max(map(len, found.values()), default=0) < 2:
        return None
    figure, axis = new_figure(6.4, 3.8)
    gammas = sorted({gamma for arms in found.values() for gamma in arms})
    shift = 0.006 * (gammas[-1] - gammas[0])  # so that whiskers of one gamma stay apart
    for offset, (policy, arms) in zip(np.linspace(-shift, shift, len(found)), found.items(), strict=True):
        values, low, high = results_of(run, OVERALL).loc[[arm.label for arm in arms.values()]].to_numpy().T
        # A percentile interval of few questions may lie beside the value; whiskers have no negative length
        lengths = np.nan_to_num(np.maximum([values - low, high - values], 0))
        look = {"color": style.colour(policy), "marker": style.marker(policy), "markersize": 5}
        look |= {"linewidth": 1.6, "elinewidth": 1, "capsize": 2, "label": policy_name(policy)}
        axis.errorbar(np.array(list(arms)) + offset, values, yerr=lengths, **look)
    axis.set_xticks(gammas)
    axis.axhline(1, color=style.INK, linewidth=1)
    axis.set_xlabel("starting gamma (fixed: the gamma of every round)")
    axis.set_ylabel("speedup over autoregressive")
    figure.legend(loc="outside upper left", ncols=len(found))
    return figure


def draw_gamma_over_rounds(run: StoredRun) -> Figure | None:
    """Gamma asked for, tokens drafted and tokens accepted in each round of one answer. None where no arm drafts."""
    arm = choose_arm(run)
    if arm.label == BASELINE:
        return None
    turn = typical_answer(arm.turns)
    rounds = np.arange(1, len(turn.rounds) + 1)
    planned, drafted, accepted = (np.array([getattr(r, n) for r in turn.rounds]) for n in ("planned", "drafted", "accepted"))
    figure, axis = new_figure(min(11, 3.6 + 0.13 * len(rounds)), 3.2)
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


def draw_accepted_lengths(run: StoredRun) -> Figure | None:
    """Share of rounds by number of accepted tokens, one row per arm. None where no arm drafts."""
    arms, names = sorted_arms(run), arm_names(run.arms)
    if not arms:
        return None
    table, columns = share_table([accepted_shares(run.rounds, arm.label) for arm in arms])
    width = len(columns)
    figure, axis = new_figure(2.6 + 0.46 * width, 1.3 + 0.3 * len(arms))
    axis.imshow(np.ma.masked_equal(table, 0), cmap="Blues", vmin=0, vmax=table.max(), aspect="auto")
    for row, column in zip(*np.nonzero(table >= 0.005), strict=True):
        ink = "white" if table[row, column] > 0.5 * table.max() else style.INK
        axis.text(column, row, f"{100 * table[row, column]:.0f}", ha="center", va="center", fontsize=7.5, color=ink)
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


def draw_headline(headline: pd.DataFrame) -> Figure:
    """Per task, the gain over the mean fixed gamma of the paper's two policies, with what the paper claims as a band."""
    main = headline[(headline["metric"] == "over_mean_fixed") & headline["policy"].isin(CLAIMS)]
    tasks = list(dict.fromkeys(main["task"]))
    figure, axis = new_figure(7.2, 0.7 + 0.42 * len(tasks))
    # The band from the lowest to the highest value that the paper's abstract allows
    low, high = (edge(mean + sign * margin for mean, margin in CLAIMS.values()) for edge, sign in ((min, -1), (max, 1)))
    axis.axvspan(low, high, color="#e6e8eb", zorder=0, label="the paper's claims")
    for shift, policy in zip((-0.14, 0.14), CLAIMS, strict=True):
        rows = main[main["policy"] == policy].set_index("task").loc[tasks]
        spans = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
        look = {"fmt": style.marker(policy), "color": style.colour(policy), "markersize": 5}
        axis.errorbar(rows["value"], np.arange(len(tasks)) + shift, xerr=spans, label=policy_name(policy), **look)
    axis.set_yticks(range(len(tasks)), [task_name(task) for task in tasks])
    axis.invert_yaxis()
    axis.axvline(1, color=style.INK, linewidth=0.8)
    axis.set_xlabel("speed over the mean of fixed gammas from the same starts")
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def draw_ranking(ranking: pd.DataFrame) -> Figure:
    """Every policy with its own defaults and every fixed gamma, fastest on top; the target alone is 1."""
    rows = ranking.rename(columns={"over_autoregressive": "value"})
    figure, axis = new_figure(7.2, 0.8 + 0.24 * len(rows))
    places = np.arange(len(rows))
    spans = np.abs(rows[["over_autoregressive_low", "over_autoregressive_high"]].to_numpy().T - rows["value"].to_numpy())
    colours = [style.colour(name.split(" ")[0]) for name in rows["policy"]]
    axis.barh(places, rows["value"] - 1, left=1, color=colours, height=0.66)
    axis.errorbar(rows["value"], places, xerr=spans, fmt="none", ecolor=style.INK, elinewidth=0.9)
    axis.set_yticks(places, [policy_name(name) for name in rows["policy"]])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.axvline(1, color=style.INK, linewidth=0.8)
    axis.set_xlabel("speed over the target alone (modelled; whiskers: 95 % interval)")
    return figure


def draw_starts(starts: pd.DataFrame) -> Figure:
    """Speed by starting gamma: how much a bad first guess costs."""
    figure, axis = new_figure(6.4, 3.4)
    for policy in ("fixed", *ADAPTIVE):
        rows = starts[starts["policy"] == policy]
        marker = style.marker(policy)
        axis.plot(rows["start"], rows["over_autoregressive"], color=style.colour(policy), marker=marker, markersize=4)
    axis.axhline(1, color=style.INK, linewidth=0.8)
    axis.set_xticks(STARTS)
    axis.set_xlim(0, max(STARTS) + 6)
    # Each line's name stands at its right end; names that would lie on one another move apart
    ends = starts[starts["start"] == max(STARTS)].set_index("policy")["over_autoregressive"].sort_values()
    gap, below = LABEL_GAP * np.ptp(axis.get_ylim()), -np.inf
    for policy, end in ends.items():
        below = max(end, below + gap)
        axis.text(max(STARTS) + 0.5, below, policy_name(policy), color=style.colour(policy), va="center", fontsize=8)
    axis.set_xlabel("starting gamma (fixed: the gamma)")
    axis.set_ylabel("speed over the target alone")
    return figure


def draw_lengths(lengths: pd.DataFrame) -> Figure:
    """Speed by fixed length, a line for each task; the task's best length is marked and named with the task."""
    figure, axis = new_figure(6.8, 3.6)
    for place, (task, rows) in enumerate(lengths[lengths["task"] != OVERALL].groupby("task", sort=False)):
        colour, best = style.LINES[place % len(style.LINES)], rows[rows["best"]].iloc[0]
        label = f"{task_name(task)}: {best['gamma']}"
        axis.plot(rows["gamma"], rows["over_autoregressive"], color=colour, linewidth=1.2, label=label)
        axis.plot(best["gamma"], best["over_autoregressive"], "o", color=colour, markersize=6)
    axis.axhline(1, color=style.INK, linewidth=0.8)
    axis.set_xticks(STARTS)
    axis.set_xlabel("fixed gamma")
    axis.set_ylabel("speed over the target alone")
    axis.legend(title="task: best gamma", loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def draw_sensitivity(sensitivity: pd.DataFrame) -> Figure:
    """One panel per setting, the others at their defaults; the default is marked."""
    fields = list(dict.fromkeys(sensitivity["field"]))
    figure, ((*axes,),) = new_figure(2.1 * len(fields), 2.6, 1, len(fields), sharey=True, squeeze=False)
    for axis, field in zip(axes, fields, strict=True):
        for policy in TUNABLE:
            rows = sensitivity[(sensitivity["policy"] == policy) & (sensitivity["field"] == field)]
            colour, chosen = style.colour(policy), rows[rows["default"]]
            axis.plot(rows["value"], rows["over_autoregressive"], color=colour, marker=".", label=policy_name(policy))
            axis.plot(chosen["value"], chosen["over_autoregressive"], "o", color=colour, markersize=6)
        axis.set_title(field)
    axes[0].set_ylabel("speed over the target alone")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(TUNABLE))
    return figure


def draw_prices(curve: PriceList) -> Figure:
    """What one target forward over k tokens costs, beside k draft steps, at a short and a long context."""
    figure, axis = new_figure(6.0, 3.2)
    tokens = np.arange(1, len(curve.verify) + 1)
    for context, dash in zip(CONTEXTS, ("-", "--"), strict=True):
        target = [curve.verify_price(k).at(context) for k in tokens]
        draft = tokens * curve.blind.step.at(context)
        target_line, draft_line = f"target, k tokens at once, context {context}", f"draft, k steps, context {context}"
        axis.plot(tokens, target, dash, color=style.colour("gammatune"), label=target_line)
        axis.plot(tokens, draft, dash, color=style.colour("gammatune_plus"), label=draft_line)
    axis.set_xlabel("k")
    axis.set_ylabel("milliseconds")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def draw_bounded_starts(starts: pd.DataFrame) -> Figure:
    """Speed by start at each cost ratio: the estimate as a line, the bounds of the unknown positions as a band."""
    ratios = list(dict.fromkeys(starts["ratio"]))
    figure, ((*axes,),) = new_figure(max(5.4, 2.7 * len(ratios)), 3.2, 1, len(ratios), squeeze=False)
    for axis, ratio in zip(axes, ratios, strict=True):
        for policy in BOUNDED:
            rows = starts[(starts["ratio"] == ratio) & (starts["policy"] == policy)]
            ink = style.colour(policy)
            axis.fill_between(rows["start"], rows["lower"], rows["upper"], color=ink, alpha=0.18, linewidth=0)
            axis.plot(rows["start"], rows["mean"], color=ink, marker=".", label=policy_name(policy))
        axis.axhline(1, color=style.INK, linewidth=0.8)
        axis.set_title(f"T_target / T_draft = {ratio:g}")
        axis.set_xlabel("starting gamma")
    axes[0].set_ylabel("speed over the target alone")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(BOUNDED))
    return figure


def draw_lanes(lanes: dict[str, list[Round]], tokens: int = 120) -> Figure:
    """What several policies do with one answer: lane name -> all rounds of that answer, from its first token on.

    Along x the answer's tokens, the first `tokens` at most. Each round is its accepted tokens and the target's token; below
    that token hang the rejected ones, as deep as they are many, to one scale for all lanes. The counts beside a lane are of
    the whole answer.
    """
    figure, axis = new_figure(9, 0.9 + 0.62 * len(lanes))
    scale = DEEPEST / max(1, *(r.drafted - r.accepted for rounds in lanes.values() for r in rounds))
    for lane, rounds in enumerate(lanes.values()):
        draw_lane(axis, lane, rounds, scale)
    rejected = {name: sum(r.drafted - r.accepted for r in rounds) for name, rounds in lanes.items()}
    labels = [f"{name}\n{len(rounds)} rounds, {rejected[name]} rejected" for name, rounds in lanes.items()]
    axis.set_yticks([lane + BAND / 2 for lane in range(len(lanes))], labels)
    axis.set_ylim(len(lanes) - 0.1, -0.1)
    axis.set_xlim(0, min(tokens, *(sum(r.emitted for r in rounds) for rounds in lanes.values())))
    axis.set_xlabel("token of the answer")
    axis.grid(False)
    handles = [Patch(color=colour, label=meaning) for meaning, colour in TOKEN_COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def draw_lane(axis, lane: int, rounds: list[Round], scale: float) -> None:
    edges = {"edgecolor": "white", "linewidth": 0.4}
    accepted_colour, target_colour, rejected_colour = TOKEN_COLOURS.values()
    starts = [r.context - rounds[0].context for r in rounds]
    accepted = [(start, r.accepted) for start, r in zip(starts, rounds, strict=True)]
    target = [(start + r.accepted, r.emitted - r.accepted) for start, r in zip(starts, rounds, strict=True)]
    axis.broken_barh(accepted, (lane, BAND), facecolors=accepted_colour, **edges)
    axis.broken_barh(target, (lane, BAND), facecolors=target_colour, **edges)
    depths = [scale * (r.drafted - r.accepted) for r in rounds]
    places = [place for place, _ in target]
    axis.bar(places, depths, bottom=lane + BAND + 0.03, width=1, align="edge", color=rejected_colour, **edges)
