"""Defines one step of learning: gradients, updates, learning rates, and what belongs to a task. Knows no program, epoch or hook."""
