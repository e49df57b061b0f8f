"""What studies draw, with matplotlib: curves, pictures of data and predictions, norms of gradients."""
