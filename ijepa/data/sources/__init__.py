"""Raw formats, one module each. A file name is the ``source`` in data/datasets.yaml."""
