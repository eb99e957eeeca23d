"""`python -m tfdeblend`."""

import sys

from tfdeblend.app.cli import main

if __name__ == "__main__":
    sys.exit(main())
