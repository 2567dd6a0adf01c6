"""What memory is there and who holds it, measured. Never a CUDA context, never a signal."""
