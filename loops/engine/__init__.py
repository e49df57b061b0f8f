"""Runs training steps as compiled programs, counts and times them. It does not decide where epochs end, and knows no hook."""
