"""The paper's tables of architectures (2, 3, 5, 6, 10, 12 to 16), recomputed.

    python -m fcdm_keras.model_table

FLOPs (G) are what the paper calls so: what torchprofile counts, see `fcdm_keras.network.costs`. MACs (G) are plain
multiply-accumulates. Nothing heavy is imported.
"""

from fcdm_keras.network.costs import count
from fcdm_keras.options import command_parser, reported
from fcdm_keras.recipes import MODEL_SIZES
from fcdm_keras.reporting import architectures


def rows():
    """One dict per paper size: name, channels, depths, parameters, GMACs at 256 and 512 px, and the paper's figures."""
    for name, size in MODEL_SIZES.items():
        if size.parameters is None:
            continue
        yield {
            "name": name,
            "channels": size.hidden_channels,
            "depths": size.depths,
            "parameters": count(size)[0],
            "gmacs_256": count(size, 32, 32)[1] / 1e9,
            "gmacs_512": count(size, 64, 64)[1] / 1e9,
            "paper_gmacs_256": size.gmacs_256,
            "paper_gmacs_512": size.gmacs_512,
        }


def main(arguments=None):
    text = (
        "Parameters and GMACs of FCDM-S, -B, -L and -XL, ablations and others, recomputed, beside the paper's figures."
    )
    command_parser("fcdm_keras.model_table", text).parse_args(arguments)
    with reported(computes=False):
        print(
            "1000 classes, 4 latent channels. FLOPs (G): the paper's count, torchprofile's: multiply-accumulates and\n"
            "elementwise products. MACs (G): multiply-accumulates alone. One forward pass of one image."
        )
        print("\n".join(architectures.text()))


if __name__ == "__main__":
    main()
