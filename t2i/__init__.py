"""Text to image: the backbone of `fcdm_keras`, conditioned on a text encoder's pooled embedding (paper, appendix H)."""
