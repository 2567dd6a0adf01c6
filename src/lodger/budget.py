"""`Budget`: the treaty between the planner, which grants bytes, and the runtime, which keeps to them."""

from __future__ import annotations

import msgspec

from lodger.units import KIB, MIB

# Unused ends of what is taken from a GPU in larger pieces: torch's segments for small tensors, and mapped weights.
SEGMENTS = 5 * MIB
# A GPU's memory is taken in pieces of so many bytes: CUDA's virtual memory, and torch's segments for large tensors.
GRANULE = 2 * MIB
# Four segments for tensors of up to 1 MiB, those of captured steps of few tokens; larger ones lie in one piece.
SMALL_CAPTURED = 8 * MIB
# What the driver has for a captured decode step, with the kernels that only steps of its size use: 0.5 to 2.6 MiB for
# 36 layers (H100, driver 580).
CAPTURED_STEP = 2 * MIB


def workspaces(capability: tuple[int, int] | None) -> int:
    """Bytes that cuBLAS has of torch's allocator for intermediate sums, on a GPU of this compute capability.

    torch gives each thread one for each stream it multiplies on: the device's thread, the one that loads, and that one
    while it captures. They are of 32 MiB on Hopper and 8,320 KiB elsewhere (`getChosenWorkspaceSize`, torch 2.11).
    """
    return 3 * (32 * MIB if capability is not None and capability[0] == 9 else 8320 * KIB)


def workspaces_beside(capability: tuple[int, int] | None) -> int:
    """Likewise, of two more streams: where texts are computed beside chats, and where those steps are captured."""
    return workspaces(capability) // 3 * 2


def decode_steps(most: int) -> list[int]:
    """Numbers of chats that get a captured step. Between two of them at most a third is padding, from 8 on."""
    steps = [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 257, 32)]
    return sorted({*(rows for rows in steps if rows < most), most})


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes granted to one model on one device, and the limits that keep it inside them."""

    weights: int
    kv_cache: int = 0
    captured: int = 0  # on a GPU: what a decoder's captured steps hold while the model is awake
    activations: int = 0  # peak of one step of `step_tokens` tokens
    unfinished: int = 0  # on a GPU: what requests hold between their steps
    gaps: int = 0  # on a GPU: what lies unused between tensors of several models in the memory that steps share
    graphs: int = 0  # on a GPU: what captured steps work in; the same place for all models that are given as much
    beside: int = 0  # on a GPU: likewise, of texts that are computed beside chats; 0: only between their tokens
    made_beside: int = 0  # on a GPU: what is made of the hidden states of those texts
    step_tokens: int = 2048  # most tokens in one forward
    context_length: int = 0  # tokens of one sequence that are served
    block_size: int = 16  # tokens in one block of the KV cache
    sequences: int = 256  # most chats in one step

    @property
    def total(self) -> int:
        return self.kept + self.activations + self.unfinished + self.graphs + self.beside + self.made_beside

    @property
    def resumed(self) -> int:
        """Bytes of `unfinished` that are among the activations of a step of the same model: a text's hidden states."""
        return 0 if self.kv_cache else self.unfinished

    @property
    def kept(self) -> int:
        """Bytes held between steps too."""
        return self.weights + self.kv_cache + self.captured
