"""Learning curves show every metric, training against validation, with the kept epoch marked."""

from __future__ import annotations

import types

import pytest

from research import plots


def history(**logs):
    return types.SimpleNamespace(history=logs, epoch=list(range(len(next(iter(logs.values()), [])))))


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
    figure = plots.learning_curves(history(loss=[3.0, 2.0, 1.0], val_loss=[1.5]), best=0)
    validation = next(line for line in figure.axes[0].lines if line.get_label() == "validation")
    assert list(validation.get_xdata()) == [3]
    assert figure.axes[0].get_title(loc="right") == ""


def test_a_run_without_a_finished_epoch_has_no_curves():
    with pytest.raises(ValueError, match="no finished epoch"):
        plots.learning_curves(history())
