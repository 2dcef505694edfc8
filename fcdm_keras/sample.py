"""Draw images with a trained model.

    python -m fcdm_keras.sample runs/digits --classes 0-9 --num-samples 100 --num-sampling-steps 50 --sampler ddim \\
        --cfg-scale 1.5 --output samples/
    python -m fcdm_keras.sample RUN --num-samples 50000 --labels random --output samples/ --npz --no-png

Writes one PNG per image (unless --no-png), a grid, the settings, and with --npz all images as `arr_0` and their labels
as `arr_1` of one file. Image i depends on the seed and i alone: not on the batch size, nor on what else is drawn. The
same command goes on where it was stopped, or killed.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from fcdm_keras.drawing import add_drawing_flags, check_drawing_flags
from fcdm_keras.files import write_atomically

GRID_LIMIT = 256  # images shown in the grid
MAY_CHANGE = {"batch_size"}  # when drawing is resumed


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="run folder, preset folder, hf://… or kaggle://…")
    add_drawing_flags(parser, num_samples=100)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--npz", action="store_true", help="also write samples.npz with arr_0, uint8 (N, H, W, C)")
    parser.add_argument("--png", action=argparse.BooleanOptionalAction, default=True, help="write one PNG per image")
    options = parser.parse_args(arguments)
    check_drawing_flags(parser, options)
    if not (options.png or options.npz):
        parser.error("--no-png needs --npz: nothing would be written.")
    return options


class PNGFolder:
    """One PNG per image; images that are there stay."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, index):
        return self.folder / f"{index:06d}.png"

    def done(self, count):
        return next((i for i in range(count) if not self.path(i).exists()), count)

    def write(self, first, drawn):
        from fcdm_keras import images

        for i, image in enumerate(drawn, first):
            if not self.path(i).exists():
                temporary = self.folder / ".unfinished.png"
                images.to_pil(image).save(temporary)
                os.replace(temporary, self.path(i))

    def finish(self, labels):
        pass

    def first(self, count):
        import numpy as np
        from PIL import Image

        return np.stack([np.atleast_3d(np.asarray(Image.open(self.path(i)))) for i in range(count)])


class NpzFile:
    """All images in one file, which has its name when it is whole."""

    def __init__(self, path, shape):
        from fcdm_keras.npz import NpzWriter

        self.path = path
        self.writer = None if path.exists() else NpzWriter(path, shape)

    def done(self, count):
        return self.writer.rows if self.writer else count

    def write(self, first, drawn):
        if self.writer and first + len(drawn) > self.writer.rows:
            self.writer.append(drawn[self.writer.rows - first :])

    def finish(self, labels):
        if self.writer:
            self.writer.finish(arr_1=labels)

    def first(self, count):
        from fcdm_keras.npz import NpzArray

        return next(NpzArray(self.path).batches(count))


def draw(options, output):
    """Draws what is missing in the folder `output`. Returns the `Drawing`."""
    import numpy as np
    from tqdm import tqdm

    from fcdm_keras import images
    from fcdm_keras.drawing import Drawing, parse_classes
    from fcdm_keras.runs import load_task

    drawing = Drawing(load_task(options.source), options)
    decisive = {**drawing.settings(), "num_samples": len(drawing), "labels": drawing.labels.tolist()}
    open_output(output, decisive, {**vars(options), **decisive})
    files = [PNGFolder(output)] if options.png else []
    if options.npz:
        files.append(NpzFile(output / "samples.npz", (len(drawing), *drawing.image_shape)))
    done = min(file.done(len(drawing)) for file in files)
    interval = 0.2 if os.isatty(2) else 15
    with tqdm(total=len(drawing), initial=done, desc="sampling", unit="image", mininterval=interval) as bar:
        for first, drawn in drawing.batches(done) if done < len(drawing) else ():
            for file in files:
                file.write(first, drawn)
            bar.update(first + len(drawn) - max(bar.n, first))
    for file in files:
        file.finish(drawing.labels)
    shown = files[0].first(min(len(drawing), GRID_LIMIT))
    classes = parse_classes(options.classes, drawing.task.backbone.conditioning.num_classes)
    in_turn = options.label_order == "balanced" and len(classes) <= 16
    images.grid(shown, len(classes) if in_turn else int(np.ceil(len(shown) ** 0.5))).save(output / "grid.png")
    return drawing


def open_output(output, decisive, settings):
    """Stores the settings in the folder; raises ValueError if it holds images drawn with other decisive ones."""
    file = output / "settings.json"
    if file.exists():
        stored = _stored(file)
        different = [
            name if name in ("labels", "weights") else f"{name}={stored.get(name)!r} there, {settings[name]!r} now"
            for name in sorted(decisive.keys() - MAY_CHANGE)
            if stored.get(name) != settings[name]
        ]
        if different:
            raise ValueError(
                f"{output} holds images drawn with other settings ({'; '.join(different)}): give those to go on, or "
                "another --output."
            )
    elif (output / "000000.png").exists() or list(output.glob("samples.npz*")):
        raise ValueError(f"{output} holds images of unknown settings (no settings.json): give another --output.")
    write_atomically(file, json.dumps(settings, indent=1) + "\n")


def _stored(file):
    try:
        return json.loads(file.read_text())
    except ValueError:
        raise ValueError(f"{file} is damaged: give another --output.") from None


def main(arguments=None):
    options = parse(arguments)
    output = Path(options.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        drawing = draw(options, output)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on.")
    height, width, _ = drawing.image_shape
    print(f"{len(drawing)} images of {height}×{width} pixels are in {output}/ (grid.png shows them).")


if __name__ == "__main__":
    main()
