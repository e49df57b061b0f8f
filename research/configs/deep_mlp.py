"""Twenty layers of 100: a plain perceptron, batch norm after and before the activation, SELU, alpha dropout.

All five, one after the other, on scikit-learn's digits in about a minute. The figures of the table are of Fashion-MNIST:

    python scripts/train.py --config=deep_mlp --config.dataset=fashion_mnist --config.look_every="50 steps" --workdir=runs/deep_mlp

The loss of the plain net stays where it began for hundreds of steps. The picture `gradient_norms` (in plots/, and in TensorBoard under
Images) shows why: from layer to layer the signal shrinks on its way in, and the error on its way back, so all layers get gradients hundreds
of times smaller than those of SELU, which keeps the scale of both. Batch norm sets the scale of the signal at each layer; there
the gradient grows towards the input. Under Histograms: `hidden_1/kernel/gradient_histogram`. One of them alone: --config.variant=selu.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "deep_mlp"
    config.variant = "all"  # all, plain, batch_norm_after, batch_norm_before, selu, alpha_dropout
    config.dataset = "digits"  # digits, breast_cancer, wine, mnist, fashion_mnist
    config.normalize = "zscore"  # raw, minmax, zscore
    config.depth = 20  # hidden layers
    config.units = 100  # of each
    config.dropout = 0.5  # rate of alpha dropout, before the output
    config.batch_size = 32
    config.epochs = 10
    config.patience = 0  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.look_every = "10 steps"  # how often the gradient of each layer is measured
    config.histogram_freq = 1  # histograms of weights and gradients every so many epochs; 0: never
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.01
    return config
