"""All the hooks that watch over a run, each of them acting in one short run.

The net begins with its lower layers frozen at random values. Then, in this order: `LearningRateScheduler` warms up, `ReduceLROnPlateau`
lowers the rate when the validation loss stagnates, `Unfreeze` sets the lower layers free when it stagnates for longer, `Notify` tells
when the accuracy has passed a threshold, `ModelCheckpoint` keeps weights from there on, `Evaluate` validates at chosen steps,
`EarlyStopping` ends the run and brings the best weights back. `TensorBoard`, `CSVLogger`, `ProgressBar` and `RemoteMonitor` (to a server
that the study runs) record it.

In TensorBoard and in `history.csv`: `learning_rate` falls at each drop, `unfrozen_layers` rises, `best_val_loss` stays as it is while the
run waits, the last epoch is the one that `EarlyStopping` ended, and `check_loss` has a value for each chosen step. What happened is
printed as a table.

    python scripts/train.py --config=callbacks --workdir=runs/callbacks
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "callbacks"
    config.dataset = "digits"  # any data set with classes
    config.normalize = "zscore"  # raw, minmax, zscore
    config.hidden = (64, 32)
    config.warm_up = 4  # epochs in which LearningRateScheduler raises the rate to its full value
    config.plateau_patience = 2  # epochs without a better val_loss until ReduceLROnPlateau acts
    config.plateau_factor = 0.5
    config.lowest_rate = 0.001  # to which it lowers the rate
    config.unfreeze_patience = 4  # epochs without a better val_loss until Unfreeze acts
    config.min_delta = 0.01  # what counts as better, for these two
    config.threshold = 0.9  # val_accuracy at which Notify tells, and from which ModelCheckpoint keeps weights
    config.check_at = (10, 100, 1000)  # steps at which Evaluate validates, besides the end of every epoch
    config.batch_size = 32
    config.epochs = 200
    config.patience = 8  # epochs without a better val_loss until EarlyStopping ends the run
    config.on_nonfinite = "raise"
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.1
    config.optimizer.momentum = 0.9
    return config
