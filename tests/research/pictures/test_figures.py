"""Pictures show what they were given: every image, every count, every point."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from matplotlib.image import imread
from ml_collections import config_dict

import loops
from loops import testing
from research import runner
from research.pictures import figures, plots
from research.study import Study


def test_a_grid_has_a_place_for_every_image_and_its_title():
    images = np.arange(7 * 6).reshape(7, 3, 2)
    figure = figures.image_grid(images, columns=4, titles=list("abcdefg"))
    shown = [axes for axes in figure.axes if axes.images]
    assert len(figure.axes) == 8 and len(shown) == 7
    for axes, image, title in zip(shown, images, "abcdefg", strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert axes.get_title() == title
        # All on one scale of grey.
        assert axes.images[0].get_clim() == (0, 41)


@pytest.mark.parametrize("shape", [(2, 4, 4, 1), (2, 4, 4, 3)])
def test_a_grid_takes_grey_and_coloured_images(shape):
    figure = figures.image_grid(np.random.default_rng(0).random(shape))
    assert figure.axes[0].images[0].get_array().shape == (shape[1:3] if shape[-1] == 1 else shape[1:])


@pytest.mark.parametrize(
    ("shape", "titles", "said"), [((4, 4), [], "takes images"), ((0, 4, 4), [], "takes images"), ((2, 4, 4), ["a"], "1 titles for 2")]
)
def test_a_grid_says_what_it_cannot_show(shape, titles, said):
    with pytest.raises(ValueError, match=said):
        figures.image_grid(np.zeros(shape), titles=titles)


def test_a_confusion_matrix_counts_as_scikit_learn_does():
    from sklearn import metrics

    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    predictions[labels == 2] = 0
    figure = figures.confusion_matrix(labels, predictions, ["a", "b", "c", "d"])
    expected = metrics.confusion_matrix(labels, predictions)
    axes = figure.axes[0]
    written = np.zeros((4, 4), int)
    for text in axes.texts:
        column, row = text.get_position()
        written[int(row), int(column)] = int(text.get_text())
    np.testing.assert_array_equal(written, expected)
    np.testing.assert_allclose(axes.images[0].get_array(), expected / expected.sum(axis=1, keepdims=True))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c", "d"]


def test_a_class_that_does_not_occur_has_an_empty_row():
    figure = figures.confusion_matrix([0, 1], [0, 0], ["a", "b", "c"])
    assert np.isfinite(figure.axes[0].images[0].get_array()).all()


def test_a_scatter_has_a_colour_for_each_class():
    points = np.random.default_rng(0).normal(size=(30, 2))
    labels = np.arange(30) % 3
    axes = figures.scatter(points, labels, ["a", "b", "c"]).axes[0]
    assert [group.get_label() for group in axes.collections] == ["a", "b", "c"]
    for index, group in enumerate(axes.collections):
        np.testing.assert_array_equal(group.get_offsets(), points[labels == index])
    assert len({tuple(group.get_facecolor()[0]) for group in axes.collections}) == 3


def test_a_scatter_says_what_it_cannot_show():
    with pytest.raises(ValueError, match="Project them first"):
        figures.scatter(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="11 classes"):
        figures.scatter(np.zeros((11, 2)), np.arange(11))


def test_the_file_and_the_pixels_are_the_same_picture(tmp_path):
    figure = plots.lines({"one": [1.0, 2.0, 1.5]}, title="a line")
    figures.save(figure, tmp_path / "new" / "line.png")
    written = np.round(imread(tmp_path / "new" / "line.png")[..., :3] * 255).astype(np.uint8)
    np.testing.assert_array_equal(written, figures.pixels(figure))


def test_what_a_run_draws_is_in_its_folder_and_in_tensorboard(tmp_path):
    model = keras.Sequential([keras.Input([1]), keras.layers.Dense(1)])
    task = loops.SupervisedTask(model, loss="mse", optimizer="sgd")
    feed = loops.ArrayFeed((np.ones([4, 1]), np.ones([4, 1])))

    def draw(run):
        run.picture("line", plots.lines({"one": [1.0, 2.0]}))
        return []

    study = Study(task, model, feed, {"val": feed}, None, title="a line", description="Four points.", after=draw)
    runner.train(study, config_dict.ConfigDict({"epochs": 2}), workdir=tmp_path, compile="eager")
    events = testing.read_events(tmp_path)["train"]
    for name in ("learning_curves", "line"):
        assert (tmp_path / "plots" / f"{name}.png").stat().st_size > 5_000
        ((step, image),) = events[name]
        assert step == 2 and [int(side) for side in image[:2]] == list(imread(tmp_path / "plots" / f"{name}.png").shape[1::-1])
