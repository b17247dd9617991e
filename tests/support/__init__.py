"""What tests and benchmarks share: servers, cameras, painted people, small data sets, processes."""
