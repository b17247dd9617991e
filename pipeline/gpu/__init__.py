"""A batch on its way over an NVIDIA GPU, video decoded there, and which source is on which GPU."""
