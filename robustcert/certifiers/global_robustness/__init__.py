"""Changes of outputs between any two near inputs, whatever the sample."""
