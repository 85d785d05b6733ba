import gzip
import io
import random
import zlib

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from real_data import rubin_files, ztf_files

from skyheed.broker.errors import PacketError, Reason
from skyheed.broker.packets import fits as stamps
from skyheed.broker.packets.container import Decoder
from skyheed.broker.packets.fits import on_sky, read_image
from skyheed.broker.packets.inflate import RAW, InflateError, TooLong, inflate
from skyheed.broker.packets.stamps import WantedStamps
from skyheed.broker.packets.surveys import load_survey
from skyheed.broker.registry.schemas import SchemaSource

RNG = np.random.default_rng(5)
CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")


def make_fits(pixels, cards=(), *, hdu=fits.PrimaryHDU, before=()):
    """A FITS file as astropy writes it."""
    unit = hdu(pixels)
    unit.header.update(dict(cards))
    out = io.BytesIO()
    fits.HDUList([*before, unit]).writeto(out)
    return out.getvalue()


def sky_cards(**changes):
    cards = {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 33.25, "CRPIX2": 30.5, "CRVAL1": 150.1, "CRVAL2": 2.2,
        "CD1_1": -4e-5, "CD1_2": 3e-5, "CD2_1": 3.1e-5, "CD2_2": 4.1e-5,
    }  # fmt: skip
    return {key: value for key, value in (cards | changes).items() if value is not None}


def header(text):
    """A FITS file with this header and 2880 bytes behind it."""
    cards = "".join(f"{card:<80}" for card in [*text.splitlines(), "END"])
    return cards.ljust(-(-len(cards) // 2880) * 2880).encode() + bytes(2880)


HEADER = "SIMPLE  =                    T\nBITPIX  =                  -32\nNAXIS   =                    2\n"


def wanted_of(image, njy_per_count, where):
    """The science stamp of one image, to be made."""
    return WantedStamps({"science": b"a file"}, njy_per_count, where, lambda _: image)


def sky_stamp(image, njy_per_count, ra, dec):
    """The stamp of one image centred on a position, rotated by the image's own WCS, and its flags."""
    stamps, flags = wanted_of(image, njy_per_count, lambda one: on_sky(one, ra, dec)).result()
    return stamps["science"], flags


def reason_of(call, *arguments):
    with pytest.raises(PacketError) as caught:
        call(*arguments)
    return caught.value.reason


def test_plain_and_gzipped_give_the_same_pixels():
    pixels = RNG.normal(100, 10, (58, 63)).astype(np.float32)
    pixels[3, 4] = np.nan
    data = make_fits(pixels, {"BUNIT": "nJy"})
    for file in (data, gzip.compress(data)):
        image = read_image(file)
        assert image.pixels.dtype == np.float32
        assert image.pixels.dtype.isnative
        assert image.header.unit == "nJy"
        assert image.header.wcs is None
        np.testing.assert_array_equal(image.pixels, pixels)


@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4", "f8"])
def test_pixel_types_and_scaling(dtype):
    pixels = RNG.integers(0, 200, (20, 30)).astype(dtype)
    cards = {"BSCALE": 0.5, "BZERO": 100.0}
    hdu = fits.PrimaryHDU(pixels)
    out = io.BytesIO()
    hdu.writeto(out)
    plain = read_image(out.getvalue())
    np.testing.assert_array_equal(plain.pixels, pixels.astype(np.float32))
    scaled = out.getvalue().replace(b"END".ljust(240), card(cards), 1)  # the block keeps its length
    image = read_image(scaled)
    np.testing.assert_array_equal(image.pixels, pixels.astype(np.float64) * 0.5 + 100)


def card(cards):
    text = "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in cards.items())
    return (text + "END".ljust(80)).encode()


def test_blank_is_nan():
    pixels = np.array([[1, 2], [-99, 4]], np.int16)
    image = read_image(make_fits(pixels, {"BLANK": -99}))
    np.testing.assert_array_equal(image.pixels, [[1, 2], [np.nan, 4]])


def test_first_image_behind_an_empty_unit():
    pixels = RNG.normal(0, 1, (12, 9)).astype(np.float32)
    extra = [fits.PrimaryHDU()]
    data = make_fits(pixels, sky_cards(), hdu=fits.ImageHDU, before=extra)
    image = read_image(data)
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.header.wcs is not None


@pytest.mark.parametrize("form", ["CD", "PC", "PC without CDELT", "CDELT"])
def test_wcs_agrees_with_astropy(form):
    cards = sky_cards()
    if form != "CD":
        matrix = {f"PC{i}_{j}": cards.pop(f"CD{i}_{j}") for i in (1, 2) for j in (1, 2)}
        if form == "PC":
            cards |= {key: value * 1e4 for key, value in matrix.items()} | {"CDELT1": 1e-4, "CDELT2": 1e-4}
        elif form == "CDELT":
            cards |= {"CDELT1": -1e-4, "CDELT2": 1.1e-4}
        else:
            cards |= matrix
    data = make_fits(np.zeros((60, 64), np.float32), cards)
    wcs = read_image(data).header.wcs
    assert wcs is not None
    reference = WCS(fits.getheader(io.BytesIO(data)))
    for x, y in [(0, 0), (63, 59), (31.5, 12.25)]:
        ra, dec = reference.all_pix2world(x, y, 0)
        assert wcs.pixel_of(float(ra), float(dec)) == pytest.approx((x, y), abs=1e-6)


def test_position_on_the_other_side_of_the_sky_is_refused():
    image = read_image(make_fits(np.zeros((60, 64), np.float32), sky_cards()))
    assert reason_of(sky_stamp, image, 1.0, 330.1, -2.2) is Reason.BAD_FITS
    assert reason_of(sky_stamp, image, 1.0, 150.2, 2.2) is Reason.BAD_FITS


def test_position_across_the_meridian():
    data = make_fits(np.zeros((60, 64), np.float32), sky_cards(CRVAL1=0.0001))
    wcs = read_image(data).header.wcs
    assert wcs is not None
    ra, dec = WCS(fits.getheader(io.BytesIO(data))).all_pix2world(50, 20, 0)
    assert wcs.pixel_of(float(ra), float(dec)) == pytest.approx((50, 20), abs=1e-6)


@pytest.mark.parametrize("changes", [{"CRVAL1": None}, {"CTYPE1": "GLON-CAR", "CTYPE2": "GLAT-CAR"}])
def test_no_usable_wcs(changes):
    image = read_image(make_fits(np.zeros((60, 64), np.float32), sky_cards(**changes)))
    assert image.header.wcs is None
    assert reason_of(sky_stamp, image, 1.0, 150.1, 2.2) is Reason.BAD_FITS


def test_sky_stamp_turns_by_the_wcs():
    """The stamp of an image drawn through astropy's WCS shows each source where the sky has it."""
    data = make_fits(np.zeros((60, 64), np.float32), sky_cards())
    reference = WCS(fits.getheader(io.BytesIO(data)))
    step = 5e-5  # about the pixel's side, deg
    y, x = np.indices((60, 64))
    image = np.zeros((60, 64))
    for west, north, peak in [(0, 0, 1000), (6, 2, 500), (-3, -8, 300)]:
        dec = 2.2 + north * step
        px, py = reference.all_world2pix(150.1 - west * step / np.cos(np.radians(2.2)), dec, 0)
        image += peak * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 3)
    drawn = read_image(make_fits(image.astype(np.float32), sky_cards()))
    stamp, _ = sky_stamp(drawn, 1.0, 150.1, 2.2)
    assert np.unravel_index(stamp.argmax(), stamp.shape) == (16, 16)
    assert stamp[18, 22] == stamp[17:20, 21:24].max() > 3
    assert stamp[8, 13] == stamp[7:10, 12:15].max() > 1.8


def test_empty_stamp():
    image = read_image(make_fits(np.full((40, 40), np.nan, np.float32)))
    assert reason_of(wanted_of(image, 1.0, lambda _: (None, None)).result) is Reason.EMPTY_STAMP


# --- damaged files


def test_gzip_cut_anywhere_is_refused():
    data = gzip.compress(make_fits(RNG.normal(0, 1, (30, 30)).astype(np.float32)))
    for end in range(2, len(data), 97):
        assert reason_of(read_image, data[:end]) is Reason.BAD_GZIP


def test_gzip_with_a_wrong_checksum_is_refused():
    data = bytearray(gzip.compress(make_fits(np.zeros((30, 30), np.float32))))
    data[-6] ^= 1
    assert reason_of(read_image, bytes(data)) is Reason.BAD_GZIP


def test_bomb_is_refused():
    assert reason_of(read_image, gzip.compress(bytes(50_000_000))) is Reason.BOMB


def test_inflate_stops_at_the_limit():
    data = zlib.compress(bytes(1000), wbits=-15)
    assert inflate(data, 1000, RAW) == bytes(1000)
    with pytest.raises(TooLong):
        inflate(data, 999, RAW)
    with pytest.raises(InflateError):
        inflate(data[:-1], 1000, RAW)


def test_large_plain_file_is_refused():
    assert reason_of(read_image, b"SIMPLE  " + bytes(stamps.MAX_STAMP_BYTES)) is Reason.STAMP_TOO_LARGE


@pytest.mark.parametrize(
    ("axes", "reason"),
    [
        ("NAXIS1  =           2000000000\nNAXIS2  =           2000000000", Reason.STAMP_TOO_LARGE),
        ("NAXIS1  =                 1025\nNAXIS2  =                    1", Reason.STAMP_TOO_LARGE),
        ("NAXIS1  =                 1000\nNAXIS2  =                 1000", Reason.BAD_FITS),  # not that many bytes
        ("NAXIS1  =                  -63\nNAXIS2  =                   63", Reason.BAD_FITS),
        ("NAXIS1  =                    0\nNAXIS2  =                   63", Reason.BAD_FITS),
        ("NAXIS1  =                 many\nNAXIS2  =                   63", Reason.BAD_FITS),
        ("NAXIS1  =                  6_3\nNAXIS2  =                   63", Reason.BAD_FITS),  # a number to Python alone
        ("NAXIS1  =                   63", Reason.BAD_FITS),
        ("NAXIS1  = " + "9" * 70 + "\nNAXIS2  =                   63", Reason.STAMP_TOO_LARGE),
    ],
)
def test_absurd_axes(axes, reason):
    assert reason_of(read_image, header(HEADER + axes)) is reason


@pytest.mark.parametrize(
    "text",
    [
        HEADER.replace("   2\n", "   3\n") + "NAXIS1 = 5\nNAXIS2 = 5\nNAXIS3 = 5",
        HEADER.replace("-32", "  7") + "NAXIS1  = 5\nNAXIS2  = 5",
        HEADER.replace("   2\n", "   0\n"),  # no image at all
        HEADER + "NAXIS1  = 5\nNAXIS2  = 5\nCRVAL1  = 5\nCD1_1   = nan",
        HEADER + "NAXIS1  = 5\nNAXIS2  = 5\nBZERO   = 1E999",
        HEADER + "NAXIS1  = 5\nNAXIS2  = 5\nBZERO   = 1_0",
    ],
)
def test_senseless_headers(text):
    assert reason_of(read_image, header(text)) is Reason.BAD_FITS


@pytest.mark.parametrize(
    "card",
    [
        "SIMPLE  =                    F",  # then nothing else need be as the standard says
        "SIMPLE  =                    1",
        "NAXIS   =                    2                $",
        "NAXIS1  =                    8    0",
        "CRVAL2  = 2.2                       0",
        "CRPIX1  = 33.25 2",
        "BUNIT   = 'nJy' 'DN'",
        "PV1_1   = 0.0 0.1",
        "OBJECT  = 'caf\xe9'",
        "OBJECT  = 'a\tb'",
        "OBJECT  = 'a\0b'",
    ],
)
def test_what_stands_behind_a_value_is_not_passed_over(card):
    """One flipped bit in a card's blanks: astropy reads another value, or none, so that neither is to be trusted."""
    good = header(
        f"{HEADER}NAXIS1  =                    8\nNAXIS2  =                    8\nBUNIT   = 'nJy     ' / unit"
    )
    assert read_image(good).pixels.shape == (8, 8)
    name = card[:8].encode()
    place = good.index(name) if name in good else good.index(b"END")
    end = b"" if name in good else b"END".ljust(80)
    bad = good[:place] + card.encode("latin-1").ljust(80) + end + good[place + 80 + len(end) :]
    assert reason_of(read_image, bad) is Reason.BAD_FITS


def header_with(*cards):
    plain = f"{HEADER}NAXIS1  =                    8\nNAXIS2  =                    8\n"
    return header("\n".join([plain.rstrip(), *cards]))


@pytest.mark.parametrize(
    "cards",
    [
        ["NAXIS1  =                    4"],  # a second one: astropy takes the first, others the last
        ["NAXIS1  =                    /"],
        ["BSCALE  = 2.0", "BSCALE  = 1.0"],
        ["CRVAL1  = 5.0", "CRVAL1  = F"],
        ["BSCALE  ="],
        ["BZERO   = / not known"],
        ["BLANK     0"],
        ["CTYPE2   'RA---TAN'"],
        ["CD1_2     5"],
        ["A_2_0     5"],
        ["END     = 'DEC--TAN'", "CRPIX1  = 99999999999"],  # astropy reads on behind it
        ["END / of the header"],
    ],
)
def test_keywords_without_a_value_or_with_two_are_refused(cards):
    assert reason_of(read_image, header_with(*cards)) is Reason.BAD_FITS


@pytest.mark.parametrize(
    "cards",
    [
        ["BSCALE  = 2.0", "BSCALE  = 2.0 / said twice"],
        ["COMMENT = 5", "OBJECT", "OBJECT  ="],
        ["PSFSIGMA= 1.3", "PVERSION= 4.1", "DQMASK  = 3", "A_RATIO = 0.9", "CPUSEC  = 1", "D2GRID  = 2"],
        ["DP1     = 'EXTVER: 1'", "DP1     = 'NAXES: 2'"],
    ],
)
def test_keywords_that_say_nothing_of_the_image_do_not_matter(cards):
    cards = [*cards, *(f"{key:<8}= {value!r}" for key, value in sky_cards().items())]
    image = read_image(header_with(*cards))
    assert image.pixels.shape == (8, 8)
    assert bool(image.header.wcs) != cards[0].startswith("DP1"), image.header.no_wcs


def test_an_image_that_is_smaller_than_its_data_is_refused():
    """A damaged NAXIS2: rows that the header leaves out stand where the next unit should begin."""
    data = make_fits(RNG.normal(0, 1, (63, 63)).astype("f4"))
    assert read_image(data + bytes(2880)).pixels.shape == (63, 63)  # padding
    assert reason_of(read_image, data + b"x") is Reason.BAD_FITS
    fewer = data.replace(b"NAXIS2  =                   63", b"NAXIS2  =                    6")
    assert reason_of(read_image, fewer) is Reason.BAD_FITS


@pytest.mark.parametrize("data", [b"", b"SIMPLE", b"SIMPLE  = T", b"\x89PNG\r\n", bytes(6000), b"SIMPLE  " * 20_000])
def test_not_fits(data):
    assert reason_of(read_image, data) is Reason.BAD_FITS


def test_header_without_end():
    assert reason_of(read_image, header(HEADER).replace(b"END", b"   ")) is Reason.BAD_FITS


def test_headers_are_parsed_once_and_few_are_remembered():
    pixels = np.zeros((5, 4), np.float32)
    same, other = make_fits(pixels, {"BUNIT": "nJy"}), [make_fits(pixels, {"CRVAL1": n}) for n in range(100)]
    read_image(same)
    before = stamps._parse.cache_info()
    assert read_image(same).header.unit == "nJy"
    assert stamps._parse.cache_info().hits == before.hits + 1
    for data in other:
        read_image(data)
    assert stamps._parse.cache_info().currsize <= 64


def test_pixels_cut_short():
    data = make_fits(np.zeros((40, 40), np.float32))
    assert reason_of(read_image, data[: 2880 + 40 * 40 * 4 - 1]) is Reason.BAD_FITS


def test_mutations_end_in_packet_errors_only():
    random.seed(11)
    files = [
        make_fits(RNG.normal(0, 1, (30, 30)).astype(np.float32), sky_cards(CRPIX1=15.0, CRPIX2=16.0)),
        gzip.compress(make_fits(RNG.normal(0, 1, (30, 30)).astype(np.float32), {"BUNIT": "DN"}), 1),
        make_fits(
            RNG.integers(0, 9, (9, 9), np.int16), sky_cards(BLANK=3), hdu=fits.ImageHDU, before=[fits.PrimaryHDU()]
        ),
    ]
    refused = 0
    for _ in range(3000):
        data = bytearray(random.choice(files))
        for _ in range(random.randint(1, 4)):
            data[random.randrange(min(len(data), 3000))] = random.choice(b"0123456789 -+.EDTX='/\x00\xff")
        try:
            image = read_image(bytes(data))
            sky_stamp(image, 1.0, 150.1, 2.2)
        except PacketError:
            refused += 1
    assert 100 < refused < 3000


# --- real stamps


def compare(data):
    image = read_image(data)
    raw = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    with fits.open(io.BytesIO(raw), ignore_missing_simple=True) as file:
        np.testing.assert_array_equal(image.pixels, file[0].data)
        assert image.header.unit == file[0].header["BUNIT"]
        return image, file[0].header.copy()


@pytest.mark.filterwarnings("ignore:Found a SIMPLE card")
def test_every_real_ztf_stamp_as_astropy_reads_it():
    read = 0
    for path in ztf_files():
        with path.open("rb") as file:
            for record in fastavro.reader(file):
                for name in CUTOUTS:
                    image, _ = compare(record[name]["stampData"])
                    assert image.header.wcs is None
                    read += 1
    assert read == 3 * 242


def test_every_real_rubin_stamp_as_astropy_reads_it():
    pytest.importorskip("lsst.alert.packet", reason="package lsst-alert-packet is not installed")
    read = 0
    for kind in ("science", "template", "difference"):
        survey = load_survey("lsst", kind)
        decoder = Decoder(survey.reader_schema, schemas=SchemaSource())
        for path in rubin_files():
            (record,) = decoder.decode(path.read_bytes())
            image, cards = compare(record[f"cutout{kind.capitalize()}"])
            cards["CTYPE1"], cards["CTYPE2"] = "RA---TAN", "DEC--TAN"  # the packets leave them out
            ra, dec = record["diaSource"]["ra"], record["diaSource"]["dec"]
            x, y = WCS(cards).all_world2pix(ra, dec, 0)
            assert image.header.wcs is not None
            assert image.header.wcs.pixel_of(ra, dec) == pytest.approx((float(x), float(y)), abs=1e-6)
            read += 1
    assert read == 3 * 39
