"""The networks that the paper compares FCDM with, behind the same contract: DiT, SiT, DiG, U-ViT, DiCo and DiC."""
