import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from minilearn.data.sets.pixels import rgb_pixels

# One value in each image: 25700 of 65535 is 100 of 255.


def coded(pixels, kind, **kwargs):
    """Return an array or an image in a format of PIL."""
    file = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(file, kind, **kwargs)
    return file.getvalue()


def full(value, dtype, *channels):
    return np.full((4, 6, *channels), value, dtype)


def png_chunks(depth, color, row, *more):
    """A PNG of 6 x 4 with this depth, type of color and row of bytes: PIL writes no color of 16 bits."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    parts = [(b"IHDR", struct.pack(">2I5B", 6, 4, depth, color, 0, 0, 0)), *more]
    parts += [(b"IDAT", zlib.compress((b"\0" + row) * 4)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def tiff(pixels, bits, *, photometric=1, sample_format=1, channels=1, order="<"):
    """An uncompressed TIFF of 6 x 4 whose strip is `pixels`, bytes."""
    entries = [(256, 3, 6), (257, 3, 4), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 200)]
    entries += [(277, 3, channels), (278, 3, 4), (279, 4, len(pixels)), (339, 3, sample_format)]
    data = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, len(entries))
    for tag, kind, value in entries:
        data += struct.pack(f"{order}HHI", tag, kind, 1)
        data += struct.pack(f"{order}{'HH' if kind == 3 else 'I'}", *((value, 0) if kind == 3 else (value,)))
    return (data + bytes(4)).ljust(200, b"\0") + pixels


def packed(value, bits):
    """24 values of so many bits, each row in whole bytes."""
    row = "".join(f"{value:0{bits}b}" for _ in range(6))
    row = row.ljust(-(-len(row) // 8) * 8, "0")
    return int(row, 2).to_bytes(len(row) // 8, "big") * 4


def palette(transparency):
    image = Image.new("P", (6, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return coded(image, "PNG", transparency=transparency)


SCALED = {
    "PNG, 16 bits": (coded(full(25700, np.uint16), "PNG"), 100),
    "PNG, 16 bits, white": (coded(full(65535, np.uint16), "PNG"), 255),
    "PNG, 16 bits, darkest": (coded(full(129, np.uint16), "PNG"), 1),  # 129 / 257 is above a half
    "PNG, 16 bits, black": (coded(full(128, np.uint16), "PNG"), 0),
    "PNG, 16 bits, color": (png_chunks(16, 2, struct.pack(">3H", 25700, 51400, 0) * 6), (100, 200, 0)),
    "PNG, 16 bits, color, alpha": (
        png_chunks(16, 6, struct.pack(">4H", 25700, 51400, 0, 9) * 6),
        (100, 200, 0),
    ),
    "PNG, 16 bits, grey, alpha": (png_chunks(16, 4, struct.pack(">2H", 25700, 9) * 6), 100),
    "PNG, 16 bits, transparent grey": (
        png_chunks(16, 0, struct.pack(">H", 25700) * 6, (b"tRNS", struct.pack(">H", 25700))),
        100,
    ),
    "PNG, 4 bits": (png_chunks(4, 0, b"\x66" * 3), 102),
    "PNG, 2 bits": (png_chunks(2, 0, b"\x55\x50"), 85),
    "PNG, 1 bit": (coded(Image.new("1", (6, 4), 1), "PNG"), 255),
    "PNG, palette": (palette(0), (10, 20, 30)),
    "PNG, palette, transparent": (palette(b"\x09\x09"), (10, 20, 30)),
    "PNG, grey, alpha": (coded(Image.new("LA", (6, 4), (100, 9)), "PNG"), 100),
    "PNG, color, alpha": (coded(full(100, np.uint8, 4), "PNG"), 100),
    "PGM, 16 bits": (b"P5 6 4 65535 " + struct.pack(">H", 25700) * 24, 100),
    "PGM, 10 bits": (b"P5 6 4 1023 " + struct.pack(">H", 401) * 24, 100),
    "PGM, text": (b"P2 6 4 1023 " + b"401 " * 24, 100),
    "PPM, 16 bits": (b"P6 6 4 65535 " + struct.pack(">3H", 25700, 51400, 0) * 24, (100, 200, 0)),
    "PBM": (b"P4 6 4 " + b"\0" * 4, 255),
    "TIFF, 16 bits": (tiff(struct.pack("<H", 25700) * 24, 16), 100),
    "TIFF, 16 bits, big-endian": (tiff(struct.pack(">H", 25700) * 24, 16, order=">"), 100),
    "TIFF, 16 bits, white is 0": (tiff(struct.pack("<H", 25700) * 24, 16, photometric=0), 155),
    "TIFF, 16 bits, compressed": (coded(full(25700, np.uint16), "TIFF", compression="tiff_lzw"), 100),
    "TIFF, 12 bits": (tiff(packed(1606, 12), 12), 100),  # of 4095
    "TIFF, 8 bits, white is 0": (tiff(bytes([100]) * 24, 8, photometric=0), 155),
    "TIFF, 1 bit": (coded(Image.new("1", (6, 4), 1), "TIFF"), 255),
    "TIFF, CMYK": (coded(Image.new("CMYK", (6, 4), (155, 55, 255, 0)), "TIFF"), (100, 200, 0)),
    "JPEG, CMYK": (coded(Image.new("CMYK", (6, 4), (155, 155, 155, 0)), "JPEG", quality=100), 100),
    "JPEG, grey": (coded(full(100, np.uint8), "JPEG"), 100),
    "GIF": (coded(full(100, np.uint8), "GIF"), 100),
    "BMP": (coded(full(100, np.uint8, 3), "BMP"), 100),
}


@pytest.mark.parametrize("kind", SCALED)
def test_each_depth_is_scaled_by_its_own_range(kind):
    data, value = SCALED[kind]
    pixels = rgb_pixels("x", data, None)
    assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)
    assert pixels.reshape(-1, 3).tolist() == [list(value) if isinstance(value, tuple) else [value] * 3] * 24
    square = rgb_pixels("x", data, 3)
    assert (square == pixels[:3, :3]).all()


@pytest.mark.skipif(not features.check("jpg_2000"), reason="needs a PIL with JPEG 2000")
@pytest.mark.parametrize(("value", "dtype", "grey"), [(25700, np.uint16, 100), (100, np.uint8, 100)])
def test_jpeg_2000_under_another_suffix_is_scaled_too(value, dtype, grey):
    assert (rgb_pixels("x", coded(full(value, dtype), "JPEG2000"), None) == grey).all()


def test_gradient_of_16_bits_is_that_of_8_bits():
    grey = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10
    pixels = rgb_pixels("x", coded(grey.astype(np.uint16) * 257, "PNG"), None)
    assert (pixels == grey[:, :, None]).all()


REFUSED = {
    "TIFF, floats": tiff(struct.pack("<f", 0.4) * 24, 32, sample_format=3),
    "TIFF, floats, compressed": coded(full(0.4, np.float32), "TIFF", compression="tiff_lzw"),
    "TIFF, 32 bits": tiff(struct.pack("<I", 25700) * 24, 32),
    "TIFF, 32 bits with sign": coded(full(25700, np.int32), "TIFF"),
    "TIFF, 16 bits with sign": tiff(struct.pack("<h", -100) * 24, 16, sample_format=2),
    "TIFF, 8 bits with sign": tiff(struct.pack("<b", -100) * 24, 8, sample_format=2),
    "PFM": b"Pf 6 4 -1.0 " + struct.pack("<f", 0.4) * 24,
    "TIFF, floats, white is 0": tiff(struct.pack("<f", 0.4) * 24, 32, photometric=0, sample_format=3),
    "FITS, 16 bits": b"".join(
        card.ljust(80).encode()
        for card in ("SIMPLE  = T", "BITPIX  = 16", "NAXIS   = 2", "NAXIS1  = 6", "NAXIS2  = 4", "END")
    ).ljust(2880)
    + struct.pack(">H", 25700) * 24,
    "SPIDER": coded(full(0.4, np.float32), "SPIDER"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("size", [None, 3])
def test_pixels_whose_range_is_not_known_are_refused_with_the_name(kind, size):
    with pytest.raises(ValueError, match=r"^set: train/a/0.tif .*mode .*8 or 16 bits"):
        rgb_pixels("set: train/a/0.tif", REFUSED[kind], size)


# EXIF -------------------------------------------------------------------------------------------------

# To be seen: light at the left above, grey at the right above. What is stored for it is from
# the standard, by hand: the comments say where row 0 and column 0 are seen.
SEEN = np.zeros((8, 12), np.uint8)
SEEN[:4, :4], SEEN[:4, 8:] = 200, 100
STORED = {
    1: SEEN,  # above, left
    2: SEEN[:, ::-1],  # above, right
    3: SEEN[::-1, ::-1],  # below, right
    4: SEEN[::-1],  # below, left
    5: SEEN.T,  # left, above
    6: SEEN.T[::-1],  # right, above: its first row is seen at the right, its first column above
    7: SEEN.T[::-1, ::-1],  # right, below
    8: SEEN.T[:, ::-1],  # left, below
}
FORMATS = {
    "JPEG": {"quality": 100},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "MPO": {"quality": 100},
}


def stored(orientation, kind="PNG", **kwargs):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.ascontiguousarray(STORED.get(orientation, SEEN))
    image = Image.fromarray(np.stack([pixels] * 3, 2) if kind == "WEBP" else pixels)
    return coded(image, kind, exif=exif, **{**FORMATS[kind], **kwargs})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", STORED)
def test_image_is_turned_as_its_exif_says(kind, orientation):
    pixels = rgb_pixels("x", stored(orientation, kind), None)
    assert pixels.shape == (8, 12, 3)
    assert np.abs(pixels[:, :, 0].astype(int) - SEEN).max() <= (3 if kind in ("JPEG", "MPO") else 0)


@pytest.mark.parametrize("orientation", STORED)
def test_compressed_tiff_of_16_bits_is_turned_once(orientation):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]).astype(np.uint16) * 257)
    for compression in ("raw", "tiff_lzw"):
        data = coded(image, "TIFF", compression=compression, tiffinfo={0x0112: orientation})
        assert (rgb_pixels("x", data, None)[:, :, 0] == SEEN).all()


def test_square_is_cut_after_turning():
    pixels = rgb_pixels("x", stored(6), 8)
    assert (pixels[:3, :, 0].max(0)[[0, 7]] == [200, 100]).all()  # columns 2 to 9 of what is seen


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_orientation_that_is_none_is_left_out(orientation):
    assert (rgb_pixels("x", stored(orientation), None)[:, :, 0] == SEEN).all()


@pytest.mark.parametrize(
    "exif", [b"", b"Exif\0\0", b"Exif\0\0XX", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 40]
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's, of corrupt data
def test_image_with_a_broken_exif_is_as_if_it_had_none(exif):
    data = coded(SEEN, "JPEG", quality=100)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:]
    assert np.abs(rgb_pixels("x", data, None)[:, :, 0].astype(int) - SEEN).max() <= 3


@pytest.mark.parametrize("form", ['<a tiff:Orientation="6"/>', "<tiff:Orientation>6</tiff:Orientation>"])
def test_orientation_in_xmp_counts(form):
    xmp = f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{form}</x:xmpmeta>".encode()
    data = coded(np.ascontiguousarray(STORED[6]), "JPEG", quality=100, xmp=xmp)
    assert rgb_pixels("x", data, None).shape == (8, 12, 3)


# What cannot be decoded -------------------------------------------------------------------------------

NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
KINDS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0, 0.01, 0.2, 0.5, 0.9])
def test_file_that_is_cut_short_is_named(kind, share):
    data = coded(NOISE, kind)
    with pytest.raises(ValueError, match=r"^set: train/a/0.x is broken \("):
        rgb_pixels("set: train/a/0.x", data[: int(share * len(data))], 8)


@pytest.mark.parametrize(
    "data",
    [
        b"<html>not found</html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"%PDF-1.7\n",
        b"\0" * 1000,
        b"\0\0\0\x18ftypheic" + bytes(100),
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\xff\xd8\xff\xe0" + bytes(100),
        b"II*\0" + bytes(100),
        b"RIFF\0\0\0\0WEBP" + bytes(100),
    ],
)
def test_file_with_other_content_is_named(data):
    with pytest.raises(ValueError, match=r"^set: train/a/0.jpg is broken \([^0]*\)$"):  # no address
        rgb_pixels("set: train/a/0.jpg", data, None)


def test_postscript_under_another_suffix_is_not_run(monkeypatch):
    def run(*args, **kwargs):
        raise AssertionError("it was run")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", run)
    with pytest.raises(ValueError, match=r"^x.png is broken \(.*PostScript"):
        rgb_pixels("x.png", coded(np.zeros((4, 6, 3), np.uint8), "EPS"), None)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF"])
def test_image_above_pil_s_limit_is_named(kind, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for size in ((12, 12), (24, 24)):  # PIL warns, and warnings are errors here; then it refuses
        with pytest.raises(ValueError, match=r"^x.png is broken \(.*pixels\).*limit"):
            rgb_pixels("x.png", coded(np.zeros(size, np.uint8), kind), 8)


def test_image_that_says_it_is_huge_is_named():
    data = b"P5 60000 60000 255 " + bytes(10)
    with pytest.raises(ValueError, match=r"^x.ppm is broken \(.*3600000000 pixels"):
        rgb_pixels("x.ppm", data, 8)


@pytest.mark.parametrize(
    "error", [MemoryError, SyntaxError("bad"), struct.error("short"), KeyError(1), OverflowError]
)
def test_whatever_pil_raises_gets_the_name(error, monkeypatch):
    def load(*args):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(ValueError, match=r"^x.png is broken \(\w+"):
        rgb_pixels("x.png", coded(SEEN, "PNG"), None)


def test_ctrl_c_is_not_an_image_s_error(monkeypatch):
    def load(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    with pytest.raises(KeyboardInterrupt):
        rgb_pixels("x.png", coded(SEEN, "PNG"), None)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_first_of_several_images_is_taken(kind):
    frames = [Image.new("RGB", (6, 4), (value,) * 3) for value in (100, 200)]
    more = {"lossless": True} if kind == "WEBP" else {}
    data = coded(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    assert (rgb_pixels("x", data, None) == 100).all()
