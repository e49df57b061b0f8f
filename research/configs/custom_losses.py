"""A loss of one's own in three ways (function, subclass of Loss, layer with add_loss), and that they are the same.

Three runs that differ in how the focal loss is given to them; the table at the end shows how far their losses and weights are apart. On
Fashion-MNIST:

    python scripts/train.py --config=custom_losses --config.dataset=fashion_mnist --config.epochs=10 --workdir=runs/losses

In TensorBoard: `epoch_loss` of the three runs, which lie on each other.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "custom_losses"
    config.dataset = "digits"  # digits, breast_cancer, wine, mnist, fashion_mnist
    config.normalize = "minmax"  # raw, minmax, zscore
    config.hidden = (300, 100)  # units of the hidden layers
    config.gamma = 2.0  # how much less an example counts that is predicted well; 0: not at all
    config.batch_size = 32
    config.epochs = 20
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001
    return config
