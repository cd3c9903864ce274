"""What the machine computes: settings, and products with known results."""
