"""The simulated sky: supernovae, active nuclei and variable stars, as observed by SDSS, ZTF or LSST.

Physics is in `supernovae`, `agn`, `stars`, `galaxies` and `spectra`, survey constants in `surveys`.
"""

from skyheed.classifier.sky.simulation import simulate
from skyheed.classifier.sky.surveys import SURVEYS

__all__ = ["SURVEYS", "simulate"]
