"""baracuda_py inside frameworks: one subpackage each, imported only when asked for."""
