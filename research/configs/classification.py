"""A multi-layer perceptron that classifies images, trained with plain SGD.

As it stands: scikit-learn's 8x8 digits, done in seconds and without a network. The same net on Fashion-MNIST, pixels in 0..1:

    python scripts/train.py --config.dataset=fashion_mnist --config.normalize=minmax --config.epochs=10

With its raw pixels (0..255) the loss is not a number after a few steps; --config.normalize=raw --config.on_nonfinite=ignore goes on
regardless, at chance.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "classification"
    config.dataset = "digits"  # digits, breast_cancer, wine, mnist, fashion_mnist
    config.normalize = "zscore"  # raw, minmax, zscore
    config.hidden = (300, 100)  # units of the hidden layers
    config.activation = "relu"
    config.batch_size = 32
    config.epochs = 40
    config.patience = 10  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.01
    return config
