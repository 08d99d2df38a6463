"""What gradmark is up against: each operation beside what a user would pick instead, timed in the same rounds.

The rules, the same for everybody:

- A contender is called as its user calls it: arrays in, a new result out. Nobody gets `out=`. The memory of results is
  that of results before: the C library keeps what is freed (where it is glibc), as a training loop's allocator does.
- Except where the result is compared with the memory's own speed: there `gradmark numba, out=` and the yardstick
  (`copy` forward, `triad` backward: two reads, one write) both write to an array that exists.
- A backward pass starts from what the forward pass would have saved; the forward itself is not timed. torch eager is
  the ATen kernel that autograd calls, with what autograd saves, or autograd on the graph of an expression where there
  is no kernel. torch.compile and JAX get a function of (grad, x) made by `vjp`, and fuse what they recompute.
- clip_grad_norm works in place in all of them, as torch's does.
- Initializers have two variants. In place, everybody writes into an array that exists; otherwise everybody makes a new
  one. All draw from one distribution, each its own numbers: where the others compare values, here the bounds, the mean
  and the standard deviation of a draw are looked at, or its orthogonality.
- Everybody has the same threads: as many as the process may use cores.
- A contender whose values differ from ours is not timed, and the output says so; so it does of a library that is not
  installed, and of an operation that a library lacks.

asv imports every module of this folder, whatever is installed: so libraries are imported where they are used.
"""
