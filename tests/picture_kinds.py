"""Files of every kind that people bring, each with the picture that it must become, for `test_pictures.py`.

What a kind must become is arithmetic: the same smooth picture, gray ramp or colour, written in that form.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

SIDE = 16
_coarse = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
COLOUR = np.asarray(Image.fromarray(_coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
RAMP = np.linspace(0, 255, SIDE * SIDE).round().astype(np.uint8).reshape(SIDE, SIDE)
GRAY = np.repeat(RAMP[..., None], 3, axis=-1)
SEEN_THROUGH = np.where(np.arange(SIDE) < 4, 0, 255).astype(np.uint8) * np.ones((SIDE, 1), np.uint8)  # alpha
OVER_WHITE = np.where(SEEN_THROUGH[..., None] == 0, np.uint8(255), COLOUR)
GRAY_OVER_WHITE = np.where(SEEN_THROUGH[..., None] == 0, np.uint8(255), GRAY)


def saved(image, form="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def png(header, rows, *chunks):
    """A PNG by hand: (bit depth, colour type), bytes of the rows, chunks (kind, data) before the pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, *header, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def tiff(bits, data, photometric=1, sample_format=1, samples=1):
    """An uncompressed little-endian TIFF by hand."""
    tags = [(256, SIDE), (257, SIDE), (258, bits), (259, 1), (262, photometric), (273, 8), (277, samples)]
    tags += [(278, SIDE), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", number, 3, 1, value) for number, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


def twelve_bits(values):
    pairs = values.reshape(-1, 2)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs.tolist())


def linear_profile():
    """An ICC profile with sRGB's primaries and no gamma: its values are amounts of light."""

    def xyz(*values):
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * value) for value in values))

    curve = b"curv\0\0\0\0" + struct.pack(">I", 0)
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 7) + b"linear\0" + bytes(79),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.4360747, 0.2225045, 0.0139322),
        b"gXYZ": xyz(0.3850649, 0.7168786, 0.0971045),
        b"bXYZ": xyz(0.1430804, 0.0606169, 0.7141733),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    table, content, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data
    head = struct.pack(">I4sI4s4s4s", start + len(content), b"none", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + content


def from_light(values):
    """8-bit amounts of light as sRGB's 8-bit values (IEC 61966-2-1)."""
    light = values / 255.0
    encoded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)
    return np.round(255.0 * encoded)


def without_adobe_marker(jpeg):
    """A CMYK JPEG whose inks are as they are, and not inverted as Adobe's programs write them."""
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + struct.unpack(">H", jpeg[start + 2 : start + 4])[0] :]


def turned(form, **options):
    """The picture, stored a quarter turned and with the tag that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(np.ascontiguousarray(np.rot90(COLOUR)), form, exif=exif, **options)


def broken_exif():
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 1) + struct.pack(">HHII", 0x010F, 2, 400, 5000) + bytes(4)


def _kinds():
    picture, gray = Image.fromarray(COLOUR), Image.fromarray(RAMP)
    paletted, text = picture.quantize(64), b"note\0" + b"x" * 2_000_000
    wide, sixteen = RAMP.astype(np.uint16) * 257, COLOUR.astype(">u2") * 257
    rgba, la = np.dstack([COLOUR, SEEN_THROUGH]), np.dstack([RAMP, SEEN_THROUGH])
    ink = picture.convert("CMYK")
    inverted = ink.point([255 - i for i in range(256)] * 4)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - COLOUR)]}
    white_paper = np.where(RAMP == 0, np.uint8(255), RAMP)
    return {  # name: (bytes, expected pixels, largest difference) or (bytes, words of the refusal)
        "PNG, 8 bits": (saved(picture), COLOUR, 0),
        "PNG, gray": (saved(gray), GRAY, 0),
        "PNG, 1 bit": (saved(Image.fromarray(RAMP > 127)), np.where(GRAY > 127, 255, 0), 0),
        "PNG, palette": (saved(paletted), np.asarray(paletted.convert("RGB")), 0),
        "PNG, palette with a transparent colour": (
            saved(paletted, transparency=3),
            np.where(np.asarray(paletted)[..., None] == 3, 255, np.asarray(paletted.convert("RGB"))),
            0,
        ),
        "PNG, transparent": (saved(Image.fromarray(rgba)), OVER_WHITE, 0),
        "PNG, gray and transparent": (saved(Image.fromarray(la)), GRAY_OVER_WHITE, 0),
        "PNG, 16 bits gray": (saved(Image.fromarray(wide)), GRAY, 0),
        "PNG, 16 bits gray, black transparent": (
            png((16, 0), [row.astype(">u2").tobytes() for row in wide], (b"tRNS", bytes(2))),
            np.repeat(white_paper[..., None], 3, axis=-1),
            0,
        ),
        "PNG, 16 bits": (png((16, 2), [row.tobytes() for row in sixteen]), COLOUR, 0),
        "PNG with 2 MB of text": (png((8, 2), [row.tobytes() for row in COLOUR], (b"tEXt", text)), COLOUR, 0),
        "PNG with a colour profile": (saved(picture, icc_profile=linear_profile()), from_light(COLOUR), 2),
        "PNG with a damaged profile": (saved(picture, icc_profile=b"none" * 40), COLOUR, 0),
        "PNG, turned by its tag": (turned("PNG"), COLOUR, 0),
        "JPEG": (saved(picture, "JPEG", quality=95, subsampling=0), COLOUR, 12),
        "JPEG, gray": (saved(gray, "JPEG", quality=95), GRAY, 12),
        "JPEG, progressive": (saved(picture, "JPEG", quality=95, subsampling=0, progressive=True), COLOUR, 12),
        "JPEG, turned by its tag": (turned("JPEG", quality=95, subsampling=0), COLOUR, 12),
        "JPEG with broken EXIF": (saved(picture, "JPEG", quality=95, subsampling=0, exif=broken_exif()), COLOUR, 12),
        "JPEG, CMYK": (saved(ink, "JPEG", quality=95), COLOUR, 12),
        "JPEG, CMYK, without Adobe's marker": (
            without_adobe_marker(saved(inverted, "JPEG", quality=95)),
            COLOUR,
            12,
        ),
        "GIF, animated": (saved(paletted, "GIF", **frames), np.asarray(paletted.convert("RGB")), 0),
        "WebP": (saved(picture, "WEBP", lossless=True), COLOUR, 0),
        "WebP, animated": (saved(picture, "WEBP", lossless=True, **frames), COLOUR, 0),
        "AVIF": (saved(picture, "AVIF", quality=95, subsampling="4:4:4"), COLOUR, 14),
        "BMP": (saved(picture, "BMP"), COLOUR, 0),
        "JPEG 2000": (saved(picture, "JPEG2000"), COLOUR, 1),
        "PGM, 16 bits": (b"P5 16 16 65535\n" + wide.astype(">u2").tobytes(), GRAY, 0),
        "QOI": (saved(picture, "QOI"), COLOUR, 0),
        "TIFF, compressed": (saved(picture, "TIFF", compression="tiff_lzw"), COLOUR, 0),
        "TIFF, CMYK": (saved(ink, "TIFF"), COLOUR, 2),
        "TIFF, turned by its tag": (turned("TIFF"), COLOUR, 0),
        "TIFF, 16 bits": (tiff(16, wide.astype("<u2").tobytes()), GRAY, 0),
        "TIFF, 16 bits, white is zero": (tiff(16, (65535 - wide).astype("<u2").tobytes(), 0), GRAY, 0),
        "TIFF, 12 bits": (tiff(12, twelve_bits((RAMP * (4095 / 255)).round().astype(int))), GRAY, 1),
        "TIFF, 32 bits": (tiff(32, (RAMP.astype("<u4") * 16843009).tobytes()), GRAY, 0),
        "TIFF, floats in [0, 1]": (tiff(32, (RAMP / 255).astype("<f4").tobytes(), 1, 3), GRAY, 0),
        "TIFF, floats in [0, 255]": (tiff(32, RAMP.astype("<f4").tobytes(), 1, 3), GRAY, 0),
        "TIFF, floats of another range": (
            tiff(32, (RAMP - 9.0).astype("<f4").tobytes(), 1, 3),
            "floats from -9 to 246",
        ),
        "TIFF, 16 bits with a sign": (tiff(16, wide.astype("<i2").tobytes(), 1, 2), "with a sign"),
        "TIFF, 64-bit floats": (
            tiff(64, RAMP.astype("<f8").tobytes(), 1, 3),
            "TIFF of 64 bits, float",
        ),
        "JPEG, cut off": (saved(picture, "JPEG")[:-200], "runcated"),
        "nothing, 0 bytes": (b"", "it is empty"),
        "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(50), "it is a HEIC picture or a video"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "it is a drawing"),
        "web page": (b"<!DOCTYPE html><html>404</html>", "it is a web page"),
        "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "`git lfs pull`"),
    }


KINDS = _kinds()
