"""Grids of pictures with their prompts."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FONT_SIZE, LINE_HEIGHT, PADDING = 12, 15, 6


def captioned_grid(images, captions, columns=8, min_side=128):
    """Images side by side on white, each with its caption under it; small images are enlarged by whole factors.

    Args:
        images: uint8 `(N, H, W, 3)`, N ≥ 1.
        captions: N strings. Long ones go over several lines; line breaks are kept.
        columns: images per row.
        min_side: an image shorter than this, in pixels, is enlarged to at least it.

    Returns:
        A PIL image.

    Raises:
        ValueError: there is not one caption to each of at least one image.
    """
    if len(images) != len(captions) or not len(images):
        raise ValueError(f"Give one caption to each image. Received: {len(images)} images, {len(captions)} captions")
    factor = max(1, -(-min_side // min(images.shape[1:3])))
    images = np.asarray(images).repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = images.shape[1:3]
    font = ImageFont.load_default(FONT_SIZE)
    texts = [_wrapped(caption, width, font) for caption in captions]
    cell = height + LINE_HEIGHT * max(len(lines) for lines in texts) + 2 * PADDING
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = Image.new("RGB", (columns * (width + PADDING) + PADDING, rows * cell + PADDING), "white")
    pen = ImageDraw.Draw(canvas)
    for i, (image, lines) in enumerate(zip(images, texts)):
        left, top = PADDING + (i % columns) * (width + PADDING), PADDING + (i // columns) * cell
        canvas.paste(Image.fromarray(image), (left, top))
        pen.rectangle((left - 1, top - 1, left + width, top + height), outline="lightgray")
        for number, line in enumerate(lines):
            pen.text((left, top + height + 2 + number * LINE_HEIGHT), line, fill="black", font=font)
    return canvas


def _wrapped(text, width, font):
    """Lines of a text that are at most `width` pixels wide; words that are wider are cut."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            while len(word) > 1 and font.getlength(word[:width]) > width:  # no letter is narrower than a pixel
                fits = next(n for n in range(2, width + 1) if font.getlength(word[:n]) > width) - 1
                lines += [line] if line else []
                line = ""
                lines.append(word[:fits])
                word = word[fits:]
            joined = f"{line} {word}".strip()
            if font.getlength(joined) <= width:
                line = joined
            else:
                lines.append(line)
                line = word
        lines.append(line)
    return lines
