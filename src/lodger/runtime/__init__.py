"""Models on a device: packed forwards, paged KV cache, sampling, and the one thread that owns the device."""
