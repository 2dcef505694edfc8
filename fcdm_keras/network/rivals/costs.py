"""What the networks that FCDM is compared with cost, as `fcdm_keras.network.costs` counts. Standard library only.

Each function adds up a network of a `ModelSize` for one sample of `height` × `width`. Published figures are
torchprofile's, which sees the elementwise products that the published code writes out, and affine norms.
"""

from fcdm_keras.network.cost_sums import condition, vectors

_STRIDE = 3  # of DiC's skips, in blocks


def _patches(total, size, height, width, block, num_classes, embedding_dim, in_channels, computed):
    """DiT, SiT and DiG: `block(total, D, patches, heads)` adds one block."""
    d, patch = size.hidden_channels, size.options.get("patch_size", 2) ** 2
    pixels = height * width // patch
    vectors(total, [d], num_classes, embedding_dim)
    total.add(patch * in_channels * d, d, pixels)  # x_embedder
    for _ in range(size.depths[0]):
        total.add(6 * d * d, 6 * d, 1)  # adaLN
        block(total, d, pixels, size.options["num_heads"])
        total.add(0, 0, pixels, products=4 * d)  # two modulations, two gates
    total.add(2 * d * d, 2 * d, 1)
    total.add(patch * computed * d, patch * computed, pixels, products=d)


def _attention(total, d, tokens, bias=True, products=0):
    """Attention of all tokens to all."""
    total.add(3 * d * d, 3 * d * bias, tokens, products=products)
    total.add(0, 0, tokens, products=2 * tokens * d, unseen=2 * tokens * d)  # with keys, and with values
    total.add(d * d, d, tokens)


def _mlp(total, d, hidden, tokens):
    total.add(d * hidden, hidden, tokens)
    total.add(hidden * d, d, tokens)


def _dit_block(total, d, tokens, heads):
    _attention(total, d, tokens, products=d)  # scaled queries
    _mlp(total, d, 4 * d, tokens)


def _dig_block(total, d, tokens, heads):
    hidden = 256 * -(-(8 * d // 3) // 256)
    total.add(3 * d * d, 0, tokens)  # queries and keys of half the width, values, gate
    total.add(16 * d, 0, tokens)  # decays
    total.add(16 * d // 2, d // 2, tokens)
    total.add(d * d, d // heads, tokens, products=3 * d + heads)  # out; norm and gate, and a mean for each head
    total.add(2 * d * hidden, 0, tokens, products=hidden)
    total.add(hidden * d, 0, 0)
    total.add(0, 0, tokens, unseen=hidden * d)  # in a function of its own, which torchprofile does not see
    total.add(9 * d, d, tokens)  # depthwise


def _dit(total, size, height, width, *, num_classes=1000, embedding_dim=None, in_channels=4, out_channels=None):
    """A `DiTBackbone`."""
    given = (num_classes, embedding_dim, in_channels, out_channels or 2 * in_channels)
    _patches(total, size, height, width, _dit_block, *given)


def _sit(total, size, height, width, *, num_classes=1000, embedding_dim=None, in_channels=4, out_channels=None):
    """An `SiTBackbone`, which computes a variance that is not taken."""
    _patches(total, size, height, width, _dit_block, num_classes, embedding_dim, in_channels, 2 * in_channels)


def _dig(total, size, height, width, *, num_classes=1000, embedding_dim=None, in_channels=4, out_channels=None):
    """A `DiGBackbone`. The recurrence, linear in tokens, is in no figure, published or plain."""
    given = (num_classes, embedding_dim, in_channels, out_channels or 2 * in_channels)
    _patches(total, size, height, width, _dig_block, *given)


def _uvit(total, size, height, width, *, num_classes=1000, embedding_dim=None, in_channels=4, out_channels=None):
    """A `UViTBackbone`."""
    d, (depth,), options = size.hidden_channels, size.depths, size.options
    out_channels, patch = out_channels or 2 * in_channels, options.get("patch_size", 2) ** 2
    pixels = height * width // patch
    tokens = 2 + pixels
    condition(total, [d], num_classes, embedding_dim)
    total.add(0, 0, 1, products=d)  # timestep features
    total.add((2 + options.get("input_size", 32) ** 2 // patch) * d, 0, 0)  # positions
    total.add(patch * in_channels * d, d, pixels)
    for i in range(depth + 1):
        if i > depth // 2:
            total.add(2 * d * d, d, tokens)  # the skip
        _attention(total, d, tokens, bias=False, products=options["num_heads"] * tokens)  # scaled products
        _mlp(total, d, 4 * d, tokens)
    for _ in range(2 * depth + 3):
        _norm(total, d, tokens)
    total.add(patch * out_channels * d, patch * out_channels, tokens)
    if options.get("final_conv", True):
        total.add(9 * out_channels**2, out_channels, height * width)


def _norm(total, d, pixels):
    """With scale and offset."""
    total.add(0, 2 * d, pixels, products=d)


def _levels(size, height, width):
    """Width, pixels and blocks of each level, encoder to decoder."""
    c, full = size.hidden_channels, height * width
    levels = ((c, full), (2 * c, full // 4), (4 * c, full // 16), (2 * c, full // 4), (c, full))
    return [(d, pixels, depth) for (d, pixels), depth in zip(levels, size.depths, strict=True)]


def _ends(total, size, height, width, num_classes, embedding_dim, in_channels, out_channels, last):
    """What DiCo and DiC have beside blocks; their final layer is `last` wide."""
    c, full = size.hidden_channels, height * width
    levels = ((c, full), (2 * c, full // 4), (4 * c, full // 16))
    vectors(total, [d for d, _ in levels], num_classes, embedding_dim)
    total.add(9 * in_channels * c, c, full)  # x_embedder
    for (d, pixels), (deeper, deeper_pixels) in zip(levels, levels[1:], strict=False):
        total.add(9 * d * deeper // 4, 0, pixels)  # down
        total.add(9 * deeper * d * 4, 0, deeper_pixels)  # up
    total.add(2 * last * last, 2 * last, 1)  # final adaLN
    total.add(9 * last * out_channels, out_channels, full, products=last)


def _dico(total, size, height, width, *, num_classes=1000, embedding_dim=None, in_channels=4, out_channels=None):
    """A `DiCoBackbone`."""
    c, full = size.hidden_channels, height * width
    given = (num_classes, embedding_dim, in_channels, out_channels or 2 * in_channels)
    _ends(total, size, height, width, *given, last=2 * c)
    *levels, (_, _, depth) = _levels(size, height, width)
    for d, pixels, blocks in (*levels, (2 * c, full, depth)):
        for _ in range(blocks):
            _dico_block(total, d, int(size.options.get("mlp_ratio", 2) * d), pixels)
    total.add(4 * c * 2 * c, 2 * c, full // 4)  # merges
    total.add(2 * c * 2 * c, 2 * c, full)


def _dico_block(total, d, hidden, pixels):
    total.add(6 * d * d, 6 * d, 1)  # adaLN
    total.add(d * d, d, pixels)
    total.add(9 * d, d, pixels)  # depthwise
    total.add(d * d, d, 1, products=d)  # channel attention, its mean
    total.add(d * d, d, pixels)
    _mlp(total, d, hidden, pixels)
    total.add(0, 0, pixels, products=5 * d)  # attention, two modulations, two gates


def _dic(total, size, height, width, *, num_classes=1000, embedding_dim=None, in_channels=4, out_channels=None):
    """A `DiCBackbone`."""
    c, full = size.hidden_channels, height * width
    given = (num_classes, embedding_dim, in_channels, out_channels or 2 * in_channels)
    _ends(total, size, height, width, *given, last=c)
    for level, (d, pixels, blocks) in enumerate(_levels(size, height, width)):
        for i in range(blocks):
            skip = level > 2 and i % _STRIDE == 0
            _dic_block(total, 2 * d if skip else d, d, pixels)
    total.add(9 * c * c, c, full)  # output_layer


def _dic_block(total, channels, d, pixels):
    total.add(3 * d * d, 3 * d, 1)  # adaLN
    _norm(total, channels, pixels)
    total.add(9 * channels * d, d, pixels)
    _norm(total, d, pixels)
    total.add(9 * d * d, d, pixels, products=2 * d)  # modulation and gate
    if channels != d:
        total.add(channels * d, d, pixels)


COUNTS = {"dit": _dit, "sit": _sit, "dig": _dig, "uvit": _uvit, "dico": _dico, "dic": _dic}
