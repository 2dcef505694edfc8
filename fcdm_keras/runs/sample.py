"""The work of `python -m fcdm_keras.sample` and its kind: draws what is missing in a folder, on all devices."""

import argparse
import json
import mimetypes
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from fcdm_keras import distribution, options
from fcdm_keras.data.pictures import shown
from fcdm_keras.distribution.supervision import check_agreement, check_shared
from fcdm_keras.files import DifferentContentsError, make_folder, replacing
from fcdm_keras.formats.documents import Count, as_schema, read_json
from fcdm_keras.runs.load import load_task
from fcdm_keras.runs.outputs import IMAGES
from fcdm_keras.runs.overwriting import in_its_place
from fcdm_keras.sampling.request import Request
from fcdm_keras.sampling.writers import NpzFile, PNGFolder

SETTINGS = "settings.json"
MAY_CHANGE = {"batch_size", "num_samples"}  # when drawing is resumed; there may be more images, never fewer


class _Drawn(msgspec.Struct):
    """What this program reads of a folder's settings, all of which must agree when drawing goes on."""

    num_samples: Count
    labels: list[Any]  # of any conditions


def open_request(flags):
    """The `Request` that the flags make."""
    return Request(load_task(flags.source), flags)


def run(flags, opener=open_request):
    """Draws what is missing in the folder that the flags name.

    Args:
        flags: parsed flags, see `fcdm_keras.sampling.flags`.
        opener: `opener(flags)` makes the `Request`.
    """

    def work(at):
        make_folder(Path(at.output))
        check_shared(at.output)
        return draw(argparse.Namespace(**vars(flags)), Path(at.output), opener)

    make_folder(Path(flags.output).absolute().parent)
    with warnings.catch_warnings(), distribution.setup(**options.device_options(flags)):
        warnings.showwarning = _show
        check_agreement(vars(flags))
        request = in_its_place(work, IMAGES)(flags)
        if not distribution.is_main():
            return
    height, width, _ = request.image_shape
    print(f"{len(request)} images of {height}×{width} pixels are in {flags.output}/ (grid.png shows them).")


def _show(message, *_):
    if distribution.is_main():
        print(f"warning: {message}", file=sys.stderr)


def draw(flags, output, opener):
    """Draws what is missing in the folder `output`. Returns the `Request`."""
    stored, asked = stored_settings(output), flags.num_samples
    distribution.barrier()  # before any process writes
    flags.num_samples = max(asked, (stored or {}).get("num_samples", 0))
    request = opener(flags)
    decisive = {**request.settings(), "num_samples": len(request), "labels": request.labels.tolist()}
    check_settings(output, stored, decisive)
    if len(request) > asked:
        distribution.say(f"{output} is a folder of {len(request)} images, more than the {asked} asked for: all stay.")
    if request.describe():
        distribution.say(request.describe())
    files = writers(flags, output, request)
    names = {"source": shown(flags.source), "output": shown(flags.output)}
    told = {name: value for name, value in vars(flags).items() if name != "overwrite"}
    own = distribution.share(missing(files, request, output, {**told, **names, **decisive}))
    interval = 0.2 if os.isatty(2) else 15
    with tqdm(total=len(own), desc="sampling", unit="batch", mininterval=interval) as bar:
        for first, drawn in request.batches(own):
            for file in files:
                file.write(first, drawn)
            bar.update()
    distribution.barrier()
    if distribution.is_main():
        finish(files, request, output)
    return request


def writers(flags, output, request):
    """What is written: as the flags say, and an `.npz` file that is there already, which must not stay behind."""
    shape = (len(request), *request.image_shape)
    files = [PNGFolder(output, shape)] if flags.png else []
    if flags.npz or list(output.glob("samples.npz*")):
        files.append(NpzFile(output / "samples.npz", shape))
    return files


def missing(files, request, output, settings):
    """Starts of the batches of which images are missing; the first process decides for all.

    Raises:
        ValueError: the folder holds files that are not of this request.
        OSError: it cannot be read or written to.
    """
    starts = []
    if distribution.is_main():
        damaged = [path for file in files for path in file.examine(request.labels)]
        options.open_folder(output, SETTINGS, settings)
        for path in damaged:
            path.unlink()
        if damaged:
            some = ", ".join(path.name for path in damaged[:3]) + (", …" if len(damaged) > 3 else "")
            print(f"Damaged files are drawn again: {len(damaged)} ({some}).")
        for file in files:
            file.begin()
        ends = [*request.starts()[1:], len(request)]
        starts = [a for a, b in zip(request.starts(), ends) if not all(file.has(a, b) for file in files)]
    return json.loads(distribution.gather_texts(json.dumps(starts))[0])


def finish(files, request, output):
    """Completes the files, and draws the grid."""
    for file in files:
        file.finish(request.labels)
    picture = request.grid(files[0].first(min(len(request), request.grid_limit)))
    with replacing(output / "grid.png") as file:
        picture.save(file, "PNG")


def stored_settings(output):
    """The settings of the images in the folder, `None` where it is new. Raises ValueError for images without any."""
    file = output / SETTINGS
    if file.exists():
        try:
            return _read_settings(file)
        except ValueError as error:
            raise DifferentContentsError(str(error)) from None
    for other in sorted(output.iterdir()):
        picture = (mimetypes.guess_type(other.name)[0] or "").startswith("image/") and not other.name.startswith(".")
        if picture or other.name.startswith("samples.npz"):
            raise DifferentContentsError(
                f"{output} holds images of unknown settings (no {SETTINGS}), such as {other.name}: give another "
                "--output."
            )
    return None


def check_settings(output, stored, decisive):
    """Raises ValueError if the stored settings are of other images; those of fewer images are not."""
    if stored is None:
        return
    labels = stored["labels"]
    there = {**stored, "labels": decisive["labels"] if labels == decisive["labels"][: len(labels)] else labels}
    different = options.differences(there, dict(sorted(decisive.items())), MAY_CHANGE, ("labels", "weights"))
    if different:
        raise DifferentContentsError(
            f"{output} holds images drawn with other settings ({'; '.join(different)}): give those to go on, another "
            "--output, or --overwrite to replace them."
        )


def _read_settings(file):
    cure = "give another --output, or --overwrite to replace it"
    content = read_json(file, dict[str, Any], cure)
    drawn = as_schema(content, _Drawn, file, cure)
    if len(drawn.labels) != drawn.num_samples:
        raise ValueError(
            f"{file} contradicts itself: {len(drawn.labels):,} labels of {drawn.num_samples:,} samples; {cure}."
        )
    return content
