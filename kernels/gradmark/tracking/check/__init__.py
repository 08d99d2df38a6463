"""`gradmark check`: is this branch slower? Paired rounds of fresh processes, with error rates that are known.

Works on any project with an asv suite: nothing here imports a kernel, the ruler is not made of what it measures.
"""
