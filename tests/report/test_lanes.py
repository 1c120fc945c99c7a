"""Rounds as lanes: every token of the answer is drawn once, waste hangs where the draft went wrong."""

import pytest
from report.stored_study import draw_study_table

from gammatune.policies import POLICIES
from gammatune.records import Round
from gammatune.replay.simulate import prepare, replay
from gammatune.replay.table import AcceptanceTable
from gammatune.report.lanes import draw_lanes

NAMES = ("ar", "fixed", "gammatune_plus", "oracle")


@pytest.fixture(scope="module")
def turn():
    return draw_study_table().turns[0]


@pytest.fixture(scope="module")
def lanes(turn):
    walks = prepare(AcceptanceTable([turn]))
    return {name: replay(walks, POLICIES[name](), keep_rounds=True).logs[0] for name in NAMES}


def spans(collection) -> list[tuple[float, float]]:
    """(from, to) along x of each box that has a width."""
    boxes = [path.get_extents() for path in collection.get_paths()]
    return [(box.x0, box.x1) for box in boxes if box.width > 0]


def test_each_lane_covers_the_answer_once(lanes, turn):
    axis = draw_lanes(lanes).axes[0]
    assert len(axis.collections) == 2 * len(NAMES)
    for lane in range(len(NAMES)):
        drawn = sorted(spans(axis.collections[2 * lane]) + spans(axis.collections[2 * lane + 1]))
        assert drawn[0][0] == 0 and drawn[-1][1] == turn.tokens
        assert all(end == start for (_, end), (start, _) in zip(drawn, drawn[1:], strict=False))


def test_one_round_by_hand():
    """Four drafted, one accepted, one from the target; then two of two, cut by the end."""
    rounds = [Round(4, 4, 1, 2, 4, "length", 10), Round(2, 2, 2, 2, 2, "eos", 12)]
    axis = draw_lanes({"made": rounds}).axes[0]
    accepted, own = axis.collections
    assert (spans(accepted), spans(own)) == ([(0, 1), (2, 4)], [(1, 2)])
    bars = [(bar.get_x(), bar.get_height()) for bar in axis.patches if bar.get_height()]
    assert bars == [(1, pytest.approx(0.5))]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["made\n2 rounds, 3 in vain"]


def test_depths_share_one_scale_and_stay_in_their_lane(lanes):
    axis = draw_lanes(lanes).axes[0]
    waste = {name: [r.drafted - r.accepted for r in rounds] for name, rounds in lanes.items()}
    deepest = max(max(each) for each in waste.values())
    expected = [wasted / deepest * 0.5 for each in waste.values() for wasted in each]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx(expected)
    assert not any(waste["oracle"]) and not any(waste["ar"])
    assert all(bar.get_y() + bar.get_height() < int(bar.get_y()) + 1 for bar in axis.patches)


def test_only_the_first_tokens_are_in_view(lanes, turn):
    assert draw_lanes(lanes, tokens=7).axes[0].get_xlim() == (0, 7)
    assert draw_lanes(lanes, tokens=10_000).axes[0].get_xlim() == (0, turn.tokens)
