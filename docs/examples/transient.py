"""A light curve: transient.py TEMPLATES RA DEC RA_HOST DEC_HOST EPOCH.fits ..., first as many epochs without it."""

import sys

from astropy.coordinates import SkyCoord

from tfdeblend import Observation, light_curve

templates, (ra, dec, ra_host, dec_host) = int(sys.argv[1]), map(float, sys.argv[2:6])
epochs = [Observation.read(path) for path in sys.argv[6:]]
host, transient = {"ra": [ra_host], "dec": [dec_host]}, SkyCoord(ra, dec, unit="deg")
result = light_curve(epochs, host, transient, off=range(templates))
result.table.pprint(max_lines=-1, max_width=-1)
print(f"transient at (y, x) = {result.position.round(3)}, chi2 a pixel {max(result.chi2):.2f} at most")
