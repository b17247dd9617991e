"""What every room may use: small helpers that know nothing of frames, networks or streams."""
