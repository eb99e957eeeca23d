"""A large field in parts: every source is owned once, and the parts' sources are those of a fit of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from simulations import Galaxy, simulate

