"""Load generators and comparisons. They speak HTTP only, so they measure any server with the same routes."""
