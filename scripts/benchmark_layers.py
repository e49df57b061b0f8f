"""Measures forward and backward of each layer against the same formula written by hand in plain TensorFlow.

    python scripts/benchmark_layers.py                                   # everything, some minutes on an idle machine
    python scripts/benchmark_layers.py --layers=NetVLAD,CrossV2 --modes=graph --rounds=9

Shown is how many times longer the layer takes: 1.00 is as fast as by hand. The two take turns, round after round; a ratio is formed within
each round, and shown is the median over the rounds, with the least and the greatest. Layers count their metrics; what is by hand does not.
"""

from __future__ import annotations

import inspect
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from absl import flags

from research import command_line
from research.study import InputError

if TYPE_CHECKING:
    from research.benchmarks.layer_formulas import Formula

MODES = ("graph", "xla")
STEPS = 20  # in a loop within the graph, so that Python's share does not hide the rest


def define_flags(values: flags.FlagValues, argv: list[str]) -> None:
    flags.DEFINE_list("layers", [], "Layers; all if none is given.", flag_values=values)
    flags.DEFINE_list("modes", list(MODES), "graph, xla.", flag_values=values)
    flags.DEFINE_integer("rounds", 7, "Rounds; a ratio is the median over them.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("seconds", 0.2, "Shortest time of each turn.", lower_bound=0, flag_values=values)


def main(args: flags.FlagValues) -> int:
    with command_line.quiet_tensorflow():
        from research.benchmarks.layer_formulas import FORMULAS
    for given, known, what in ((args.layers, FORMULAS, "layer"), (args.modes, MODES, "mode")):
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"There is no {what} {unknown[0]!r} to measure; there are {', '.join(known)}.")
    print(f"{'layer':26}" + "".join(f"{mode:>8}{'from':>8}{'to':>8}" for mode in args.modes), flush=True)
    for name in args.layers or FORMULAS:
        cells = []
        for mode in args.modes:
            ratios = measure(FORMULAS[name], xla=mode == "xla", rounds=args.rounds, seconds=args.seconds)
            cells += [statistics.median(ratios), min(ratios), max(ratios)]
        print(f"{name:26}" + "".join(f"{value:8.2f}" for value in cells), flush=True)
    return 0


def measure(formula: Formula, *, xla: bool, rounds: int, seconds: float) -> list[float]:
    """How many times longer the layer takes than what was written by hand, in each round."""
    by_layer, by_hand = programs(formula, xla=xla)
    by_hand()  # compiles
    by_layer()
    start = time.perf_counter()
    by_hand()
    calls = max(1, round(seconds / (time.perf_counter() - start)))
    ratios = []
    for turn in range(rounds):
        order = (by_layer, by_hand) if turn % 2 else (by_hand, by_layer)
        taken = {program: _seconds(program, calls) for program in order}
        ratios.append(taken[by_layer] / taken[by_hand])
    return ratios


def programs(formula: Formula, *, xla: bool) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The layer's and the hand-written program, some steps of forward and backward each, that return the last one's gradients and total."""
    import tensorflow as tf

    layer = formula.make()
    inputs = formula.inputs()
    training = {"training": True} if "training" in inspect.signature(layer.call).parameters else {}

    def by_layer(*inputs: Any) -> tuple[Any, Any]:
        outputs = layer(*inputs, **training)
        return tf.nest.flatten(outputs)[0], sum(layer.losses)

    shape = by_layer(*inputs)[0].shape
    upstream = tf.reshape(tf.cos(tf.range(float(shape.num_elements()))), shape)

    def program(forward: Callable[..., tuple[Any, Any]]) -> Callable[[], Any]:
        variables = [v.value for v in layer.trainable_weights]
        floats = [x for x in inputs if x.dtype.is_floating]
        labels = inputs[len(floats) :]

        def step(floats: list[Any], labels: list[Any]) -> list[Any]:
            with tf.GradientTape() as tape:
                tape.watch(floats)
                output, loss = forward(*floats, *labels)
                total = tf.reduce_sum(tf.cast(output, tf.float32) * upstream) + loss
            gradients = tape.gradient(total, [*floats, *variables], unconnected_gradients="zero")
            return [*(tf.convert_to_tensor(gradient) for gradient in gradients), total]

        @tf.function(jit_compile=xla, autograph=False)
        def run(floats: list[Any], labels: list[Any]) -> list[Any]:
            # Each step's inputs depend on the step before: otherwise it could be taken out of the loop.
            def body(i: Any, floats: list[Any], _: Any) -> Any:
                results = step(floats, labels)
                return i + 1, [x + 1e-6 * g for x, g in zip(floats, results, strict=False)], results

            zeros = [*(tf.zeros_like(x) for x in (*floats, *variables)), tf.zeros([])]
            return tf.while_loop(lambda i, *_: i < STEPS, body, (tf.constant(0), floats, zeros), parallel_iterations=1)[2]

        return lambda: run(floats, labels)

    return program(by_layer), program(lambda *inputs: formula.plain(layer, *inputs))


def _seconds(program: Callable[[], Any], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = program()
    result[0].numpy()  # what is still under way belongs to it
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(command_line.run(main, define_flags, sys.argv))
