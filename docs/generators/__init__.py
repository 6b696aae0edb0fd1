"""Where the generated pages come from; see `docs/generate.py`."""
