"""A random search by scikit-learn, on diabetes (a regressor) and on digits (a classifier), with cross-validation.

    python scripts/train.py --config=search_sklearn --workdir=runs/search_sklearn

For each data set the default point is trained as any study is, and then `RandomizedSearchCV` tries points with `loops.estimators`, as many
at a time as `jobs` says. It ends with the best parameters, and their scores beside those of the default: R2 of the regressor, accuracy of
the classifier. What was searched is in `search.json` of each part, so that the command, given again, only repeats its summary.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "search_sklearn"
    config.datasets = ("diabetes", "digits")  # any that research.data.datasets knows
    config.normalize = "zscore"  # raw, minmax, zscore
    config.points = 12  # points that the search tries
    config.folds = 3  # of the cross-validation
    config.jobs = 1  # fits at a time, each in a process of its own
    config.search = ml_collections.ConfigDict()
    config.search.rates = (1e-4, 0.1)  # from, to, on a logarithmic scale
    config.search.hidden = ((), (30,), (100,), (100, 50))  # units of the hidden layers
    config.search.batch_sizes = (16, 32, 64)
    config.rate = 0.001  # learning rate of Adam, the default point
    config.hidden = (100,)
    config.batch_size = 32
    config.epochs = 60
    config.patience = 5  # epochs without a smaller loss on rows held out until a training stops
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    return config
