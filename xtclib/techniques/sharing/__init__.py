"""Cross-layer sharing: one set of weights for several layers."""
