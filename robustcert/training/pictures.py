"""The pictures of a certificate folder that loggers show."""

# Files of the folder, and what loggers call them.
PICTURES = {"vra.png": "vra_curve", "levels.png": "level_sets"}
