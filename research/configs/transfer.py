r"""Transfer learning: what was learnt from the classes 0-4 serves the classes 5-9, of which there are few examples.

A small convolutional net learns the first five classes. For the other five there are only a few examples of each class, and four ways to
go on: `scratch` begins with random weights; `last_layer` keeps the net, frozen, but for a new last layer; `new_head` freezes all of it,
its last layer too, and stacks one more layer on top; `fine_tune` is `last_layer` with its layers set free, one after the other from the
top, each time that the loss stagnates, at a lower learning rate (`loops.hooks.Unfreeze`).

Look at `plots/samples.png`: test accuracy over the number of examples. In TensorBoard, `epoch_unfrozen_layers` and `epoch_learning_rate`
of the runs `fine_tune-...` show when layers were set free, and what it did to the loss.

    python scripts/train.py --config=transfer --workdir=runs/transfer
    python scripts/train.py --config=transfer --config.dataset=mnist --config.samples="(10,50,100,500)" --config.source_epochs=2 \
        --config.repeats=3 --workdir=runs/transfer_mnist
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "transfer"
    config.dataset = "digits"  # digits, mnist, fashion_mnist, optdigits
    config.normalize = "minmax"
    config.methods = ("scratch", "last_layer", "new_head", "fine_tune")
    config.samples = (2, 5, 10, 50)  # examples of each new class
    config.repeats = 1  # how often everything is done, from other weights and with other examples
    config.source_epochs = 20  # on the first five classes
    config.epochs = 20  # on the other five; each of `steps` steps, or a pass over the examples if that is more
    config.steps = 25
    config.stagnation = 2  # epochs in which the loss does not fall by `min_delta`, until the next layer is set free
    config.min_delta = 0.02
    config.learning_rate_factor = 0.5  # what the learning rate is multiplied with then
    config.patience = 0
    config.batch_size = 32
    config.on_nonfinite = "raise"
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.003
    return config
