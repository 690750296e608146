"""Fused operations: in C on CPUs where a compiler is at hand, in torch everywhere else."""
