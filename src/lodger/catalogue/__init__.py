"""What a model is: names, folders and facts. Pure: no torch, no sockets."""
