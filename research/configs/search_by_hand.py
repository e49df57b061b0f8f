"""A search for the learning rate by hand: a plain loop that trains one run for each, and takes the best.

As it stands: scikit-learn's diabetes data, done in half a minute and without a network. House prices in California:

    python scripts/train.py --config=search_by_hand --config.dataset=california_housing --compile=xla --workdir=runs/by_hand

It is where a reader begins; scripts/search.py does the same with more parameters, chosen as it goes. In TensorBoard, HParams shows the runs
in one table, and `epoch_val_loss` which rates are too small (still falling at the end) and which are too large (no longer falling).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "search_by_hand"
    config.dataset = "diabetes"  # diabetes, california_housing
    config.normalize = "zscore"  # raw, minmax, zscore
    config.hidden = (30,)  # units of the hidden layers
    config.activation = "relu"
    config.learning_rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    config.batch_size = 32
    config.epochs = 10
    config.patience = 0  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "stop"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    return config
