"""What runs have come to: tables beside the paper's, a page, curves, and analyses of networks."""
