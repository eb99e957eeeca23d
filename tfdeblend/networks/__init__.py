"""Keras networks for images. They know nothing of astronomy, and run under any Keras backend."""

from tfdeblend.networks.layers import Coordinates, Fourier, Modulation, ToPixels
from tfdeblend.networks.unet import UNet

__all__ = ["Coordinates", "Fourier", "Modulation", "ToPixels", "UNet"]
