"""What a reader of the page wants to know about a survey but its packets do not say: pixel scales, and where other
brokers show an object. Only addresses: nothing is requested from them.

The addresses are those to which public code of brokers and of their users links (read in November 2026: Rubin's
tutorials and TOM add-ons for ALeRCE, alert viewers for Fink and Lasair, the babamul client). None has been opened from
here: whether they still lead to the object has not been tried.
"""

from urllib.parse import quote

_PIXEL_ARCSEC = {"sdss": 0.396, "ztf": 1.012, "lsst": 0.2}
# name of a broker, and its page of an object
_BROKERS = {
    "ztf": (
        ("ALeRCE", "https://alerce.online/object/{}"),
        ("Fink", "https://ztf.fink-portal.org/{}"),
        ("Lasair", "https://lasair-ztf.lsst.ac.uk/objects/{}/"),
        ("Babamul", "https://babamul.caltech.edu/objects/ZTF/{}"),
    ),
    "lsst": (
        ("ALeRCE", "https://lsst.alerce.online/object/{}?survey=lsst"),
        ("Fink", "https://lsst.fink-portal.org/{}"),
        ("Lasair", "https://lasair.lsst.ac.uk/objects/{}/"),
        ("Babamul", "https://babamul.caltech.edu/objects/LSST/{}"),
    ),
}


def base_of(survey: str) -> str:
    """The survey whose packets they are: `ztf` for the replay `ztf.night20`."""
    return survey.partition(".")[0]


def pixel_arcsec(survey: str) -> float | None:
    """Arcseconds of a pixel's side; None if the survey's camera is not known."""
    return _PIXEL_ARCSEC.get(base_of(survey))


def brokers(survey: str, object_id: str) -> list[tuple[str, str]]:
    """(name, URL) of the object at other brokers; empty for a survey that they do not have."""
    return [(name, address.format(quote(object_id, safe=""))) for name, address in _BROKERS.get(base_of(survey), ())]
