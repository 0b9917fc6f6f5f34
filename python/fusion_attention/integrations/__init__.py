"""Bridges to other packages, one module each; a module imports its package when it is imported."""
