"""cclkit: an open implementation of CCL-LGS, step by step."""

__version__ = "0.1.0"
