"""Experiment configs for `scripts/train.py --config=research/configs/NAME.py`, one `get_config()` a file."""
