"""What an archive of the simulated SDSS sky holds, against the real SDSS-II candidates; the table of docs/sky.md.

    python benchmarks/sky_population.py ARCHIVE --candidates JLA2014_SDSS_DS17_HEAD.FITS.gz

Prints Markdown: redshifts and observations per object, 5, 50 and 95 %, real and simulated, with the numbers of objects.
Real redshifts are REDSHIFT_FINAL where the table has one; SNTYPE 106 and 104, 105 are photometric types with a spectrum
of the host. Simulated objects go by their label, wrong ones included, as the real ones do.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from astropy.io import fits
from numpy.typing import NDArray

from skyheed.classifier.archives.reader import Archive

Rows = Iterator[tuple[str, NDArray[np.float64], NDArray[np.float64]]]

# Row -> SNTYPE of the real ones; class and confirmed of the simulated ones.
GROUPS = {
    "SN Ia, spectrum": ((118, 119, 120), "SNIa", True),
    "SN Ia, photometric with host redshift": ((106,), "SNIa", False),
    "other SN, spectrum": ((111, 112, 113, 114, 115), "SNOther", True),
    "other SN, photometric with host redshift": ((104, 105), "SNOther", False),
    "AGN": ((110,), "AGN", True),
}


def compare(archive: Archive, candidates: Path) -> Rows:
    """(what, real values, simulated values): redshifts by group, then observations per object of all classes."""
    real, simulated = fits.getdata(candidates, 1), archive.objects
    kind, redshift = real["SNTYPE"].astype(int), np.asarray(real["REDSHIFT_FINAL"], float)
    label, confirmed = (np.array(simulated[name].to_pylist()) for name in ("class", "confirmed"))
    drawn = simulated["redshift"].to_numpy().astype(float)
    for name, (kinds, wanted, spectrum) in GROUPS.items():
        known = np.isin(kind, kinds) & (redshift > 0)
        yield name, redshift[known], drawn[(label == wanted) & (confirmed == spectrum)]
    yield "stamps per object", real["NOBS"][kind > 0].astype(float), simulated["stamps"].to_numpy().astype(float)


def text(values: NDArray[np.float64]) -> str:
    """Three percentiles and the number of values."""
    digits = 0 if values.max() > 20 else 2
    return " ".join(f"{v:.{digits}f}" for v in np.percentile(values, [5, 50, 95])) + f" ({len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--candidates", type=Path, required=True, help="SNANA HEAD table of the SDSS-II candidates")
    given = parser.parse_args()
    print("| class | real | simulated |\n|---|---|---|")
    for name, real, simulated in compare(Archive(given.archive), given.candidates):
        print(f"| {name} | {text(real)} | {text(simulated)} |")


if __name__ == "__main__":
    main()
