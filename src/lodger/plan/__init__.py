"""What fits: arithmetic over facts and measured memory. Pure."""
