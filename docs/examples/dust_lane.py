"""A galaxy behind dust, in mid-image: dust_lane.py GALAXY.fits WAVELENGTH ... (in micrometres, one a band)."""

import sys

from tfdeblend import Deblender, Observation, Scene, fit_dust
from tfdeblend.dust import calzetti

observation = Observation.read(sys.argv[1])
_, height, width = observation.shape
scene = Scene.from_catalog(observation, [[(width - 1) / 2, (height - 1) / 2]])
dusty = fit_dust(scene, calzetti([float(wavelength) for wavelength in sys.argv[2:]]))
alone = Deblender(prior="sersic").deblend(scene)
print(f"chi2 a pixel: {dusty.chi2:.2f} with dust, {alone.chi2:.2f} without, depth {dusty.optical_depth.max():.2f}")
for band, flux, share in zip(observation.bands, dusty.flux, dusty.transmitted, strict=True):
    print(f"{band}: flux {flux:.0f} without dust; a share of {share:.2f} arrives")
