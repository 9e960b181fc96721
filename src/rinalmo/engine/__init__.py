"""What computes: devices, batching, encoders made fast for a CPU or GPU, and resumable jobs."""
