"""Wide & deep: one net by the functional API, by subclassing, with two inputs, and with two outputs.

The output sees the columns of a table themselves (wide) and what hidden layers make of them (deep). `--config.form` chooses a form; as it
stands all four are trained one after the other, on scikit-learn's diabetes data. On house prices in California:

    python scripts/train.py --config=wide_deep --config.dataset=california_housing --compile=xla --workdir=runs/wide_deep

Functional and subclassed are the same net from the same weights, and end in the same bits. With two outputs, the loss of each stands in
the logs beside their weighted sum: in TensorBoard, `epoch_main_loss`, `epoch_aux_loss` and `epoch_loss`.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "wide_deep"
    config.form = "all"  # functional, subclassed, multi_input, multi_output, all
    config.dataset = "diabetes"  # diabetes, california_housing
    config.normalize = "zscore"  # raw, minmax, zscore
    config.hidden = (30, 30)  # units of the hidden layers
    config.activation = "relu"
    config.wide_columns = 5  # with two inputs: the first so many columns go the wide way
    config.deep_columns = 6  # and the last so many the deep way
    config.aux_weight = 0.1  # with two outputs: weight of the second loss; that of the first is 1 minus this
    config.batch_size = 32
    config.epochs = 60
    config.patience = 15  # epochs without a better val_rmse until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001
    return config
