"""The trainer whose history the battery compares with that of `model.fit`."""

from __future__ import annotations

import functools

import loops

#: `loops.fit` in graph mode; "auto" would first find out whether XLA is faster.
graph_fit = functools.partial(loops.fit, compile="graph")
