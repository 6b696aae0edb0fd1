"""Backends: who loads and launches kernels. `vocab.code.Backend` is what each offers."""
