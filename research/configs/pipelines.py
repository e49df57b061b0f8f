"""The same data from CSV, TFRecord and image files by tf.data: equal batches, equal training.

As it stands: scikit-learn's digits, which the study writes as CSV, TFRecord and 1,797 PNG files into the folder `files`, and reads again
by a pipeline for each. Then a table with words and gaps, as CSV and TFRecord files:

    python scripts/train.py --config=pipelines --config.dataset=heart_disease --config.hidden="(32, 16)"

A net is trained from each source through loops.DatasetFeed. It ends by saying whether the batches, and the weights, are the same bits, and
how long a first pass over each kind of file takes. In TensorBoard the curves of all sources lie on each other.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "pipelines"
    config.dataset = "digits"  # digits, heart_disease
    config.files = "runs/pipelines_files"  # folder that the files are written into
    config.hidden = (100, 50)  # units of the hidden layers
    config.batch_size = 32
    config.epochs = 15
    config.patience = 0  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001
    return config
