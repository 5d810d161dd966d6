"""The stages of a run, a file each: how it is computed, and readers of what it made."""
