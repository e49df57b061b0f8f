"""Learning curves show every metric, training against validation, with the kept epoch marked."""

from __future__ import annotations

import types

import keras
import pytest

from loops import hooks
from research.pictures import plots


def history(**logs):
    """What a run keeps that logged these values; None: not in this epoch."""
    kept = hooks.History()
    for epoch in range(max(map(len, logs.values()), default=0)):
        loop = types.SimpleNamespace(progress=types.SimpleNamespace(epoch=epoch, steps_per_epoch=1))
        kept.on_epoch_end(loop, {name: values[epoch] for name, values in logs.items() if values[epoch] is not None})
    return kept


def test_one_panel_a_metric_with_training_and_validation():
    figure = plots.learning_curves(
        history(accuracy=[0.5, 0.6], loss=[1.0, 0.5], val_accuracy=[0.4, 0.5], val_loss=[1.1, 0.7], learning_rate=[0.1, 0.1]),
    )
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "accuracy"]
    loss = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(loss["validation"].get_ydata()) == [1.1, 0.7]
    assert list(loss["train"].get_xdata()) == [1, 2]


def test_the_best_epoch_is_marked_where_it_was():
    figure = plots.learning_curves(history(loss=[3.0, 2.0, 1.0], val_loss=[3.0, 1.5, 2.0]), best=1)
    assert figure.axes[0].get_title(loc="right") == "1.5 at the best epoch, 2"
    marked = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [2]]
    assert [list(line.get_ydata()) for line in marked] == [[1.5]]


def test_a_metric_that_began_later_is_drawn_at_its_own_epochs():
    figure = plots.learning_curves(history(loss=[3.0, 2.0, 1.0], val_loss=[None, None, 1.5]), best=0)
    validation = next(line for line in figure.axes[0].lines if line.get_label() == "validation")
    assert list(validation.get_xdata()) == [3]
    assert figure.axes[0].get_title(loc="right") == ""


def test_what_is_logged_now_and_then_is_drawn_at_its_own_epochs():
    logged = history(loss=[4.0, 3.0, 2.0, 1.0, 0.5], val_loss=[None, 2.5, None, 1.5, None], check_loss=[7.0, None, 6.0, None, None])
    figure = plots.learning_curves(logged, best=3)
    loss, check = figure.axes
    validation = next(line for line in loss.lines if line.get_label() == "validation")
    assert (list(validation.get_xdata()), list(validation.get_ydata())) == ([2, 4], [2.5, 1.5])
    assert validation.get_marker() == "o" and loss.get_title(loc="right") == "1.5 at the best epoch, 4"
    assert list(check.lines[0].get_xdata()) == [1, 3] and check.get_title(loc="right") == ""


def test_of_keras_own_history_only_what_every_epoch_logged_is_drawn():
    kept = keras.callbacks.History()
    kept.history, kept.epoch = {"loss": [3.0, 2.0, 1.0], "val_loss": [1.5]}, [0, 1, 2]
    (axes,) = plots.learning_curves(kept, best=2).axes
    assert [line.get_label() for line in axes.lines if len(line.get_xdata()) == 3] == ["train"]
    assert axes.get_title(loc="right") == "1 at the best epoch, 3"


def test_a_run_without_a_finished_epoch_has_no_curves():
    with pytest.raises(ValueError, match="no finished epoch"):
        plots.learning_curves(history())


def test_lines_stand_at_their_places():
    figure = plots.lines({"one": [1.0, 2.0], "two": ([5, 10], [3.0, 4.0])}, x="step", y="loss", log=True)
    one, two = figure.axes[0].lines
    assert (list(one.get_xdata()), list(one.get_ydata())) == ([1, 2], [1.0, 2.0])
    assert (list(two.get_xdata()), list(two.get_ydata())) == ([5, 10], [3.0, 4.0])
    assert figure.axes[0].get_yscale() == "log" and figure.axes[0].get_xlabel() == "step"


@pytest.mark.parametrize("count", [0, 11])
def test_lines_that_cannot_be_told_apart_are_refused(count):
    with pytest.raises(ValueError, match=f"got {count}"):
        plots.lines({str(i): [1.0] for i in range(count)})


def test_gradient_norms_share_an_axis_and_darken_towards_the_input():
    nets = {"plain": {"first": [1e-6, 0.0], "middle": [1e-3, 1e-3], "last": [1.0, 1.0]}, "other": {"first": [1.0], "last": [2.0]}}
    figure = plots.gradient_norms(nets, {"plain": [10, 20], "other": [10]})
    plain, other = figure.axes
    assert plain.get_ylim() == other.get_ylim() and plain.get_yscale() == "log"
    assert [len(axes.lines) for axes in (plain, other)] == [3, 2]
    darkness = [sum(line.get_color()[:3]) for line in plain.lines]
    assert darkness == sorted(darkness)
    # A gradient of zero is a gap, not a point at the bottom.
    assert list(plain.lines[0].get_ydata())[0] == 1e-6 and list(plain.lines[0].get_ydata())[1] != 0


def test_there_have_to_be_gradient_norms():
    with pytest.raises(ValueError, match="no gradient norms"):
        plots.gradient_norms({"plain": {"first": []}}, {"plain": []})
