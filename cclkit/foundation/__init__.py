"""Adapters to segment_anything, sam2 and open_clip, the small models, the simulated front end."""
