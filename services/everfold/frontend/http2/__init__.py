"""HTTP/2 as a server of gRPC needs it, on the event loop: frames, headers, windows, and bounds on all of them."""
