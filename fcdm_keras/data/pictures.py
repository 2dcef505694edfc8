"""A picture file to pixels, as a viewer shows it: the one way in which images are read. Pillow and NumPy only.

What decides is the content: formats of FORMATS, by their first bytes, and in them the file's own tags.
"""

import contextlib
import io
import os
import re
import struct
import threading
import warnings

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from fcdm_keras.formats import regular

# What may be opened; no file reaches a format with programs in it, such as PostScript.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM", "QOI")
LARGEST = 178_956_970  # pixels, Pillow's own limit
LARGEST_FILE = 2**30  # bytes
_LARGE = 2**25  # pixels of a picture that is decoded alone, whatever other threads do
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SHOWN_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf", b"gAMA", b"cHRM", b"sRGB")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3  # sample formats


_one_large = threading.Lock()


class UnreadableImageError(ValueError):
    """An image file that cannot be decoded; the message is one sentence without the file's name."""


def decode_image(encoded, side=None):
    """Decodes a picture to 8-bit sRGB.

    It is turned as its orientation tag says, its colour profile is converted to sRGB, palettes and transparency are
    laid over white, gray is repeated; 1, 12, 16 and 32 bits are scaled to 8 by the file's own tags, floats from [0, 1]
    or from [0, 255], whichever holds them. Of an animation the first frame is used.

    Args:
        encoded: the file's bytes, or its path.
        side: what the shorter side will be reduced to. A JPEG of more than 2²⁵ pixels is then decoded at a half, a
            quarter or an eighth, of at least eight times that side, so that memory stays small.

    Returns:
        uint8 `(H, W, 3)`.

    Raises:
        UnreadableImageError: truncated, damaged, no picture, one of values that nothing gives a meaning to, or a file
            that may not be opened.
    """
    with _opened(encoded) as image, _one_large if image.width * image.height > _LARGE else contextlib.nullcontext():
        if side and image.width * image.height > _LARGE:
            factor = 8 * side / min(image.size)
            image.draft(None, [int(factor * whole) for whole in image.size])
        image.load()  # a truncated file fails here
        return np.asarray(_turned(_to_rgb(image), _orientation(image)))


def shorter_side(file):
    """The shorter side of a picture file in pixels, from its header. Raises as `decode_image`."""
    with _opened(file) as image:
        return min(image.size)


@contextlib.contextmanager
def _opened(source):
    """The opened file; whatever goes wrong with it is an `UnreadableImageError`."""
    try:
        if not isinstance(source, bytes):
            regular.size(source, LARGEST_FILE)
        encoded = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
        with encoded, warnings.catch_warnings(action="ignore"), _open(encoded) as image:
            yield image
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"it has more than {LARGEST:,} pixels; make it smaller") from None
    except Exception as error:  # Pillow raises many kinds, down to SyntaxError and struct.error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason.replace(f"{source} ", "it ", 1).removesuffix(".")
        raise UnreadableImageError(reason or type(error).__name__) from None


def _open(file):
    try:
        return Image.open(file, formats=FORMATS)
    except Image.UnidentifiedImageError:
        raise UnreadableImageError(_what_it_is(file)) from None
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
        file.seek(0)  # a PNG with long texts or a long profile beside its pixels
        return Image.open(io.BytesIO(_pixels_only(file.read())), formats=FORMATS)


def _pixels_only(png):
    """A PNG without the chunks that a viewer does not show."""
    kept, place = [png[:8]], 8
    while place + 8 <= len(png):
        size, kind = struct.unpack(">I4s", png[place : place + 8])
        if kind in _SHOWN_CHUNKS:
            kept.append(png[place : place + size + 12])
        place += size + 12
    return b"".join(kept)


_KNOWN = (
    (rb"$", "it is empty"),
    (rb"version https://git-lfs", "it is a pointer of git-lfs and no image; run `git lfs pull`"),
    (rb"/annex/objects/|\.\./.*\.git/annex", "it is a pointer of git-annex and no image; run `git annex get`"),
    (rb"....ftyp(?!avi[fs])", "it is a HEIC picture or a video, which are not read; convert it to JPEG or PNG"),
    (
        rb"%!PS|%PDF|.{0,3}<svg|\s*<\?xml",
        "it is a drawing (PostScript, PDF, SVG), not pixels; export it to PNG",
    ),
    (rb"\s*<(!doctype|html)", "it is a web page and no image; download it again"),
    (rb"8BPS", "it is a Photoshop file, which is not read; export it to PNG"),
)


def _what_it_is(file):
    """A sentence about a file that is none of FORMATS, or one of an unknown kind."""
    file.seek(0)
    start = file.read(256)
    for pattern, sentence in _KNOWN:
        if re.match(pattern, start, re.IGNORECASE | re.DOTALL):
            return sentence
    if start[:4] in (b"II*\0", b"MM\0*"):
        tags = _tags(file)
        kind = {_FLOAT: "float", _SIGNED: "signed"}.get(_first(tags, _SAMPLE_FORMAT, 1), "unsigned")
        bits = "+".join(map(str, np.atleast_1d(tags.get(_BITS, 1))))
        return f"it is a TIFF of {bits} bits, {kind}, which is not read; convert it to 8 or 16 bits"
    return "it is no image of a known format"


def _tags(file):
    file.seek(0)
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    return tags


def _first(tags, number, default):
    return int(np.atleast_1d(tags.get(number, default))[0])


def _orientation(image):
    """The orientation tag alone; other tags may be broken. Pillow has turned TIFF itself."""
    if image.format == "TIFF":
        return 1
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # as many kinds as there are broken tags
        return 1


def _turned(image, orientation):
    turn = _TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def _to_rgb(image):
    if image.format in ("JPEG", "MPO") and image.mode == "CMYK" and "adobe" not in image.info:
        image = _with_info(image.point([255 - i for i in range(256)] * 4), image)  # Pillow took it for Adobe's
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return _from_many_bits(image)
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")
        return ImageCms.applyTransform(image, transform)
    if not image.has_transparency_data:
        return _in_srgb(image)
    rgba = image.convert("RGBA")
    colour = _in_srgb(_with_info(rgba.convert("RGB"), image))
    return Image.composite(colour, Image.new("RGB", rgba.size, "white"), rgba.getchannel("A"))


def _with_info(image, original):
    image.info = original.info
    return image


_SRGB = ImageCms.createProfile("sRGB")


def _in_srgb(image):
    """RGB by the image's colour profile; without one, or with one that does not fit it, as it is."""
    profile = image.info.get("icc_profile")
    if profile and b"sRGB" not in profile and b"s\0R\0G\0B" not in profile:
        fitting = image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
        with contextlib.suppress(ImageCms.PyCMSError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            return ImageCms.profileToProfile(fitting, source, _SRGB, outputMode="RGB")
    return image.convert("RGB")


def _from_many_bits(image):
    """RGB of gray values of more than 8 bits, by the file's tags."""
    values = np.asarray(image)
    if image.format == "TIFF":
        values = _in_unit_range(values, image.tag_v2)
    elif image.mode == "F":
        values = _floats_in_unit_range(values)
    else:
        values = values / 65535.0  # of PNG, PGM and JPEG 2000
    gray = np.clip(255.0 * values + 0.5, 0, 255).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        gray = np.where(np.asarray(image) == key, np.uint8(255), gray)
    return Image.fromarray(gray).convert("RGB")


def _in_unit_range(values, tags):
    bits, kind = _first(tags, _BITS, 1), _first(tags, _SAMPLE_FORMAT, _UNSIGNED)
    if kind == _SIGNED:
        raise UnreadableImageError(f"it is a TIFF of {bits} bits with a sign, whose black is unknown; convert it")
    if kind == _FLOAT:
        values = _floats_in_unit_range(values)
    else:
        values = (values.view(np.uint32) if bits == 32 else values) / (2.0**bits - 1)
    return 1.0 - values if _first(tags, _PHOTOMETRIC, 1) == 0 else values


def _floats_in_unit_range(values):
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 255:  # also for NaN
        raise UnreadableImageError(
            f"it holds floats from {low:g} to {high:g}, and those in [0, 1] or [0, 255] are read; scale them"
        )
    return values.astype(np.float64) / (1 if high <= 1 else 255)


def shown(path):
    """A path as text that can be printed and stored, whatever bytes it is made of."""
    return os.fsencode(path).decode(errors="backslashreplace")
