"""Several worker processes that train one model: who they are, how they find each other, and what they agree on.

It knows no task, no feed and no loop.
"""

from loops.cluster.agreement import Agreement
from loops.cluster.cluster import Cluster

__all__ = ["Agreement", "Cluster"]
