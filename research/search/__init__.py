"""Hyper-parameter search: the space, trials that survive a kill, and what a search found. Optuna samples and prunes."""
