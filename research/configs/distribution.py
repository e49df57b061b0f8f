"""One net on one device, on two replicas in a process, and in two processes: the same curves.

The study trains on one device, starts the two others in processes of their own, and compares them. On Fashion-MNIST:

    python scripts/train.py --config=distribution --config.dataset=fashion_mnist --config.epochs=10 --workdir=runs/distribution

With --strategy it is only one of them: an ordinary run.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "distribution"
    config.dataset = "digits"  # digits, breast_cancer, wine, mnist, fashion_mnist
    config.normalize = "minmax"  # raw, minmax, zscore
    config.hidden = (300, 100)  # units of the hidden layers
    config.batch_size = 32  # of all replicas together
    config.copies = 2  # replicas in the second run, processes in the third
    config.dtype = "float32"  # float64: rounding is then too small for its growth to be seen
    config.epochs = 20
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.05
    return config
