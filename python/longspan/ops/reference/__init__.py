"""Pure-torch oracles of the ops, one module a family. They are never registered as kernels."""
