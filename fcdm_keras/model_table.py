"""The paper's table 2, recomputed from the architecture.

    python -m fcdm_keras.model_table

GMACs are what the paper calls FLOPs (G), see `fcdm_keras.network.costs`. Nothing heavy is imported.
"""

import argparse

from fcdm_keras.network.costs import count
from fcdm_keras.recipes import MODEL_SIZES


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
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.model_table",
        description="Parameters and GMACs of FCDM-S, -B, -L and -XL, recomputed, beside the paper's figures.",
    )
    parser.parse_args(arguments)
    print("1000 classes, 4 latent channels. GMACs are the paper's FLOPs (G); in brackets, the paper's figure.\n")
    print("model       C  depths         parameters    GMACs 256 px    GMACs 512 px  GFLOPs 256 px")
    for row in rows():
        at_256 = f"{row['gmacs_256']:.1f} [{row['paper_gmacs_256']}]"
        at_512 = f"{row['gmacs_512']:.1f} [{row['paper_gmacs_512'] or '–'}]"
        depths = "-".join(map(str, row["depths"]))
        print(
            f"FCDM-{row['name']:3} {row['channels']:>4}  {depths:12} {row['parameters']:>12,}  "
            f"{at_256:>14}  {at_512:>14}  {2 * row['gmacs_256']:>13.1f}"
        )


if __name__ == "__main__":
    main()
