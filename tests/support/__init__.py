"""What several suites share: servers, toolchains, raw gRPC, normalised histories."""
