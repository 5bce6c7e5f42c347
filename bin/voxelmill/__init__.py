"""Voxelmill: nnU-Net segmentation of images of any size, exact, bounded and nothing silent."""

__version__ = "0.1.0"
