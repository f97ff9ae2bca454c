"""What runs on the device: the reference definition of every op, its native CPU and Triton kernels, and their dispatch."""
