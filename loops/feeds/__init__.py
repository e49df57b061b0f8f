"""Data sources as blocks of batches."""

from loops.feeds.arrays import ArrayFeed
from loops.feeds.base import Block, Feed, Position
from loops.feeds.dataset import DatasetFeed
from loops.feeds.none import NoFeed

__all__ = ["ArrayFeed", "Block", "DatasetFeed", "Feed", "NoFeed", "Position"]
