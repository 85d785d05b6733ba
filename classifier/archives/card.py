"""The text of an archive's data card."""

from collections.abc import Mapping
from typing import Any

from skyheed.classifier.safe_names import printable, table_cell

OBJECT_FIELDS = {
    "object_id": "the survey's name for the object",
    "class": "the label to learn: AGN, SNIa, Variable or SNOther",
    "type": "finer type (Ia, II-P, IIn, RRab, ...), empty if unknown",
    "true_class": "the truth of a simulated object; differs from `class` if a photometric label is wrong",
    "confirmed": "false if the label rests only on photometric supernova typing",
    "redshift": "NaN for stars and if unknown",
    "ra, dec": "degrees, ICRS",
    "peak_mjd": "maximum light; for AGN and variables the brightest epoch of the sequence",
    "origin": "`real` (images), `rendered` (images painted from real photometry), `painted` (simulated sources on real "
    "templates) or `simulated`",
    "split": "train, validation or test (70, 10, 20 %), from the object's name",
    "first_alert_mjd": "time of the first alert",
    "parameters": "JSON; what the object was made from",
}
STAMP_FIELDS = {
    "source_id": "unique number of the stamp",
    "mjd": "mid-exposure, MJD TAI",
    "band": "one of u g r i z y",
    "stamp (template, difference)": "pixels, nJy; binary float16 in units of `stamp_unit`",
    "flux, flux_error": "nJy; PSF flux of the difference against the template, as measured, and its error",
    "source_flux": "nJy; noise-free flux of the point source in the stamp itself (NaN in real images)",
    "detected": "|flux| above 5 errors in this stamp, in a band that the survey searches",
    "alert": "what an alert stream would have sent: only detections (ZTF, LSST), or every exposure from "
    "the first visit with a detection on (SDSS); other rows are forced photometry",
    "psf_fwhm": "arcsec",
    "sky_noise": "nJy per pixel, standard deviation",
    "zero_point": "AB magnitude of one count of the raw image",
    "photometry": "not in every archive: points without images that this epoch's packet adds to the earlier ones; mjd "
    "(TAI), band (index in ugrizy), flux and flux_error (nJy, of the difference), kind (0 detection, 1 forced, 2 upper "
    "limit)",
    "context_…": "not in every archive: what the packet says about the object's surroundings, by name; null if missing",
    "rotation": "the image's +y axis points this many degrees east of north; 0 is north up, east left",
}


def card_text(card: Mapping[str, Any]) -> str:
    """The data card in Markdown."""
    surveys = printable(", ".join(card["surveys"]))
    parts = [
        f"# {surveys} stamp sequences: {card['objects']} objects, {card['stamps']} stamps",
        _origin(card),
        str(card.get("made", "")).strip(),
        "## Counts\n\n" + _counts(card),
        "## objects.parquet\n\n" + _fields(OBJECT_FIELDS),
        "## stamps/part-*.parquet (one row group per object)\n\n" + _fields(STAMP_FIELDS),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _origin(card: Mapping[str, Any]) -> str:
    seed = f", seed {card['seed']}" if card.get("seed") is not None else ""
    command = printable(card.get("command", "unknown"))
    return (
        f"Made by `{command}`{seed} with skyheed {card['code_version']} on {card['date']}; "
        f"{card['bytes'] / 2**20:.0f} MiB, format {card['format']}."
    )


def _counts(card: Mapping[str, Any]) -> str:
    lines = ["| class | label | train | validation | test |", "|---|---|---|---|---|"]
    table: dict[tuple[str, bool], dict[str, int]] = {}
    for row in card["counts"]:
        table.setdefault((row["class"], row["confirmed"]), {})[row["split"]] = row["objects"]
    for (label, confirmed), splits in sorted(table.items()):
        cells = " | ".join(str(splits.get(name, 0)) for name in ("train", "validation", "test"))
        certainty = "confirmed" if confirmed else "photometric" if label else "none"
        lines.append(f"| {table_cell(label or 'unknown')} | {certainty} | {cells} |")
    return "\n".join(lines)


def _fields(fields: Mapping[str, str]) -> str:
    return "\n".join(f"- `{name}`: {meaning}" for name, meaning in fields.items())
