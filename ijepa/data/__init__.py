"""Images: raw sources, WebDataset shards, and a loader of batches."""
