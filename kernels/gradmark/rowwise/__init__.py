"""Functions of whole rows (softmax and its kin), one module a backend."""
