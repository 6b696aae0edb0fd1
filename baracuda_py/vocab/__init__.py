"""The vocabulary: enums, SKUs and guarantees, rules, tensor views, devices, and kernels' code as data."""
