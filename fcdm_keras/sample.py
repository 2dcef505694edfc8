"""Draw images with a trained model.

    python -m fcdm_keras.sample runs/digits --classes 0-9 --num-samples 100 --num-sampling-steps 50 --sampler ddim \\
        --cfg-scale 1.5 --output samples/
    python -m fcdm_keras.sample RUN --num-samples 50000 --labels random --output samples/ --npz --no-png

Writes one PNG per image (unless --no-png), a grid, the settings, and with --npz all images as `arr_0` and their labels
as `arr_1` of one file. Image i depends on the seed and i alone: not on the batch size, the devices, nor on what else is
drawn. All devices, and all processes of a job, share the work. The same command goes on where it was stopped.
"""

import argparse
import json
import os
import shutil
import socket
import sys
from pathlib import Path

from fcdm_keras.drawing import add_drawing_flags, check_drawing_flags
from fcdm_keras.files import write_atomically
from fcdm_keras.launch import add_device_flags, device_options

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
    add_device_flags(parser)
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

    def has(self, first, stop):
        return all(self.path(i).exists() for i in range(first, stop))

    def write(self, first, drawn):
        from fcdm_keras import images

        for i, image in enumerate(drawn, first):
            if not self.path(i).exists():
                temporary = self.folder / f".unfinished-{_process()}.png"
                images.to_pil(image).save(temporary)
                os.replace(temporary, self.path(i))

    def finish(self, labels):
        for leftover in self.folder.glob(".unfinished-*.png"):  # of a process that was killed
            leftover.unlink()

    def first(self, count):
        import numpy as np
        from PIL import Image

        return np.stack([np.atleast_3d(np.asarray(Image.open(self.path(i)))) for i in range(count)])


class NpzFile:
    """All images in one file, which has its name when it is whole. Until then they lie in parts beside it."""

    def __init__(self, path, shape):
        self.path = path
        self.shape = shape
        self.parts = path.with_name(path.name + ".parts")
        if not path.exists():
            self.parts.mkdir(exist_ok=True)

    def has(self, first, stop):
        return self.path.exists() or any(part.start <= first and stop <= part.stop for part in self._ranges())

    def write(self, first, drawn):
        import numpy as np

        if not self.has(first, first + len(drawn)):
            unfinished = self.parts / f".unfinished-{_process()}.npy"
            np.save(unfinished, drawn)
            os.replace(unfinished, self.parts / f"{first:09d}-{first + len(drawn):09d}.npy")

    def _ranges(self):
        """The images of each part, as a range, in order."""
        names = sorted(file.stem.split("-") for file in self.parts.glob("[0-9]*.npy"))
        return [range(int(first), int(stop)) for first, stop in names]

    def finish(self, labels):
        import numpy as np

        from fcdm_keras.npz import NpzWriter

        if self.path.exists():
            return
        writer = NpzWriter(self.path, self.shape)
        writer.truncate(0)
        for part in self._ranges():
            if part.start <= writer.rows < part.stop:
                rows = np.load(self.parts / f"{part.start:09d}-{part.stop:09d}.npy")
                writer.append(rows[writer.rows - part.start :])
        writer.finish(arr_1=labels)
        shutil.rmtree(self.parts)

    def first(self, count):
        from fcdm_keras.npz import NpzArray

        return next(NpzArray(self.path).batches(count))


def open_drawing(options):
    """The `Drawing` that the flags ask for."""
    from fcdm_keras.drawing import Drawing
    from fcdm_keras.runs import load_task

    return Drawing(load_task(options.source), options)


def draw(options, output, opener=open_drawing):
    """Draws what is missing in the folder `output`. Returns the `Drawing`, which `opener(options)` makes."""
    from tqdm import tqdm

    from fcdm_keras import distribution

    drawing = opener(options)
    decisive = {**drawing.settings(), "num_samples": len(drawing), "labels": drawing.labels.tolist()}
    open_output(output, decisive, {**vars(options), **decisive})
    files = [PNGFolder(output)] if options.png else []
    if options.npz:
        files.append(NpzFile(output / "samples.npz", (len(drawing), *drawing.image_shape)))
    own = distribution.share(missing(files, drawing))
    interval = 0.2 if os.isatty(2) else 15
    with tqdm(total=len(own), desc="sampling", unit="batch", mininterval=interval) as bar:
        for first, drawn in drawing.batches(own):
            for file in files:
                file.write(first, drawn)
            bar.update()
    distribution.barrier()
    if distribution.is_main():
        finish(files, drawing, output)
    return drawing


def missing(files, drawing):
    """Starts of the batches of which images are missing; the first process decides for all."""
    from fcdm_keras import distribution

    ends = [*drawing.starts()[1:], len(drawing)]
    starts = [a for a, b in zip(drawing.starts(), ends) if not all(file.has(a, b) for file in files)]
    return json.loads(distribution.gather_texts(json.dumps(starts))[0])


def finish(files, drawing, output):
    """Completes the files, and draws the grid."""
    for file in files:
        file.finish(drawing.labels)
    drawing.grid(files[0].first(min(len(drawing), drawing.grid_limit))).save(output / "grid.png")


def _process():
    """A name that no other process writing to the same folder has."""
    return f"{socket.gethostname()}-{os.getpid()}"


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
    run(parse(arguments))


def run(options, opener=open_drawing):
    """The command, with parsed flags; `opener(options)` makes the `Drawing`."""
    output = Path(options.output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        from fcdm_keras import distribution
        from fcdm_keras.distribution.supervision import check_agreement, check_shared

        with distribution.setup(**device_options(options)):
            check_agreement(vars(options))
            check_shared(output)
            drawing = draw(options, output, opener)
            if not distribution.is_main():
                return
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nStopped. The same command goes on.")
    height, width, _ = drawing.image_shape
    print(f"{len(drawing)} images of {height}×{width} pixels are in {output}/ (grid.png shows them).")


if __name__ == "__main__":
    main()
