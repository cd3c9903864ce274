"""A certificate folder: its claim, its samples, its pictures, its predictor."""
