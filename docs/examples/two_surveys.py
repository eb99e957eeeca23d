"""HST and HSC together: python docs/examples/two_surveys.py HST.fits HSC.fits, PSFs beside them as <name>_psf.fits."""

import sys

from tfdeblend import Observation, deblend_together

hst, hsc = (Observation.read(path) for path in sys.argv[1:])
result = deblend_together([hst, hsc], prior="sersic")
result.catalog.pprint(max_lines=-1, max_width=-1)
for observation, chi2, shift in zip(result.exposures.observations, result.chi2, result.calibration.shift, strict=True):
    print(f"{observation.name}: chi2 a pixel {chi2:.2f}, moved by (y, x) = {shift.round(3)} pixels")
