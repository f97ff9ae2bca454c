"""Speed and memory of the layers beside their peers; see `python -m benchmarks --help`.

Every number is taken in one process in which all contenders take turns, only after the correctness gate of
the op is green, and is printed beside the floor that the hardware sets.
"""
