"""Heart disease from a table of numbers, categories and gaps, encoded by keras.utils.FeatureSpace, judged by cross-validation.

Needs the heart disease data (`processed.cleveland.data` or `heart.csv` in a folder `heart_disease/` below --data_dir), which is not
bundled; it is downloaded once if it is not there.

    python scripts/train.py --config=heart --workdir=runs/heart

FeatureSpace is what took the place of TensorFlow's feature columns. The options in `columns` are those of the notes: numeric, bucketized
(discretized), vocabulary as indicator, embedding, crossed; leave some out to see what they are worth. Missing numbers become the median of
the training rows, and the model is told where. In TensorBoard: `epoch_auc` of the validation runs shows how far folds of 60 patients
differ; under Images, the ROC curve over all patients.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "heart"
    config.folds = 5
    config.columns = ("numeric", "indicator", "discretized", "embedding", "crossed")
    config.crossing = 64  # places that pairs of age group and thal are hashed into
    config.embedding = 8  # length of the vector of each value of thal
    config.hidden = (32, 16)  # units of the hidden layers
    config.dropout = 0.3
    config.batch_size = 32
    config.epochs = 60
    config.patience = 15  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.001
    return config
