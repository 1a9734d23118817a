"""The gRPC transports (nghttp2 by default, grpc.aio behind a switch) and the services on them; `serving` opens both."""
