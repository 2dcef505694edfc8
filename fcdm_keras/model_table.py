"""The paper's table 2, recomputed from our network.

    python -m fcdm_keras.model_table

MACs are multiply-accumulates of one forward pass of one latent, as torchprofile counts them on the reference: those of
convolutions and linears, and the elementwise products that the reference writes out (two in GRN, one in each adaLN
modulation). The paper calls them FLOPs; a multiply-accumulate is two floating-point operations, so FLOPs proper are
twice as many.
"""

import argparse

from fcdm_keras.presets import MODEL_SIZES


def count_macs(backbone, height, width):
    """Multiply-accumulates of one forward pass of one sample.

    Args:
        backbone: an `FCDMBackbone`.
        height, width: size of x_t, divisible by 4.

    Returns:
        An integer.
    """
    full = height * width
    half, quarter = full // 4, full // 16
    total = sum(e.hidden.kernel.shape[0] * e.width + e.width**2 for e in backbone.time_embeddings)
    for blocks, pixels in (
        (backbone.encoder_1, full),
        (backbone.encoder_2, half),
        (backbone.middle, quarter),
        (backbone.decoder_2, half),
        (backbone.decoder_1, full),
    ):
        total += sum(_block_macs(block, pixels) for block in blocks)
    for layer, pixels in (
        (backbone.x_embedder, full),
        (backbone.down_1.conv, full),
        (backbone.down_2.conv, half),
        (backbone.up_2.conv, quarter),
        (backbone.merge_2, half),
        (backbone.up_1.conv, half),
        (backbone.merge_1, full),
        (backbone.output_layer, full),
        (backbone.final_layer.conv, full),
    ):
        total += pixels * _size(layer.kernel)
    return total + _size(backbone.final_layer.adaln.kernel) + full * backbone.widths[0]


def _block_macs(block, pixels):
    per_pixel = _size(block.dwconv.kernel) + _size(block.pwconv1.kernel) + _size(block.pwconv2.kernel)
    products = block.dwconv.bias.shape[0] + 2 * block.grn.gamma.shape[0]
    return pixels * (per_pixel + products) + _size(block.adaln.kernel)


def _size(variable):
    size = 1
    for side in variable.shape:
        size *= side
    return size


def build_without_weights(size):
    """A backbone of a `ModelSize` whose variables have shapes but no values: nothing is allocated."""
    import keras

    from fcdm_keras.backbone import FCDMBackbone

    with keras.StatelessScope():
        return FCDMBackbone(size.hidden_channels, size.depths)


def rows():
    """One dict per paper size: name, channels, depths, parameters, GMACs at 256 and 512 px, and the paper's figures."""
    for name, size in MODEL_SIZES.items():
        if size.parameters is None:
            continue
        backbone = build_without_weights(size)
        yield {
            "name": name,
            "channels": size.hidden_channels,
            "depths": size.depths,
            "parameters": backbone.count_params(),
            "gmacs_256": count_macs(backbone, 32, 32) / 1e9,
            "gmacs_512": count_macs(backbone, 64, 64) / 1e9,
            "paper_gmacs_256": size.gmacs_256,
            "paper_gmacs_512": size.gmacs_512,
        }


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m fcdm_keras.model_table",
        description="Parameters and GMACs of FCDM-S, -B, -L and -XL, recomputed, beside the paper's figures.",
    )
    parser.parse_args(arguments)
    print("1000 classes, 4 latent channels. GMACs are what the paper calls FLOPs (G); in brackets, the paper's figure.\n")
    print(f"{'model':8} {'C':>4}  {'depths':16} {'parameters':>12}  {'GMACs 256 px':>16}  {'GMACs 512 px':>16}  GFLOPs 256 px")
    for row in rows():
        at_256 = f"{row['gmacs_256']:.1f} [{row['paper_gmacs_256']}]"
        at_512 = f"{row['gmacs_512']:.1f} [{row['paper_gmacs_512'] or '–'}]"
        print(
            f"FCDM-{row['name']:3} {row['channels']:>4}  {'-'.join(map(str, row['depths'])):16} {row['parameters']:>12,}  "
            f"{at_256:>16}  {at_512:>16}  {2 * row['gmacs_256']:>13.1f}"
        )


if __name__ == "__main__":
    main()
