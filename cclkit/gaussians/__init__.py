"""Gaussians: parameters and PLY files, the rasteriser, blending weights, RGB reconstruction."""
