"""A recurrent network that reads text character by character, its state carried from batch to batch.

The text is cut into as many streams as a batch has rows, and these into windows: the gradient goes back through one window only (truncated
back-propagation through time), the state through all that was read before. The state is a variable of the task, so a run that is killed
goes on with it; evaluation has one of its own. What the network writes in the end is printed and lies in `sample.txt` of the workdir. As
it stands it learns from scikit-learn's descriptions of data sets, in under a minute. On Shakespeare's plays it gets below 1.5 nats a
character:

    python scripts/train.py --config=research/configs/char_gru.py --config.dataset=tinyshakespeare --config.batch_size=64 \\
        --config.epochs=12 --workdir=runs/char_gru

In TensorBoard: `epoch_loss` of train and validation, and the learning rate, halved when the validation loss no longer falls.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.study = "char_gru"
    config.dataset = "handbook"  # handbook, tinyshakespeare
    config.window = 64  # characters that the gradient goes back
    config.embedding = 64
    config.units = 256
    config.dropout = 0.2
    config.batch_size = 16  # streams of the training text
    config.evaluation_streams = 16
    config.epochs = 20
    config.patience = 4  # epochs without a better val_loss until training stops; 0: never
    config.plateau = 2  # epochs without a better val_loss until the learning rate is halved; 0: never
    config.clip = 1.0  # bound of the gradient's norm; 0: none
    config.on_nonfinite = "raise"  # what a loss that is not finite does: raise, stop, ignore
    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"  # any that keras.optimizers.get knows
    config.optimizer.learning_rate = 2e-3
    config.sample = ml_collections.ConfigDict()
    config.sample.prompt = ""  # what the text that is written begins with; empty: the first character of the validation text
    config.sample.length = 600
    config.sample.temperature = 0.8
    return config
