"""Trained models as files: writing them in every form, reading them safely, and the check that both agree."""
