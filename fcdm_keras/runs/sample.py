"""The work of `python -m fcdm_keras.sample` and its kind: draws what is missing in a folder, on all devices."""

import json
import os
from pathlib import Path

from tqdm import tqdm

from fcdm_keras import distribution, options
from fcdm_keras.distribution.supervision import check_agreement, check_shared
from fcdm_keras.runs.load import load_task
from fcdm_keras.sampling.request import Request
from fcdm_keras.sampling.writers import NpzFile, PNGFolder

SETTINGS = "settings.json"
MAY_CHANGE = {"batch_size"}  # when drawing is resumed


def open_request(flags):
    """The `Request` that the flags make."""
    return Request(load_task(flags.source), flags)


def run(flags, opener=open_request):
    """Draws what is missing in the folder that the flags name.

    Args:
        flags: parsed flags, see `fcdm_keras.sampling.flags`.
        opener: `opener(flags)` makes the `Request`.
    """
    output = Path(flags.output)
    output.mkdir(parents=True, exist_ok=True)
    with distribution.setup(**options.device_options(flags)):
        check_agreement(vars(flags))
        check_shared(output)
        request = draw(flags, output, opener)
        if not distribution.is_main():
            return
    height, width, _ = request.image_shape
    print(f"{len(request)} images of {height}×{width} pixels are in {output}/ (grid.png shows them).")


def draw(flags, output, opener):
    """Draws what is missing in the folder `output`. Returns the `Request`."""
    request = opener(flags)
    decisive = {**request.settings(), "num_samples": len(request), "labels": request.labels.tolist()}
    open_output(output, decisive, {**vars(flags), **decisive})
    files = [PNGFolder(output)] if flags.png else []
    if flags.npz:
        files.append(NpzFile(output / "samples.npz", (len(request), *request.image_shape)))
    own = distribution.share(missing(files, request))
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


def missing(files, request):
    """Starts of the batches of which images are missing; the first process decides for all."""
    ends = [*request.starts()[1:], len(request)]
    starts = [a for a, b in zip(request.starts(), ends) if not all(file.has(a, b) for file in files)]
    return json.loads(distribution.gather_texts(json.dumps(starts))[0])


def finish(files, request, output):
    """Completes the files, and draws the grid."""
    for file in files:
        file.finish(request.labels)
    request.grid(files[0].first(min(len(request), request.grid_limit))).save(output / "grid.png")


def open_output(output, decisive, settings):
    """Stores the settings in the folder; raises ValueError if it holds images drawn with other decisive ones."""
    file = output / SETTINGS
    if file.exists():
        stored = _stored(file)
        different = options.differences(stored, dict(sorted(decisive.items())), MAY_CHANGE, ("labels", "weights"))
        if different:
            raise ValueError(
                f"{output} holds images drawn with other settings ({'; '.join(different)}): give those to go on, or "
                "another --output."
            )
    elif (output / "000000.png").exists() or list(output.glob("samples.npz*")):
        raise ValueError(f"{output} holds images of unknown settings (no {SETTINGS}): give another --output.")
    options.open_folder(output, SETTINGS, settings)


def _stored(file):
    try:
        return options.read_json(file)
    except ValueError:
        raise ValueError(f"{file} is damaged: give another --output.") from None
