"""Images: raw sources, WebDataset shards, and how batches are read from them."""
