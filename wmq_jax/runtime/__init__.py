"""The process: its devices and settings of JAX, and where what it computes comes from.

Imported by its modules, ``devices``, ``provenance`` and ``starts``: the first must not wait for anything heavy.
"""
