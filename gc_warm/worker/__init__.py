"""What runs inside an endpoint's worker process; standard library only."""
