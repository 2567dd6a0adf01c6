"""Triton kernels, one file each. Only code that chose them for a GPU imports these: Triton comes with CUDA's torch.

On a CPU they run in Triton's interpreter (TRITON_INTERPRET=1), which is how the tests compare them without a GPU.
"""
