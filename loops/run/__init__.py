"""Does one training run: begins or resumes it, runs its epochs, keeps its state, ends it. Of hooks it knows `hooks.base` only."""
