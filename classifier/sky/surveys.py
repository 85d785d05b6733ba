"""Survey constants, each with its source: what makes the same simulation SDSS, ZTF or LSST.

Fluxes are nJy; AB magnitudes have zero point 31.4 (Oke & Gunn 1983, ApJ 266, 713).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from skyheed.classifier.errors import ArchiveError

AB_ZERO = 31.4


@dataclass(frozen=True)
class Band:
    """One filter and the camera's properties in it, for a typical visit.

    Attributes:
        wavelength, width: effective wavelength and full width at half maximum, Angstrom.
        seeing: median FWHM of the PSF, arcsec.
        sky_noise: nJy per pixel.
        electrons: electrons per nJy in one exposure, for photon noise.
        extinction: A(band) / E(B-V), Schlafly & Finkbeiner 2011, ApJ 737, 103, R_V = 3.1.
        delay: seconds after the visit's start.
        zero_point: AB magnitude of one count.
    """

    wavelength: float
    width: float
    seeing: float
    sky_noise: float
    electrons: float
    extinction: float
    delay: float
    zero_point: float


@dataclass(frozen=True)
class Cadence:
    """When a position is observed.

    Attributes:
        seasons: first and last MJD of every season.
        clear: share of nights that are not lost to weather.
        memory: probability that a night repeats the weather of the previous one, beyond `clear` itself.
        strips: parts of the sky observed in turn; blocks: adjacent parts, each with its own turns.
        visits: probability that in a clear night, in a block, the strip that has waited longest is imaged.
        again: probability that another one is imaged.
        overlap: fraction of the sky that lies in two strips.
        filters: groups of bands taken in one visit, with their relative frequency.
        lost: probability that one band of a visit is missing.
        often, repeats: probability that a position lies in a field that is observed more often, and the maximum number
            of repetitions of each of its visits in the same night.
    """

    seasons: tuple[tuple[float, float], ...]
    clear: float
    memory: float
    strips: int
    blocks: int
    visits: float
    again: float
    overlap: float
    filters: Mapping[str, float]
    lost: float
    often: float = 0.0
    repeats: int = 0


@dataclass(frozen=True, eq=False)  # compared and hashed by identity
class Survey:
    """Everything the simulation knows about a survey.

    Attributes:
        pixel: arcsec; size: pixels along a stamp's side.
        ra, dec: limits of the area, degrees; ra may run beyond 360.
        astrometric_error: scatter of the source's position in its stamps per coordinate, arcsec.
        calibration_error: scatter of the visits' zero points, relative.
        saturation: AB magnitude of a star that saturates its central pixel in median seeing.
        search: bands in which the survey looks for candidates.
        detections_only: the survey sends a packet only for an exposure in which it detects the object; otherwise our
            replay sends every exposure, starting with the first visit with a detection.
        template_visits: visits stacked into the template; 0: the survey sends no template or difference stamps.
        oversample: factor of the grid on which an image is computed, 2 if the PSF is undersampled.
        turns: the camera rotates on the sky from visit to visit.
        column_angle: direction of the detector's columns in a stamp, degrees from the rows' normal.
        seeing_night, worst_seeing: scatter (log-normal) of nightly seeing, and the worst that is used, relative.
        sky_night: scatter (log-normal) of nightly sky noise, not counting the Moon.
        cloud: magnitudes of extinction that the calibration corrects, mean (exponential).
        whole_pixels: stamps are cut at whole pixels, so that the source lies anywhere within the central pixel.
        error_scale: errors stated by the survey, relative to those from pixel noise.
        bright_error: additional error of bright sources as stated by the survey, as a fraction of the flux.
        registration, match: of the template, scatter in pixels and of the relative FWHM.
        grain: fraction of a pixel's noise that each neighbour shares in the template, minimum and maximum.
        history_days: look-back time of a packet's photometry; 0: the survey's packets have none.
        forced: probability that a packet contains forced photometry; upper_limits: whether it contains limits of
            non-detections.
        catalogued, referenced: probability that packets list catalogue sources, and a source of the reference image.
        lasts: years of the survey over which objects are found.
        yearly: exposures of a position per year, all programmes together: median and scatter (ln).
    """

    name: str
    bands: Mapping[str, Band]
    cadence: Cadence
    pixel: float
    size: int
    ra: tuple[float, float]
    dec: tuple[float, float]
    astrometric_error: float
    calibration_error: float
    saturation: float
    search: str
    detections_only: bool
    template_visits: int
    oversample: int
    turns: bool
    column_angle: float
    seeing_night: float = 0.13
    worst_seeing: float = 1.7
    sky_night: float = 0.08
    cloud: float = 0.04
    whole_pixels: bool = False
    error_scale: float = 1.0
    bright_error: float = 0.0
    registration: float = 0.03
    match: float = 0.008
    grain: tuple[float, float] = (0.0, 0.0)
    history_days: float = 0.0
    forced: float = 0.0
    upper_limits: bool = False
    catalogued: float = 0.98
    referenced: float = 1.0
    lasts: float = 0.0
    yearly: tuple[float, float] = (0.0, 0.0)

    @property
    def alert_rule(self) -> str:
        """Which exposures are alerts, as stated in the data card."""
        if self.detections_only:
            return "in exposures with a detection, and in no others: the survey sends a packet only for what it detects"
        return "from the first visit with a detection on, in every exposure"


def _bands(rows: Mapping[str, tuple[float, ...]]) -> Mapping[str, Band]:
    return MappingProxyType({name: Band(*values) for name, values in rows.items()})


# SDSS. Wavelengths and widths: Fukugita et al. 1996, AJ 111, 1748. Seeing: Stripe 82 in r 1.3-1.4", worse in the blue
# (Annis et al. 2014, ApJ 794, 120). Sky noise: so that the error of a faint point source is the median of the 101
# light curves of SALT3.K21 (u 1960, g 710, r 1000, i 1460, z 4650 nJy). Electrons: gain and nanomaggies per count of
# the SDSS photometric system (psField, frame headers). Delays: the filters cross the sky in the order r i u z g, one
# every 71.7 s (Gunn et al. 1998, AJ 116, 3040). Astrometry: 45 mas (Pier et al. 2003, AJ 125, 1559).
# Nights: Frieman et al. 2008, AJ 135, 338: September to November of 2005, 2006 and 2007, two strips by turns.
SDSS = Survey(
    name="sdss",
    bands=_bands(
        {
            "u": (3551, 599, 1.50, 235, 0.043, 4.239, 143.4, 22.5),
            "g": (4686, 1379, 1.42, 85, 0.24, 3.303, 286.8, 24.4),
            "r": (6166, 1382, 1.33, 137, 0.27, 2.285, 0.0, 24.1),
            "i": (7480, 1535, 1.27, 216, 0.21, 1.698, 71.7, 23.8),
            "z": (8932, 1370, 1.29, 670, 0.040, 1.263, 215.1, 22.2),
        }
    ),
    cadence=Cadence(
        seasons=((53614, 53706), (53974, 54069), (54346, 54434)),
        clear=0.60,
        memory=0.2,
        strips=2,
        blocks=6,
        visits=0.62,
        again=0.15,
        overlap=0.07,
        filters=MappingProxyType({"ugriz": 1.0}),
        lost=0.02,
    ),
    pixel=0.396,
    size=64,
    ra=(300.0, 420.0),
    dec=(-1.26, 1.26),
    astrometric_error=0.045,
    calibration_error=0.007,
    saturation=14.0,
    search="gri",
    detections_only=False,  # there was no alert stream; replay sends what the survey measured at each position
    template_visits=0,
    oversample=1,
    turns=False,
    # A drift scan runs along the equator: columns of the CCD lie along right ascension.
    column_angle=90.0,
)

# ZTF. Wavelengths and widths: Bellm et al. 2019, PASP 131, 018002. Seeing, sky noise and their variations, the stated
# errors relative to pixel noise, the template's noise and its correlation: chosen so that simulated stamps, measured in
# the same way, match those of 338 real packets (benchmarks/sky_gap.py; published are a seeing of 2.1" and 5 sigma at
# 20.8, 20.6, 19.9 in dark time). 6.2 electrons per count, zero points 26.2-26.3 (Masci et al. 2019, PASP 131, 018003).
# Cadence of the public survey: g and r every third night, i for part of the sky; packets contain 30 days of photometry
# (ibid.). Alerts: every 5-sigma detection in a difference image, in any band (ibid.; Patterson et al. 2019, PASP 131,
# 018001); other exposures appear in the packet as photometry without stamps.
ZTF = Survey(
    name="ztf",
    bands=_bands(
        {
            "g": (4723, 1282, 2.62, 1080, 0.056, 3.258, 0.0, 26.27),
            "r": (6340, 1553, 2.58, 1450, 0.056, 2.238, 2700.0, 26.28),
            "i": (7886, 1420, 2.50, 2500, 0.052, 1.602, 5400.0, 25.66),
        }
    ),
    cadence=Cadence(
        seasons=((58300, 58480), (58665, 58845), (59030, 59210)),
        clear=0.72,
        memory=0.35,
        strips=3,
        blocks=4,
        visits=0.92,
        again=0.06,
        overlap=0.25,
        filters=MappingProxyType({"gr": 0.70, "gri": 0.15, "r": 0.08, "g": 0.07}),
        lost=0.01,
        often=0.4,
        repeats=3,
    ),
    pixel=1.01,
    size=63,
    ra=(0.0, 360.0),
    dec=(-25.0, 75.0),
    astrometric_error=0.08,
    calibration_error=0.012,
    saturation=12.5,
    search="gri",
    detections_only=True,
    template_visits=20,
    oversample=2,
    turns=False,
    column_angle=0.0,
    seeing_night=0.27,
    worst_seeing=1.9,
    sky_night=0.42,
    cloud=0.10,
    whole_pixels=True,
    error_scale=1.65,
    bright_error=0.07,
    registration=0.02,
    match=0.006,
    grain=(0.08, 0.40),
    history_days=30.0,
    forced=0.25,
    upper_limits=True,
    lasts=6.0,
    yearly=(400.0, 0.6),
)

# LSST. Wavelengths, widths, depth of a visit (23.8, 24.5, 24.0, 23.4, 22.7, 22.0 after dithering and airmass), FWHM and
# zero points for 30 s: Ivezic et al. 2019, ApJ 873, 111, table 2, and Rubin SMTN-002; sky noise 10 % above that depth,
# as in the i stamps of the first on-sky alerts (38-40 nJy per pixel, Moon included). The wide survey observes a field
# in two filters every 3-4 nights, with an orientation that changes from visit to visit. Alerts: every 5-sigma
# detection in a difference image, in any band (ibid.; LSE-163); forced photometry has no stamp.
LSST = Survey(
    name="lsst",
    bands=_bands(
        {
            "u": (3671, 600, 0.92, 26, 0.45, 4.145, 0.0, 31.4),
            "g": (4827, 1430, 0.87, 13, 1.85, 3.237, 0.0, 31.4),
            "r": (6223, 1390, 0.83, 21, 1.52, 2.273, 1800.0, 31.4),
            "i": (7546, 1270, 0.80, 35, 1.14, 1.684, 1800.0, 31.4),
            "z": (8691, 1030, 0.78, 66, 0.79, 1.323, 3600.0, 31.4),
            "y": (9712, 990, 0.76, 160, 0.39, 1.088, 3600.0, 31.4),
        }
    ),
    cadence=Cadence(
        seasons=((61300, 61480), (61665, 61845), (62030, 62210)),
        clear=0.78,
        memory=0.3,
        strips=3,
        blocks=4,
        visits=0.92,
        again=0.06,
        overlap=0.08,
        filters=MappingProxyType({"gr": 0.25, "ri": 0.25, "iz": 0.18, "zy": 0.17, "ug": 0.15}),
        lost=0.01,
    ),
    pixel=0.2,
    size=30,
    ra=(0.0, 360.0),
    dec=(-65.0, 5.0),
    astrometric_error=0.015,
    calibration_error=0.005,
    saturation=16.0,
    search="ugrizy",
    detections_only=True,
    template_visits=20,
    oversample=1,
    turns=True,
    column_angle=0.0,
    error_scale=1.15,
    bright_error=0.03,
    history_days=365.0,
    forced=0.9,
    catalogued=0.5,
    referenced=0.5,
    lasts=1.0,
    yearly=(80.0, 0.6),
)

SURVEYS: Mapping[str, Survey] = MappingProxyType({survey.name: survey for survey in (SDSS, ZTF, LSST)})


def survey_named(name: str) -> Survey:
    """The survey of that name.

    Raises:
        ArchiveError: no such survey.
    """
    try:
        return SURVEYS[name]
    except KeyError:
        raise ArchiveError(f"no sky for survey {name!r}; there are {', '.join(SURVEYS)}") from None
