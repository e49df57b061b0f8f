"""Writes what TensorBoard reads: event files, projector files, profiles. It does not decide what is written, and knows no loop."""
