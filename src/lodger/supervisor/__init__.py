"""What keeps models served: their states, the workers that hold them, and the `Service` made of both."""
