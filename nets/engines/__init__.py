"""What runs a network fast: torch, OpenVINO or TensorRT behind one call. See load.py."""
