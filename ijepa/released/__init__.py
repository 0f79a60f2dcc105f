"""Weights that others have published: downloaded, converted, and written in their layouts."""
