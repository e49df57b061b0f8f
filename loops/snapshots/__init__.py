"""Stores snapshots as files, verifies them and deletes old ones. It knows files and bytes, nothing of training, and needs no TensorFlow."""
