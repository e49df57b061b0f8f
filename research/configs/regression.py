"""A multi-layer perceptron that predicts a number from a table.

As it stands: scikit-learn's diabetes data, done in seconds and without a network. House prices in California, the error in units of
$100,000:

    python scripts/train.py --config=regression --config.dataset=california_housing --compile=xla --workdir=runs/regression

It ends by saying how far the net is ahead of a straight line. In TensorBoard: `epoch_rmse` of both runs comes apart where the net begins to
learn the training data by heart; under Images, `predictions` shows each test example, predicted against true: on the diagonal it is right.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "regression"
    config.dataset = "diabetes"  # diabetes, california_housing
    config.normalize = "zscore"  # raw, minmax, zscore
    config.hidden = (100, 50)  # units of the hidden layers
    config.activation = "relu"
    config.batch_size = 32
    config.epochs = 100
    config.patience = 15  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001
    return config
