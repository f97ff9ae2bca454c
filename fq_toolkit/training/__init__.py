"""What the trainers of all papers share: one loop, checkpoints, run folders, logging, seeding, plots.

Nothing here knows a paper. Modules are imported where they are used; importing this package loads none of
them.
"""
