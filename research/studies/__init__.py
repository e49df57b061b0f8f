"""One study a file: its model, its task, and `build`, which makes the `Study` or `Comparison` that a config names."""
