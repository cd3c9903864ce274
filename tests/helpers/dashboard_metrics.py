"""Metrics that the dashboard draws."""

METRICS = {
    *("val/vra", "val/acr", "val/accuracy", "val/lipschitz", "seconds/train"),
    *("val/tightness", "val/tightness_worst", "val/tightness_bound", "val/tightness_shape"),
    *("val/certifiability_gap", "val/kinks", "trainer/global_step"),
}
