"""Rare classes: their recall with and without class weights; sample weights and weights in tf.data give the same numbers.

Two classes lose most of their training examples. Four runs: without weights, with `class_weight`, with `sample_weight`, and from a
`tf.data` pipeline that carries the weights. Then once more by `loops.fit` with `validation_split` and `class_weight`. On Fashion-MNIST,
where coats and shirts are made rare:

    python scripts/train.py --config=imbalanced --config.dataset=fashion_mnist --config.epochs=10 --workdir=runs/rare

In TensorBoard: `epoch_rare_recall` of the runs; under Images, the confusion matrices.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "imbalanced"
    config.dataset = "digits"  # digits, breast_cancer, wine, mnist, fashion_mnist
    config.normalize = "minmax"  # raw, minmax, zscore
    config.rare = (4, 6)  # classes that are made rare
    config.keep = 0.05  # share of their training examples that is kept
    config.hidden = (300, 100)  # units of the hidden layers
    config.batch_size = 32
    config.epochs = 20
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.05
    return config
