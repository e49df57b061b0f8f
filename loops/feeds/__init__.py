"""Cuts data sources into blocks of batches, readable from a position on. Knows no task, program or hook."""

from loops.feeds.arrays import ArrayFeed
from loops.feeds.base import Block, Feed, IndexedBlock, Position
from loops.feeds.dataset import DatasetFeed
from loops.feeds.generator import GeneratorFeed
from loops.feeds.none import NoFeed
from loops.feeds.py_dataset import PyDatasetFeed
from loops.feeds.schedule import FeedSchedule

__all__ = [
    "ArrayFeed",
    "Block",
    "DatasetFeed",
    "Feed",
    "FeedSchedule",
    "GeneratorFeed",
    "IndexedBlock",
    "NoFeed",
    "Position",
    "PyDatasetFeed",
]
