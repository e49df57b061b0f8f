"""Derivatives of derivatives: a classifier trained on its own slope, and gradient tapes beside the formulas of what they compute.

The same perceptron is trained twice, once with a penalty on the slope of its loss by the inputs (double back-propagation), and then moved
inputs are classified: each by the same small step in the direction in which its loss rises. Then the table: persistent tapes, third and
fifth derivatives, Jacobians, Hessians, products with them, per-example gradients, gradient penalties and gradients of one's own, each
beside its closed form.

    python scripts/train.py --config=research/configs/autodiff.py --workdir=runs/autodiff

In TensorBoard: `epoch_squared_slope` and `epoch_shifted_accuracy` of the runs plain/validation and penalized/validation, and the picture
`slopes`: the pixels that the loss depends on.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "autodiff"
    config.dataset = "digits"  # digits, optdigits, breast_cancer, wine, mnist, fashion_mnist
    config.normalize = "minmax"  # raw, minmax, zscore
    config.hidden = (100, 100)  # units of the hidden layers
    config.activation = "elu"
    config.penalty = 1.0  # weight of the squared slopes in the second part
    config.shift = 0.1  # how far evaluation moves every input, in units of the normalised inputs
    config.batch_size = 32
    config.epochs = 30
    config.patience = 10  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 1e-3
    return config
