"""Draw images with a trained model.

    python -m fcdm_keras.sample runs/digits --classes 0-9 --num-samples 100 --num-sampling-steps 50 --sampler ddim \\
        --cfg-scale 1.5 --output samples/

Writes one PNG per image, a grid, the settings, and with --npz all images as `arr_0` of one file. Image i is the same
whatever the batch size, and whatever else is drawn.
"""

import argparse
import json
import sys
from pathlib import Path

GRID_LIMIT = 256  # images shown in the grid


def parse(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.sample", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="run folder, preset folder, hf://… or kaggle://…")
    parser.add_argument("--classes", default=None, help="classes drawn in turn, such as 0-9 or 207,360; default all")
    parser.add_argument("--num-samples", type=int, default=100, help="number of images (default 100)")
    parser.add_argument("--num-sampling-steps", type=int, default=250, help="sampling steps, 1 to 1000 (default 250)")
    parser.add_argument("--sampler", choices=("ddpm", "ddim"), default="ddpm", help="sampler (default ddpm)")
    parser.add_argument("--eta", type=float, default=0.0, help="noise of ddim, 0 to 1 (default 0)")
    parser.add_argument("--cfg-scale", type=float, default=1.5, help="guidance scale, 1 is none (default 1.5)")
    parser.add_argument(
        "--cfg-channels",
        choices=("all", "first_three"),
        default="all",
        help="guided channels; first_three is the reference's way (default all)",
    )
    parser.add_argument("--image-size", type=int, default=None, help="side in pixels; default the model's own")
    parser.add_argument("--batch-size", type=int, default=64, help="images drawn at once (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="seed (default 0)")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--npz", action="store_true", help="also write samples.npz with arr_0, uint8 (N, H, W, C)")
    options = parser.parse_args(arguments)
    if options.num_samples < 1:
        parser.error(f"--num-samples must be at least 1. Received: {options.num_samples}")
    return options


def parse_classes(text, num_classes):
    """`"0-2,7"` → `[0, 1, 2, 7]`; `None` is all classes. Raises ValueError for other text or classes out of range."""
    if text is None:
        return list(range(num_classes))
    classes = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
            raise ValueError(f"--classes must look like 0-9 or 207,360,387. Received: {text!r}")
        if int(last) >= num_classes:
            raise ValueError(f"--classes must lie in [0, {num_classes - 1}]. Received: {text!r}")
        classes += range(int(first), int(last) + 1)
    return classes


def main(arguments=None):
    options = parse(arguments)
    import numpy as np

    from fcdm_keras import images
    from fcdm_keras.autoencoders import Identity
    from fcdm_keras.runs import load_task

    try:
        output = Path(options.output)
        output.mkdir(parents=True, exist_ok=True)
        task = load_task(options.source)
        if isinstance(task.autoencoder, Identity) and task.autoencoder.latent_channels not in (1, 3):
            raise ValueError(f"{options.source} draws latents, and holds no autoencoder to make images of them.")
        classes = parse_classes(options.classes, task.backbone.conditioning.num_classes)
        labels = np.resize(np.asarray(classes, np.int32), options.num_samples)
        drawn = task.generate(
            labels,
            num_steps=options.num_sampling_steps,
            guidance_scale=options.cfg_scale,
            seed=options.seed,
            sampler=options.sampler,
            eta=options.eta,
            guidance_channels=options.cfg_channels,
            batch_size=options.batch_size,
            image_size=options.image_size,
            verbose=True,
        )
        for i, image in enumerate(drawn):
            images.to_pil(image).save(output / f"{i:06d}.png")
        columns = len(classes) if len(classes) <= 16 else int(np.ceil(min(len(drawn), GRID_LIMIT) ** 0.5))
        images.grid(drawn[:GRID_LIMIT], columns).save(output / "grid.png")
        (output / "settings.json").write_text(json.dumps({**vars(options), "labels": labels.tolist()}, indent=1) + "\n")
        if options.npz:
            np.savez(output / "samples.npz", arr_0=drawn, arr_1=labels)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(drawn)} images of {drawn.shape[1]}×{drawn.shape[2]} pixels are in {output}/ (grid.png shows them).")


if __name__ == "__main__":
    main()
