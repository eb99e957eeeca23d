"""HST and HSC together: python docs/examples/two_surveys.py HST.fits HSC.fits, PSFs beside them as <name>_psf.fits."""

import sys

from tfdeblend import Deblender, Observation, Scene

scene = Scene.detect([Observation.read(path) for path in sys.argv[1:]])
result = Deblender(prior="sersic").deblend(scene)
result.catalog.pprint(max_lines=-1, max_width=-1)
for view, shift in zip(result.views, result.calibration.shift, strict=True):
    print(f"{view.observation.name}: chi2 a pixel {view.chi2:.2f}, moved by (y, x) = {shift.round(3)} pixels")
