"""The gateway service: Temporal's gRPC API in front, history and matching behind. It validates, limits and routes."""
