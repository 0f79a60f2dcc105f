"""CLEVR-like scenes: what stands where, and how it is rendered."""
