"""Tabletop: a path-traced benchmark with the structure of LERF-OVS and 3D-OVS and exact ground
truth.

``python -m lab tabletop`` renders scenes from their seeds, packs archives and compares folders with
a new render. Mitsuba 3 is needed for rendering only, never to use the committed scenes.
"""
