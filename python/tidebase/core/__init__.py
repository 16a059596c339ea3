"""What knows no run: errors, JSON, calls, connections, flows, tracing. It uses nothing else of the package."""
