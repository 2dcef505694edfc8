"""What a caption is, and the official caption files of COCO. Standard library only.

Captions are strings with something to see in them. What is no text is refused, for nobody knows what it was meant to
be; blank ones are left out and counted.
"""

import json
import re

from fcdm_keras.files import read_text

EXPECTED = "expected a JSON object with `images` (id, file_name) and `annotations` (image_id, caption: one string)"
_HALVES = re.compile("[\ud800-\udfff]")


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
            wrong.append(f"{_shown(caption)} of {name}")
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
    text = read_text(file)
    try:
        content = json.loads(text)
    except ValueError as error:
        several = "Extra data" in str(error) and text.lstrip()[:1] in "{["
        raise _other(file, "several JSON values, one after the other" if several else f"no JSON: {error}") from None
    lists = []
    for key, fields in (("images", ("id", "file_name")), ("annotations", ("image_id", "caption"))):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise _other(file, _form(content))
        for number, entry in enumerate(entries):
            lacking = [name for name in fields if not isinstance(entry, dict) or name not in entry]
            if lacking:
                raise _other(file, f"entry {number} of its `{key}` has no {lacking[0]}")
            if isinstance(entry[fields[0]], (list, dict)):
                raise _other(file, f"entry {number} of its `{key}` has the {fields[0]} {_shown(entry[fields[0]])}")
        lists.append([tuple(entry[name] for name in fields) for entry in entries])
    return lists


def _names(file, images):
    """The images' file names by their ids."""
    names = {}
    for image, name in images:
        if not is_text(name) or not name:
            raise _other(file, f"image {image} has the file_name {_shown(name)}")
        if names.setdefault(image, name) != name:
            raise ValueError(
                f"{file} gives the id {image} to {names[image]} and to {name}: each image needs an id of its own."
            )
    return names


def _plain(image):
    """An id as programs that keep numbers as texts or as fractions would write it: 9, 9.0, "9" and "009" are one."""
    text = str(image).removesuffix(".0")
    return text.lstrip("0") or text


def _other(file, form):
    return ValueError(f"{file} is no caption file of COCO ({form}): {EXPECTED}.")


def _form(content):
    if isinstance(content, dict):
        return f"a JSON object with {', '.join(map(_shown, list(content)[:4])) or 'nothing in it'}"
    return (
        f"a JSON list of {len(content):,} values" if isinstance(content, list) else f"the JSON value {_shown(content)}"
    )


def _shown(value):
    return json.dumps(value)[:60]
