"""Seeds: one for each place, step, replica and integer; the same in eager mode, in a graph and under XLA."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import loops
from loops.tasks.seeds import mix

KINDS = ("range", "while_loop", "map_fn", "scan")


def drawn(seed):
    return tf.cast(tf.random.stateless_uniform([], seed, 0, 2**20, tf.int32), tf.float32)


def halves(seed):
    """The numbers of a seed pair, small enough for float64."""
    return tf.cast(tf.stack([seed[0] // 2**32, seed[0] % 2**32, seed[1]]), tf.float64)


class InLoops(loops.Task):
    """Draws in one of TensorFlow's loops, and before and after it."""

    def __init__(self, kind, turns=4, given=True):
        super().__init__()
        self.kind, self.given, self.turns = kind, given, tf.Variable(turns)
        self.seeds = [tf.Variable(tf.zeros([turns, 3], tf.float64)) for _ in range(2)]
        self.outside = tf.Variable(tf.zeros([2, 3], tf.float64))

    def one(self, i):
        return self.seed(i) if self.given else self.seed()

    def train_step(self, batch):
        first = self.seed()
        if self.kind == "range":
            for i in tf.range(self.turns):
                self.seeds[0].scatter_nd_update([[i]], [halves(self.one(i))])
                self.seeds[1].scatter_nd_update([[i]], [halves(self.seed(7, i, 2))])
        elif self.kind == "while_loop":

            def body(i, a, b):
                return i + 1, a.write(i, halves(self.one(i))), b.write(i, halves(self.seed(7, i, 2)))

            start = [tf.TensorArray(tf.float64, 4, element_shape=[3]) for _ in range(2)]
            _, *arrays = tf.while_loop(lambda i, *_: i < self.turns, body, [tf.constant(0), *start])
            for variable, array in zip(self.seeds, arrays, strict=True):
                variable.assign(array.stack())
        elif self.kind == "map_fn":
            pair = tf.map_fn(lambda i: (halves(self.one(i)), halves(self.seed(7, i, 2))), tf.range(4), (tf.float64, tf.float64))
            for variable, value in zip(self.seeds, pair, strict=True):
                variable.assign(value)
        else:
            start = tf.zeros([3], tf.float64)
            pair = tf.scan(lambda _, i: (halves(self.one(i)), halves(self.seed(7, i, 2))), tf.range(4), (start, start))
            for variable, value in zip(self.seeds, pair, strict=True):
                variable.assign(value)
        self.outside.assign(tf.stack([halves(first), halves(self.seed())]))
        return {}


def seeds_of(kind, compile, **arguments):
    task = InLoops(kind, **arguments)
    loops.TrainLoop(task, loops.NoFeed(3), compile=compile).run(steps=2)
    return np.concatenate([*(np.asarray(v) for v in task.seeds), np.asarray(task.outside)])


@pytest.mark.parametrize("kind", KINDS)
def test_each_turn_of_a_loop_has_a_seed_of_its_own_and_modes_agree(kind):
    graph, eager = (seeds_of(kind, compile) for compile in ("graph", "eager"))
    assert len(np.unique(graph, axis=0)) == len(graph) == 10
    np.testing.assert_array_equal(graph, eager)
    if kind in ("range", "while_loop"):
        np.testing.assert_array_equal(graph, seeds_of(kind, "xla"))


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_index_a_seed_in_a_loop_is_refused(kind):
    with pytest.raises(ValueError, match=r"self.seed\(\) in a loop of TensorFlow.*give it the loop's index, as in self.seed\(i\)"):
        seeds_of(kind, "graph", given=False)


class Uses(loops.Task):
    def __init__(self, use):
        super().__init__()
        self.use = use

    def train_step(self, batch):
        return {name: value for name, value in self.use(self).items()}


def run(use, compile="graph", steps=1, **arguments):
    return loops.TrainLoop(Uses(use), loops.NoFeed(steps), compile=compile, **arguments).run(epochs=1).history


def test_a_number_that_is_no_index_does_not_help_in_a_loop():
    def use(task):
        total = tf.constant(0.0)
        _, total = tf.while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, t + drawn(task.seed(5))), [tf.constant(0), total])
        return {"x": total}

    with pytest.raises(ValueError, match=r"self.seed\(5\) in a loop"):
        run(use)


def test_python_loops_and_helpers_draw_anew_at_each_place_and_number():
    def helper(task, i):
        return drawn(task.seed(i))

    two = keras.Variable(2, dtype="int32", trainable=False)

    def use(task):
        values = {f"loop{i}": drawn(task.seed(i)) for i in range(3)}
        values |= {f"plain{i}": drawn(task.seed()) for i in range(3)}
        values["first"] = helper(task, 1)
        values["second"] = helper(task, 1)
        values["tensor"] = drawn(task.seed(tf.constant(1), np.int64(-3)))
        values["variable"] = drawn(task.seed(two))
        return values

    graph, eager, xla = (run(use, compile) for compile in ("graph", "eager", "xla"))
    assert graph == eager == xla
    assert len({value for (value,) in graph.values()}) == 10


def test_integers_known_early_or_late_give_the_same_seed():
    def use(task):
        late = tf.cast(task.step, tf.int64)
        values = {}
        for name, number in (("known", 3), ("late", late + 3)):
            values[name] = halves(task.seed(number, -9))[0]
        return values

    history = run(use)
    assert history["known"] == history["late"]


def test_the_same_seed_twice_is_refused():
    def use(task):
        return {f"x{i}": drawn(task.seed(7)) for i in range(2)}

    for compile in ("graph", "eager"):
        with pytest.raises(ValueError, match=r"self.seed\(7\) was called twice at one place"):
            run(use, compile)


@pytest.mark.parametrize("wrong", [0.5, True, "a", tf.constant(0.5), tf.constant([1, 2])], ids=str)
def test_only_integers_are_taken(wrong):
    with pytest.raises(TypeError, match="self.seed takes integers"):
        run(lambda task: {"x": drawn(task.seed(wrong))})


def test_a_function_inside_of_the_step_is_refused():
    def use(task):
        return {"x": tf.function(lambda: drawn(task.seed()))()}

    for compile in ("graph", "eager"):
        with pytest.raises(ValueError, match=r"self.seed\(\) in a tf.function that the step calls.*hand the seed over"):
            run(use, compile)


def test_vectorized_map_needs_an_index_too():
    def use(task, given):
        values = tf.vectorized_map(lambda i: drawn(task.seed(i) if given else task.seed()), tf.range(4))
        return {f"x{i}": values[i] for i in range(4)}

    assert len({value for (value,) in run(lambda task: use(task, True)).values()}) == 4
    with pytest.raises(ValueError, match="in a loop of TensorFlow"):
        run(lambda task: use(task, False))


def test_mixing_in_a_graph_is_mixing_in_python():
    from loops.tasks import seeds

    numbers = [0, 1, -1, 2**62, -(2**63), 12345678901234567]
    state = tf.constant(0, tf.uint64)
    for number in numbers:
        state = seeds._mixed_in_graph(state, tf.cast(tf.constant(number, tf.int64), tf.uint64))
    assert int(tf.cast(state, tf.int64)) == mix(*numbers)


class Nested(loops.Task):
    """Draws in two nested loops, with some integers."""

    def __init__(self, given):
        super().__init__()
        self.given, self.drawn = given, tf.Variable(tf.zeros([6]))

    def draw(self, *integers):
        return drawn(self.seed(*integers))

    def train_step(self, batch):
        place, three = tf.constant(0), tf.cast(self.step, tf.int32) + 3
        if self.given == "map_fn":
            rows = tf.scan(lambda _, i: tf.map_fn(lambda j: self.draw(i, j), tf.range(3), tf.float32), tf.range(2), tf.zeros([3]))
            self.drawn.assign(tf.reshape(rows, [6]))
            return {}
        for i in tf.range(2):
            for j in tf.range(i * 3, i * 3 + 3):
                given = {"inner": [j % 3], "outer": [i], "both": [i, j % 3], "from_outer": [j], "count": [place]}
                given |= {"step": [self.step], "constant": [three, 7], "other": [i, three]}
                self.drawn.scatter_nd_update([[j]], [self.draw(*given[self.given])])
                place += 1
        return {}


@pytest.mark.parametrize("compile", ["graph", "eager"])
@pytest.mark.parametrize("given", ["both", "from_outer", "count", "map_fn"])
def test_integers_that_differ_in_nested_loops_give_other_numbers(given, compile):
    task = Nested(given)
    loops.TrainLoop(task, loops.NoFeed(1), compile=compile).run(steps=1)
    assert len(set(task.drawn.numpy().tolist())) == 6


@pytest.mark.parametrize("compile", ["graph", "eager"])
@pytest.mark.parametrize("given", ["outer", "step", "constant", "other"])
def test_integers_that_are_the_same_in_all_turns_are_refused(given, compile):
    with pytest.raises(ValueError, match="the same (in every iteration|numbers)"):
        loops.TrainLoop(Nested(given), loops.NoFeed(1), compile=compile).run(steps=1)


class Inner(loops.Task):
    def __init__(self, twice):
        super().__init__()
        self.twice = twice

    def train_step(self, batch):
        total = tf.constant(0.0)
        if self.twice:
            return {"x": tf.add_n([drawn(self.seed(self.step)) for _ in range(2)])}
        for _ in tf.range(2):
            for j in tf.range(3):
                total += drawn(self.seed(j))
        return {"x": total}


@pytest.mark.parametrize("compile", ["graph", "xla", "eager"])
def test_the_index_of_an_inner_loop_alone_and_one_tensor_twice_are_refused(compile):
    for twice in (False, True):
        with pytest.raises(ValueError, match="the same (in every iteration|numbers)"):
            loops.TrainLoop(Inner(twice), loops.NoFeed(1), compile=compile).run(steps=1)


class Recomputes(loops.Task):
    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def train_step(self, batch):
        x, seed = tf.ones([4]), self.seed()
        noisy = tf.recompute_grad(lambda x: x * tf.random.stateless_normal([4], self.seed(1) if self.inside else seed))
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(noisy(x))
        return {"forward": y, "backward": tf.reduce_sum(tape.gradient(y, x))}


@pytest.mark.parametrize("compile", ["graph", "eager"])
def test_a_seed_inside_of_what_is_computed_again_for_the_gradient_is_refused(compile):
    history = loops.TrainLoop(Recomputes(False), loops.NoFeed(1), compile=compile).run(epochs=1).history
    np.testing.assert_allclose(history["forward"], history["backward"], rtol=1e-6)
    with pytest.raises(ValueError, match="recompute_grad"):
        loops.TrainLoop(Recomputes(True), loops.NoFeed(1), compile=compile).run(epochs=1)
