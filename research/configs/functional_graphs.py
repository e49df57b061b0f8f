"""Graphs of layers: residual connections, and one layer shared by all depths.

The same block of two dense layers, stacked in three ways with Keras's functional API. `plain`: one after the other. `residual`: each adds
to what came in (`x + block(x)`). `shared`: residual too, but it is the same block each time, so its weights are counted, and saved, once.
With depth the plain net stops learning, because the gradient that reaches its first block shrinks by a factor in every layer; the others
go on learning.

In TensorBoard, compare `epoch_loss` of the runs, and `epoch_first_gradient`: the norm of the gradient that reaches the first block.
`plots/depths.png` shows the accuracy by depth.

    python scripts/train.py --config=functional_graphs --workdir=runs/functional_graphs
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "functional_graphs"
    config.dataset = "digits"  # any data set with classes
    config.normalize = "zscore"  # raw, minmax, zscore
    config.forms = ("plain", "residual", "shared")
    config.depths = (2, 10, 30)  # blocks between the first layer and the last
    config.width = 64  # units of the two layers of each block
    config.batch_size = 32
    config.epochs = 15
    config.patience = 0  # epochs without a better val_loss until training stops; 0: never
    config.clip = 1.0  # bound of the global gradient norm: a block that is applied 30 times gets 30 gradients
    config.on_nonfinite = "raise"
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.02
    return config
