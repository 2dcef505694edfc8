"""The paper's table 2, recomputed from the architecture.

    python -m fcdm_keras.model_table

MACs are multiply-accumulates of one forward pass of one latent, as torchprofile counts them on the reference: those of
convolutions and linears, and the elementwise products that the reference writes out (two in GRN, one in each adaLN
modulation). The paper calls them FLOPs; a multiply-accumulate is two floating-point operations, so FLOPs proper are
twice as many. Standard library only.
"""

import argparse

from fcdm_keras.recipes import MODEL_SIZES


def count(
    size,
    height=32,
    width=32,
    *,
    num_classes=1000,
    embedding_dim=None,
    in_channels=4,
    out_channels=None,
    expansion_ratio=3,
    kernel_size=7,
    frequency_dim=256,
):
    """Parameters, and multiply-accumulates of one sample of `height` × `width`, of an `FCDMBackbone` of these sizes.

    Args:
        size: a `ModelSize`.
        height, width: size of x_t, divisible by 4.
        embedding_dim: size of the text embeddings that stand where classes do, if they do.
        num_classes, in_channels, …: as in `FCDMBackbone`.

    Returns:
        Two integers.
    """
    parameters = macs = 0
    out_channels = out_channels or 2 * in_channels

    def add(weights, biases, pixels, products=0):
        nonlocal parameters, macs
        parameters += weights + biases
        macs += pixels * (weights + products)

    def block(d, pixels):
        hidden = expansion_ratio * d
        add(d * 3 * d, 3 * d, 1)  # adaLN
        add(kernel_size**2 * d, d, pixels, products=d)  # depthwise convolution; modulation
        add(d * hidden, hidden, pixels)
        add(0, 2 * hidden, pixels, products=2 * hidden)  # GRN
        add(hidden * d, d, pixels)

    c = size.hidden_channels
    full = height * width
    levels = ((c, full), (2 * c, full // 4), (4 * c, full // 16))
    for (d, pixels), depth in zip((*levels, levels[1], levels[0]), size.depths, strict=True):
        for _ in range(depth):
            block(d, pixels)
    for d, _ in levels:
        add(frequency_dim * d, d, 1)
        add(d * d, d, 1)
        if embedding_dim is None:
            add((num_classes + 1) * d, 0, 0)  # label table
        else:
            hidden = max(d, embedding_dim)
            add(embedding_dim * hidden, hidden, 1)  # its MLP
            add(hidden * d, d, 1)
    if embedding_dim is not None:  # whitening, mean and null embedding, which are not trained
        add(embedding_dim**2, 2 * embedding_dim, 1)
    add(9 * in_channels * c, c, full)  # x_embedder
    for (d, pixels), (deeper, deeper_pixels) in zip(levels, levels[1:], strict=False):
        add(9 * d * deeper // 4, 0, pixels)  # down
        add(9 * deeper * d * 4, 0, deeper_pixels)  # up
        add(2 * d * d, d, pixels)  # merge
    add(9 * c * c, c, full)  # output_layer
    add(c * 2 * c, 2 * c, 1)  # final adaLN
    add(9 * c * out_channels, out_channels, full, products=c)
    return parameters, macs


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
