"""The house rules of this package: what is asked of its own layers beyond what Keras asks of any. `check_layer` is told which to apply."""

from __future__ import annotations

__all__ = ["HOUSE_RULES"]

#: Rule -> what it asks for.
HOUSE_RULES: dict[str, str] = {
    "keywords": "the constructor takes its arguments by keyword only",
    "registered": "the class is registered, so that files with it can be read",
    "complete_config": "get_config holds every argument, defaults too",
    "exact_shapes": "only batch and time are unknown in shapes that are told beforehand",
    "masks": "supports_masking is True where `call` takes a mask, and the case has a time axis to check it",
    "full_precision": "losses are computed in float32 or better, metrics are in float32, under every policy",
    "checkpoints": "tf.train.Checkpoint finds seeds and what is in lists, too",
    "quiet": "seeds stay as they are at training=False",
    "compiles": "XLA compiles the layer, and has all that it uses",
    "empty_batches": "a batch of no examples works, as a replica may get one",
}
