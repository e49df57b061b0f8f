"""The mathematics of studies that is no training step: derivatives by tapes, their closed forms, likelihoods."""
