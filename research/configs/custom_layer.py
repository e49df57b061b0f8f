"""A layer of one's own in 30 lines: radial basis functions, saved in a model and loaded again.

`RadialBasis` in research/studies/custom_layer.py shows what a Keras layer consists of: `__init__` takes what does not depend on the input,
`build` makes the weights once the shape of the input is known, `call` computes, `get_config` makes it loadable, `compute_output_shape`
tells the shape without computing. Training ends with a check that the saved model gives the same outputs when it is loaded.

In TensorBoard, the histograms of `basis/centres` and `basis/width` show the weights that the layer made.

    python scripts/train.py --config=custom_layer --workdir=runs/custom_layer
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "custom_layer"
    config.dataset = "digits"  # any data set with classes
    config.normalize = "minmax"  # raw, minmax, zscore
    config.units = 100  # centres of the radial basis
    config.batch_size = 32
    config.epochs = 40
    config.patience = 5  # epochs without a better val_loss until training stops; 0: never
    config.on_nonfinite = "raise"
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 0.01
    return config
