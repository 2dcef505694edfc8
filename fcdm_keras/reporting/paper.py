"""The paper's results (tables 3, 4, 5 and 8), to stand beside ours. Standard library only.

FLOPs (G) are multiply-accumulates of one forward pass; throughput is in images per second of one network evaluation at
batch 64, on the paper's GPU. Scores are of 50,000 samples, 250 steps, by ADM's suite.
"""

from typing import NamedTuple


class Row(NamedTuple):
    """One model of a table; `None` is what the table leaves out."""

    model: str
    steps: str
    gflops: float | None = None
    throughput: float | None = None
    fid: float | None = None
    sfid: float | None = None
    inception_score: float | None = None
    precision: float | None = None
    recall: float | None = None


def _rows(text):
    for line in text.strip().splitlines():
        model, steps, *numbers = (cell.strip() for cell in line.split("|"))
        yield Row(model, steps, *(None if number == "-" else float(number) for number in numbers))


# Table 3; sFID of FCDM at 400K from table 8.
IMAGENET_256 = tuple(_rows("""
DiT-S/2   | 400K |   6.1 | 1234.0 | 68.40 |   -   |   -    |  -   |  -
DiC-S     | 400K |   5.9 | 3148.8 | 58.68 |   -   |  25.82 |  -   |  -
DiG-S/2   | 400K |   4.3 |  961.2 | 62.06 |   -   |  22.81 | 0.39 | 0.56
DiCo-S    | 400K |   4.3 | 1695.7 | 49.97 |   -   |  31.38 | 0.48 | 0.58
FCDM-S    | 400K |   3.1 | 2687.2 | 48.52 | 10.12 |  31.64 | 0.48 | 0.58
DiT-B/2   | 400K |  23.0 |  380.1 | 43.47 |   -   |   -    |  -   |  -
DiC-B     | 400K |  23.5 | 1024.2 | 32.33 |   -   |  48.72 |  -   |  -
DiG-B/2   | 400K |  17.1 |  345.9 | 39.50 |   -   |  37.21 | 0.51 | 0.63
DiCo-B    | 400K |  16.9 |  823.0 | 27.20 |   -   |  56.52 | 0.60 | 0.61
FCDM-B    | 400K |  12.2 | 1001.6 | 26.21 |  6.86 |  58.04 | 0.59 | 0.61
DiT-L/2   | 400K |  80.7 |  114.6 | 23.33 |   -   |   -    |  -   |  -
DiG-L/2   | 400K |  61.7 |  109.0 | 22.90 |   -   |  59.87 | 0.60 | 0.64
DiCo-L    | 400K |  60.2 |  288.3 | 13.66 |   -   |  91.37 | 0.69 | 0.61
FCDM-L    | 400K |  48.3 |  381.3 | 13.83 |  5.65 |  93.31 | 0.66 | 0.62
DiT-XL/2  | 400K | 118.6 |   80.5 | 19.47 |   -   |   -    |  -   |  -
DiC-XL    | 400K | 116.1 |  263.1 | 13.11 |   -   | 100.2  |  -   |  -
DiG-XL/2  | 400K |  89.4 |   71.7 | 18.53 |   -   |  68.53 | 0.63 | 0.64
DiCo-XL   | 400K |  87.3 |  174.2 | 11.67 |   -   | 100.4  | 0.71 | 0.61
DiC-H     | 400K | 204.4 |  144.5 | 11.36 |   -   | 106.5  |  -   |  -
FCDM-XL   | 400K |  64.6 |  272.7 | 10.72 |  5.47 | 108.0  | 0.69 | 0.63
DiT-XL/2  | 7M   | 118.6 |   80.5 |  9.62 |   -   |   -    |  -   |  -
DiC-H     | 800K | 204.4 |  144.5 |  8.96 |   -   | 124.33 |  -   |  -
DiG-XL/2  | 1.2M |  89.4 |   71.7 |  8.60 |   -   | 130.03 | 0.68 | 0.68
FCDM-XL   | 1M   |  64.6 |  272.7 |  7.91 |   -   | 135.55 | 0.71 | 0.64
"""))  # fmt: skip

# Table 4, latent diffusion; the paper gives epochs there.
IMAGENET_256_GUIDED = tuple(_rows("""
LDM-4     |  200 epochs | 104.0 |   -   | 3.60 | - | 247.7 | 0.87 | 0.48
U-ViT-H/2 |  240 epochs | 133.3 |  73.5 | 2.29 | - | 263.9 | 0.82 | 0.57
MaskDiT   | 1600 epochs |   -   |   -   | 2.28 | - | 276.6 | 0.80 | 0.61
SD-DiT    |  480 epochs |   -   |   -   | 3.23 | - |   -   |  -   |  -
DiT-XL/2  | 1400 epochs | 118.6 |  80.5 | 2.27 | - | 278.2 | 0.83 | 0.57
SiT-XL/2  | 1400 epochs | 118.6 |  80.5 | 2.06 | - | 277.5 | 0.83 | 0.59
DiG-XL/2  |  240 epochs |  89.4 |  71.7 | 2.07 | - | 279.0 | 0.82 | 0.60
DiCo-XL   |  750 epochs |  87.3 | 174.2 | 2.05 | - | 282.2 | 0.83 | 0.59
DiC-H     |  400 epochs | 204.4 | 144.5 | 2.25 | - |   -   |  -   |  -
FCDM-XL   |  400 epochs |  64.6 | 272.7 | 2.03 | - | 285.7 | 0.81 | 0.59
"""))  # fmt: skip

# Table 16.
IMAGENET_256_OTHERS = tuple(_rows("""
MDT-XL/2       | 400K | 118.7 |  83.9 | 16.42 | - |   -    |  -   |  -
FasterDiT-XL/2 | 400K | 118.6 |  80.5 | 11.90 | - |   -    |  -   |  -
FCDM-XL        | 400K |  64.6 | 272.7 | 10.72 | - | 108.0  | 0.69 | 0.63
MDT-XL/2       | 1.3M | 118.7 |  83.9 |  9.60 | - |   -    |  -   |  -
FasterDiT-XL/2 | 1M   | 118.6 |  80.5 |  8.72 | - | 121.17 | 0.68 | 0.67
FCDM-XL        | 1M   |  64.6 | 272.7 |  7.91 | - | 135.55 | 0.71 | 0.64
"""))  # fmt: skip

# Table 5.
IMAGENET_512 = tuple(_rows("""
DiT-XL/2  | 400K | 524.7 |  18.6 | 20.94 | - |  66.3  | 0.74 | 0.58
DiG-XL/2  | 400K |   -   |   -   | 17.36 | - |  69.4  | 0.75 | 0.63
DiC-XL    | 400K | 464.3 | 124.2 | 15.32 | - |  93.6  |  -   |  -
DiC-H     | 400K | 817.2 |  68.6 | 12.89 | - | 101.8  |  -   |  -
FCDM-XL   | 400K | 257.7 | 129.6 | 10.23 | - | 108.7  | 0.79 | 0.60
DiT-XL/2  | 1.3M | 524.7 |  18.6 | 13.78 | - |   -    |  -   |  -
DiT-XL/2  | 3M   | 524.7 |  18.6 | 12.03 | - | 105.25 | 0.75 | 0.64
DiCo-XL   | 1.3M | 349.8 |  82.0 |  8.10 | - | 132.9  | 0.78 | 0.62
FCDM-XL   | 1M   | 257.7 | 129.6 |  7.46 | - | 133.6  | 0.79 | 0.61
"""))  # fmt: skip

TABLES = (
    ("ImageNet 256×256, no guidance (table 3)", IMAGENET_256),
    ("ImageNet 256×256, with guidance (table 4)", IMAGENET_256_GUIDED),
    ("ImageNet 512×512 (table 5)", IMAGENET_512),
)
