"""Weights that others have published: download, conversion, and export in their layouts."""
