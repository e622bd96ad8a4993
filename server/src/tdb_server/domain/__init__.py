"""Plain frozen data: what a request says and what is answered. No torch, no grpc."""
