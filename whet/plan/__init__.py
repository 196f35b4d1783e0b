"""What runs, and in which memory: the seam between a Graph and a target."""
