"""What `scripts/benchmark.py` and `scripts/benchmark_layers.py` run: workloads, the contenders that train them, layers by hand."""
