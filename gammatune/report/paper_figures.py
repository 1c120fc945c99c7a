"""The figures of a study, from the same frames as its tables. Modelled speeds; intervals are 95 % paired bootstrap."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gammatune.report import style
from gammatune.report.names import policy_name, task_name
from gammatune.studies.headline import CLAIMS, STARTS
from gammatune.studies.paper import ADAPTIVE, TUNABLE, Study

CONTEXTS = (128, 1024)
BOUNDED = ("fixed", "gammatune", "hf_heuristic")
LABEL_GAP = 0.05


def draw_study(study: Study, folder: Path) -> list[Path]:
    """Draw all figures; returns the files written (PNG and SVG)."""
    with matplotlib.rc_context(style.STYLE):
        figures = {
            "headline": draw_headline(study),
            "ranking": draw_ranking(study.ranking),
            "starts": draw_starts(study.starts),
            "sensitivity": draw_sensitivity(study.sensitivity),
            "prices": draw_prices(study),
        }
        return [file for name, figure in figures.items() for file in style.save(figure, folder, name)]


def draw_headline(study: Study) -> Figure:
    """Per task, the gain over the mean fixed gamma of the paper's two policies, with what the paper claims as a band."""
    main = study.headline[(study.headline["metric"] == "over_mean_fixed") & study.headline["policy"].isin(CLAIMS)]
    tasks = list(dict.fromkeys(main["task"]))
    figure = Figure(figsize=(7.2, 0.7 + 0.42 * len(tasks)), layout="constrained")
    axis = figure.subplots()
    draw_claims(axis)
    for shift, policy in zip((-0.14, 0.14), CLAIMS, strict=True):
        rows = main[main["policy"] == policy].set_index("task").loc[tasks]
        draw_dots(axis, rows, np.arange(len(tasks)) + shift, policy)
    axis.set_yticks(range(len(tasks)), [task_name(task) for task in tasks])
    axis.invert_yaxis()
    axis.axvline(1, color=style.INK, linewidth=0.8)
    axis.set_xlabel("speed over the mean of fixed gammas from the same starts")
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure


def draw_claims(axis) -> None:
    """The band from the lowest to the highest value that the paper's abstract allows."""
    low = min(mean - spread for mean, spread in CLAIMS.values())
    high = max(mean + spread for mean, spread in CLAIMS.values())
    axis.axvspan(low, high, color="#e6e8eb", zorder=0, label="the paper's claims")


def draw_dots(axis, rows: pd.DataFrame, places: np.ndarray, policy: str) -> None:
    spans = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
    marker = style.marker(policy)
    axis.errorbar(
        rows["value"], places, xerr=spans, fmt=marker, color=style.colour(policy), markersize=5, label=policy_name(policy)
    )


def draw_ranking(ranking: pd.DataFrame) -> Figure:
    """Every policy with its own defaults and every fixed gamma, fastest on top; the target alone is 1."""
    rows = ranking.rename(columns={"over_autoregressive": "value"})
    figure = Figure(figsize=(7.2, 0.8 + 0.24 * len(rows)), layout="constrained")
    axis = figure.subplots()
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
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    for policy in ("fixed", *ADAPTIVE):
        rows = starts[starts["policy"] == policy]
        marker = style.marker(policy)
        axis.plot(rows["start"], rows["over_autoregressive"], color=style.colour(policy), marker=marker, markersize=4)
    axis.axhline(1, color=style.INK, linewidth=0.8)
    axis.set_xticks(STARTS)
    axis.set_xlim(0, max(STARTS) + 6)
    label_ends(axis, starts[starts["start"] == max(STARTS)].set_index("policy")["over_autoregressive"])
    axis.set_xlabel("starting gamma (fixed: the gamma)")
    axis.set_ylabel("speed over the target alone")
    return figure


def label_ends(axis, ends: pd.Series) -> None:
    """Name each line at its right end; names that would lie on one another move apart."""
    gap = LABEL_GAP * np.ptp(axis.get_ylim())
    below = -np.inf
    for policy, end in ends.sort_values().items():
        below = max(end, below + gap)
        axis.text(max(STARTS) + 0.5, below, policy_name(policy), color=style.colour(policy), va="center", fontsize=8)


def draw_sensitivity(sensitivity: pd.DataFrame) -> Figure:
    """One panel per setting, the others at their defaults; the default is marked."""
    fields = list(dict.fromkeys(sensitivity["field"]))
    figure = Figure(figsize=(2.1 * len(fields), 2.6), layout="constrained")
    axes = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for axis, field in zip(axes, fields, strict=True):
        for policy in TUNABLE:
            rows = sensitivity[(sensitivity["policy"] == policy) & (sensitivity["field"] == field)]
            axis.plot(
                rows["value"], rows["over_autoregressive"], color=style.colour(policy), marker=".", label=policy_name(policy)
            )
            chosen = rows[rows["default"]]
            axis.plot(chosen["value"], chosen["over_autoregressive"], "o", color=style.colour(policy), markersize=6)
        axis.set_title(field)
    axes[0].set_ylabel("speed over the target alone")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(TUNABLE))
    return figure


def draw_prices(study: Study) -> Figure:
    """What one target forward over k tokens costs, beside k draft steps, at a short and a long context."""
    figure = Figure(figsize=(6.0, 3.2), layout="constrained")
    axis = figure.subplots()
    tokens = np.arange(1, len(study.curve.verify) + 1)
    for context, dash in zip(CONTEXTS, ("-", "--"), strict=True):
        target = [study.curve.verify_price(k).at(context) for k in tokens]
        draft = tokens * study.curve.blind.step.at(context)
        axis.plot(
            tokens, target, dash, color=style.colour("gammatune"), label=f"target, k tokens at once, context {context}"
        )
        axis.plot(tokens, draft, dash, color=style.colour("gammatune_plus"), label=f"draft, k steps, context {context}")
    axis.set_xlabel("k")
    axis.set_ylabel("milliseconds")
    axis.set_ylim(bottom=0)
    axis.legend()
    return figure


def draw_bounds(starts: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw `bounds`; returns the files written (PNG and SVG)."""
    with matplotlib.rc_context(style.STYLE):
        return style.save(draw_bounded_starts(starts), folder, "bounds")


def draw_bounded_starts(starts: pd.DataFrame) -> Figure:
    """Speed by start at each cost ratio: the estimate as a line, the bounds of the unknown positions as a band."""
    ratios = list(dict.fromkeys(starts["ratio"]))
    figure = Figure(figsize=(2.7 * len(ratios), 3.0), layout="constrained")
    axes = figure.subplots(1, len(ratios), squeeze=False)[0]
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
