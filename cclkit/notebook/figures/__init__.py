"""Every figure of the notebooks, a module for each notebook.

A figure function takes data and returns a matplotlib figure; `cclkit.notebook.show` saves it with
its provenance and displays it. What several notebooks draw, or draw with, stands in `common`.
"""
