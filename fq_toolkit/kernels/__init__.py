"""What runs on the device: the reference of every op, its CPU and Triton kernels, and their dispatch."""
