"""Train a KL autoencoder on your own images.

    python -m fcdm_keras.train_vae --output runs/vae                                # three embedded photographs
    python -m fcdm_keras.train_vae --source my_images/ --image-size 256 --resize 288 --block-out-channels \\
        128,256,512,512 --layers-per-block 2 --norm-num-groups 32 --output runs/my_vae

The number of levels gives the downsampling factor: 3 levels 4, 4 levels 8. The same command resumes a run that was
stopped at any moment. The folder then holds

    vae/                  config.json and safetensors as diffusers publishes them
    autoencoder.keras     the same for keras.saving.load_model
    reconstructions.png   held-out images, each above its reconstruction
    scores.json           PSNR on held-out images; mean and standard deviation of the latents
    log.csv, loss.png, checkpoints/, settings.json

`--vae DIR` of the other commands, and `KLAutoencoder.from_diffusers(DIR)`, take the folder as it is.
"""

import time
from pathlib import Path

from fcdm_keras.arguments import word
from fcdm_keras.options import add_device_flags, add_flags, command_parser, device_options, given, reported
from fcdm_keras.recipes import VAEConfig
from fcdm_keras.runs.folder import vae_opened
from fcdm_keras.runs.shared import if_alone, if_one_of_several


def parse(arguments=None):
    parser = command_parser("fcdm_keras.train_vae", __doc__, allow_abbrev=False)
    add_flags(parser, VAEConfig, show_defaults=True)
    parser.add_argument("--output", type=word, required=True, help="folder of the run")
    add_device_flags(parser)
    options = parser.parse_args(arguments)
    config = VAEConfig(**given(options, VAEConfig))
    try:
        config.check()
    except ValueError as error:
        parser.error(str(error))
    return config, options


def main(arguments=None):
    began = time.perf_counter()
    config, options = parse(arguments)
    folder, opening = Path(options.output), vae_opened(options.output, config, given(options, VAEConfig))
    with reported("Stopped. The same command resumes from the last checkpoint."), if_alone(opening):
        from fcdm_keras import distribution
        from fcdm_keras.runs.autoencoder import train_and_export

        with distribution.setup(**device_options(options)), if_one_of_several(opening):
            train_and_export(config, folder)
            distribution.say(
                f"{time.perf_counter() - began:.0f} s in all; the autoencoder is in {folder}/vae/ and "
                f"{folder}/autoencoder.keras, pictures and scores beside it"
            )


if __name__ == "__main__":
    main()
