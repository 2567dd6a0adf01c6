"""What runs next: sequences, blocks of the KV cache, steps. Pure: no torch, no sockets, no clock."""
