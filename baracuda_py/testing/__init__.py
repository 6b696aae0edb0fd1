"""What tests of ops are made of: descriptors from rules, inputs from argument specs, and laws over a registry.

strategies  hypothesis: descriptors that hold every rule, or break exactly one
data        tensors in fenced memory, on the host or a GPU
harness     the laws every kernel keeps
"""
