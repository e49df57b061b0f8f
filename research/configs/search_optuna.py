"""A regressor to search with Optuna: its space is below, its default is a plain choice.

As it stands: scikit-learn's diabetes data, a trial in a few seconds and without a network. House prices in California, the error in units
of $100,000:

    python scripts/search.py --config=search_optuna --config.dataset=california_housing --compile=graph --pruner=hyperband --trials=40 \\
        --workdir=runs/search

It ends with the best points beside the default, the parameters by importance, and the command that trains the best point by itself. In
TensorBoard: HParams shows all trials, as a table and in parallel coordinates.
"""

from typing import Any

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "search_optuna"
    config.dataset = "diabetes"  # diabetes, california_housing
    config.normalize = "zscore"  # raw, minmax, zscore
    config.width = 64  # units of each hidden layer
    config.depth = 2  # hidden layers
    config.activation = "relu"
    config.dropout = 0.0  # rate behind each hidden layer
    config.batch_size = 128
    config.epochs = 15
    config.patience = 0  # epochs without a better val_rmse until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001
    config.optimizer.weight_decay = 0.0  # decoupled, as in AdamW; in each step the learning rate's share of it
    return config


def search_space(trial: Any, config: ml_collections.ConfigDict) -> None:
    """Writes the values for a trial into its config; called by scripts/search.py.

    On diabetes, whose targets are not near 1, most points with SGD diverge: such trials fail, and the search goes on.
    """
    config.optimizer.name = trial.suggest_categorical("optimizer.name", ("adam", "nadam", "rmsprop", "sgd"))
    config.optimizer.learning_rate = trial.suggest_float("optimizer.learning_rate", 1e-4, 3e-2, log=True)
    config.optimizer.weight_decay = trial.suggest_float("optimizer.weight_decay", 1e-6, 1e-1, log=True)
    config.width = trial.suggest_int("width", 16, 256, log=True)
    config.depth = trial.suggest_int("depth", 1, 4)
    config.activation = trial.suggest_categorical("activation", ("relu", "gelu", "silu"))
    config.dropout = trial.suggest_float("dropout", 0.0, 0.3)
    config.batch_size = trial.suggest_categorical("batch_size", (32, 64, 128, 256))
