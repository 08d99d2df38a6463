"""The asv suite: what every kernel of gradmark costs, commit by commit.

The classes are derived from the catalog of the working tree, whatever commit is installed: an operation that a commit
lacks is "n/a" in its column, and a label never moves to another operation.
"""
