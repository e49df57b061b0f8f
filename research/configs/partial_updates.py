"""Updating only part of the parameters by a policy, and going on from other weights when training stagnates.

`policy` is a task of its own (`PartialUpdates`): every layer has an optimizer and its own rhythm, the last one learns at every step, the
ones below at every second and every fourth; a rhythm of 0 leaves a layer as it is. `biases` goes on from what it learnt, and only the
biases change. `switch` begins badly (its learning rate is tiny), and when the loss has stagnated loads the weights that `policy` has
learnt (`loops.hooks.LoadWeights`), and goes on from them.

In TensorBoard, `batch_updates_...` of the run `policy` is 1 at the steps at which a layer was updated and 0 at all others;
`epoch_weights_loaded` of the run `switch` goes from 0 to 1 where its loss jumps down.

    python scripts/train.py --config=partial_updates --workdir=runs/partial_updates
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "partial_updates"
    config.dataset = "digits"  # any data set with classes
    config.normalize = "minmax"  # raw, minmax, zscore
    config.hidden = (64, 32)  # units of the hidden layers
    config.every = (4, 2, 1)  # steps from one update of a layer to its next: hidden layers, then the last; 0: never
    config.stagnation = 2  # epochs in which the loss does not fall by `min_delta`, until other weights are loaded
    config.min_delta = 0.05
    config.slow = 0.0001  # learning rate with which `switch` begins
    config.batch_size = 32
    config.epochs = 15
    config.patience = 0
    config.on_nonfinite = "raise"
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.1
    return config
