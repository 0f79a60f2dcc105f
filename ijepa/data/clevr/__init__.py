"""CLEVR-like scenes: random objects, labels, and a ray tracer."""
