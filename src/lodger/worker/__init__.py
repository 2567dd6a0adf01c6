"""The process on a device: one engine with all its models, asked by the gateway over an inherited socket."""
