"""A loop by hand around tf.GradientTape, eager and with shapes asserted, against the same step compiled: the same losses, faster.

First the convolutional net is trained by a compiled TrainLoop. Then a new one is trained for some hundred steps in three ways on the same
batches; the table that is printed shows the largest difference of a step's loss, and the speed. On MNIST:

    python scripts/train.py --config=mnist_tape --config.dataset=mnist --config.epochs=3 --workdir=runs/tape

In TensorBoard: `batch_loss`, the loss of every step, which the loop by hand has to fetch step by step; under Images, the confusion matrix.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "mnist_tape"
    config.dataset = "digits"  # digits, mnist, fashion_mnist
    config.batch_size = 32
    config.epochs = 20
    config.patience = 0  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001
    config.compare = ml_collections.ConfigDict()
    config.compare.warm_up = 20  # steps of each way before the clock starts
    config.compare.steps = 200  # steps that are timed
    return config
