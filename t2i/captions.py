"""What a caption is, and the official caption files of COCO. No Keras here: data workers import this file.

Captions are strings with something to see in them. What is no text is refused, for nobody knows what it was meant to
be; blank ones are left out and counted.
"""

import os
import re
from typing import Any

import msgspec

from fcdm_keras.formats.documents import read_json, shown

EXPECTED = "expected a JSON object with `images` (id, file_name) and `annotations` (image_id, caption: one string)"
LIMIT = 2**30  # bytes of a file of captions
_HALVES = re.compile("[\ud800-\udfff]")
_Id = int | float | str


class _Image(msgspec.Struct):
    id: _Id
    file_name: str


class _Annotation(msgspec.Struct):
    image_id: _Id
    caption: Any  # which images have none that is a text is told of all


class _File(msgspec.Struct):
    """What is read of a caption file; COCO's have more."""

    images: list[_Image]
    annotations: list[_Annotation]


def is_text(value):
    """Whether a value is a string that can be written as UTF-8: not half of a character."""
    return isinstance(value, str) and not _HALVES.search(value)


def is_blank(text):
    """Whether nothing of a text shows."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def cleaned(texts):
    """Texts without the space around them, and without those that are blank."""
    return [text.strip() for text in texts if not is_blank(text)]


def read_captions(file):
    """The captions of an official caption file.

    Returns:
        dict of captions by file name, in the order of the file's images; how many images it lists; how many of its
        captions are blank and left out.

    Raises:
        ValueError: it is of another form, a caption is no text, or an image has none.
    """
    images, annotations = _lists(file)
    names = _names(file, images)
    plain = {_plain(image): name for image, name in names.items()}
    captions = {name: [] for name in names.values()}
    unknown, wrong = [], []
    for image, caption in annotations:
        name = names.get(image, plain.get(_plain(image)))
        if name is None:
            unknown.append(image)
        elif not is_text(caption):
            wrong.append(f"{shown(caption)} of {name}")
        else:
            captions[name].append(caption)
    if unknown:
        raise ValueError(
            f"{file} has {len(unknown):,} captions of images that it does not list, the first of image {unknown[0]}: "
            "get the file again."
        )
    if wrong:
        raise ValueError(
            f"{len(wrong):,} of the {len(annotations):,} captions of {file} are no text, the first {wrong[0]}: take "
            "them out, or write each as one string."
        )
    kept = {name: cleaned(own) for name, own in captions.items()}
    check_captions(kept, file)
    return kept, len(images), len(annotations) - sum(map(len, kept.values()))


def check_captions(captions, where):
    """Raises ValueError if there are no images, or an image has no caption."""
    without = [name for name, own in captions.items() if not own]
    if without:
        raise ValueError(
            f"{len(without):,} of the {len(captions):,} images of {where} have no caption, or blank ones only, the "
            f"first {without[0]}: take them out, or give them captions."
        )
    if not captions:
        raise ValueError(f"{where} lists no images.")


def _lists(file):
    """Pairs (id, file name) of the images, and pairs (image's id, caption) of the annotations."""
    content = read_json(file, _File, EXPECTED, LIMIT)
    images = [(entry.id, entry.file_name) for entry in content.images]
    return images, [(entry.image_id, entry.caption) for entry in content.annotations]


def _names(file, images):
    """The images' file names by their ids."""
    names = {}
    for image, name in images:
        if not _is_name(name):
            raise ValueError(f"{file}: image {image} has the file_name {shown(name)}; {EXPECTED}.")
        if names.setdefault(image, name) != name:
            raise ValueError(
                f"{file} gives the id {image} to {names[image]} and to {name}: each image needs an id of its own."
            )
    return names


def _is_name(name):
    """Whether a text can be a file's name, of any bytes: those that are no UTF-8 are halves of characters in JSON."""
    try:
        return bool(name) and b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def _plain(image):
    """An id as programs that keep numbers as texts or as fractions would write it: 9, 9.0, "9" and "009" are one."""
    text = str(image).removesuffix(".0")
    return text.lstrip("0") or text
