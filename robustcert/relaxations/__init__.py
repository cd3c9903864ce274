"""Linear relaxations: lines around an activation, and bounds propagated backward."""
