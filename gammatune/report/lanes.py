"""What several policies do with one answer, side by side: a lane of rounds for each."""

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from gammatune.records import Round

COLOURS = {"accepted": "#7bbf9d", "target": "#4a5560", "wasted": "#e58b6b"}
MEANINGS = {
    "accepted": "drafted and accepted",
    "target": "the target's own token",
    "wasted": "drafted in vain (depth: how many)",
}
BAND = 0.3
DEEPEST = 0.5


def draw_lanes(lanes: dict[str, list[Round]], tokens: int = 120) -> Figure:
    """Lane name -> all rounds of the same answer, from its first token on. Along x its tokens, the first `tokens` at most.

    Each round is its accepted tokens and the target's own token; what it drafted in vain hangs below the place where the
    draft went wrong, as deep as it is long, to one scale for all lanes. The counts beside a lane are of the whole answer.
    """
    figure = Figure(figsize=(9, 0.9 + 0.62 * len(lanes)), layout="constrained")
    axis = figure.subplots()
    scale = DEEPEST / max(1, *(r.drafted - r.accepted for rounds in lanes.values() for r in rounds))
    for lane, rounds in enumerate(lanes.values()):
        draw_lane(axis, lane, rounds, scale)
    axis.set_yticks([lane + BAND / 2 for lane in range(len(lanes))], [f"{name}\n{sum_up(r)}" for name, r in lanes.items()])
    axis.set_ylim(len(lanes) - 0.1, -0.1)
    axis.set_xlim(0, min(tokens, *(sum(r.emitted for r in rounds) for rounds in lanes.values())))
    axis.set_xlabel("token of the answer")
    axis.grid(False)
    handles = [Patch(color=COLOURS[kind], label=meaning) for kind, meaning in MEANINGS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def draw_lane(axis, lane: int, rounds: list[Round], scale: float) -> None:
    start = rounds[0].context
    places = [r.context - start for r in rounds]
    accepted = [(place, r.accepted) for place, r in zip(places, rounds, strict=True)]
    own = [(place + r.accepted, r.emitted - r.accepted) for place, r in zip(places, rounds, strict=True)]
    axis.broken_barh(accepted, (lane, BAND), facecolors=COLOURS["accepted"], edgecolors="white", linewidth=0.4)
    axis.broken_barh(own, (lane, BAND), facecolors=COLOURS["target"], edgecolors="white", linewidth=0.4)
    wrong = [place for place, _ in own]
    depths = [scale * (r.drafted - r.accepted) for r in rounds]
    axis.bar(
        wrong,
        depths,
        bottom=lane + BAND + 0.03,
        width=1,
        align="edge",
        color=COLOURS["wasted"],
        edgecolor="white",
        linewidth=0.4,
    )


def sum_up(rounds: list[Round]) -> str:
    """For example "21 rounds, 38 in vain"."""
    return f"{len(rounds)} rounds, {sum(r.drafted - r.accepted for r in rounds)} in vain"
