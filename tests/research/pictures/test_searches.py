"""Pictures of a search show what its trials reached, and where."""

from __future__ import annotations

import pytest

from research.pictures import searches
from research.pictures.searches import Point, Scale

SCALES = {"rate": Scale(log=True), "kind": Scale(choices=("sgd", "adam", "none")), "units": Scale(whole=True)}
POINTS = [
    Point(0, {"rate": 0.1, "kind": "sgd", "units": 4}, 0.8),
    Point(1, {"rate": 0.01, "kind": "adam", "units": 8}, 0.9),
    Point(2, {"rate": 0.001, "kind": "adam", "units": 6}, None),
    Point(3, {"rate": 0.02, "kind": "adam", "units": 8}, 0.6),
    Point(4, {"rate": 1.0, "kind": "sgd", "units": 4}, 50.0),
]


def lines(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def test_the_history_has_the_best_so_far_the_default_and_what_was_given_up():
    (axes,) = searches.history(POINTS, "val_loss", "min", default=0.7).axes
    drawn = lines(axes)
    assert drawn["trial"] == ([0, 1, 3, 4], [0.8, 0.9, 0.6, 50.0])
    assert drawn["best so far"] == ([0, 1, 3, 4, 4], [0.8, 0.8, 0.6, 0.6, 0.6])
    assert drawn["default"][1] == [0.7, 0.7] and drawn["given up early"][0] == [2.0]
    assert axes.get_title(loc="left") == "val_loss (1 worse than shown)" and axes.get_ylim()[1] < 3


def test_the_largest_is_the_best_where_that_is_asked_for():
    (axes,) = searches.history(POINTS[:4], "val_accuracy", "max").axes
    assert lines(axes)["best so far"][1] == [0.8, 0.9, 0.9, 0.9] and "default" not in lines(axes)


def test_slices_have_a_panel_for_each_parameter():
    panels = searches.slices(POINTS, SCALES, "val_loss", "min").axes
    assert [axes.get_title(loc="left") for axes in panels] == ["rate", "kind", "units"]
    rate, kind, _ = panels
    assert rate.get_xscale() == "log" and [text.get_text() for text in kind.get_xticklabels()] == ["sgd", "adam", "none"]
    assert rate.collections[0].get_offsets().tolist() == [[0.1, 0.8], [0.01, 0.9], [0.02, 0.6], [1.0, 50.0]]
    assert [list(line.get_xdata()) for line in kind.lines] == [[1.0]]


def test_parallel_coordinates_lead_each_trial_through_its_values_the_best_to_the_top():
    (axes,) = searches.parallel_coordinates(POINTS, SCALES, "val_loss", "min").axes
    given_up, done = ([path.vertices.tolist() for path in lines.get_paths()] for lines in axes.collections)
    assert len(given_up) == 1 and len(given_up[0]) == 3 and given_up[0][0] == [0, 0.0]
    assert len(done) == 4 and done[-1][1:] == [[1, 0.5], [2, 1.0], [3, 1.0]] and done[0][-1] == [3, 0.0]


@pytest.mark.parametrize(
    "draw",
    [
        lambda: searches.history(POINTS[2:3], "loss", "min"),
        lambda: searches.slices(POINTS, {}, "loss", "min"),
        lambda: searches.parallel_coordinates(POINTS[2:3], SCALES, "loss", "min"),
        lambda: searches.importances({}),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw):
    with pytest.raises(ValueError, match="draw"):
        draw()


def test_importances_are_bars_the_largest_at_the_top():
    (axes,) = searches.importances({"rate": 0.7, "units": 0.3}).axes
    assert [bar.get_width() for bar in axes.patches] == [0.3, 0.7]
