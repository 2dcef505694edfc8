"""Scores of samples against real images."""
