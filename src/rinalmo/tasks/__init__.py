"""What can be learned from labeled RNA: each task is a small object with examples, head, loss and figures."""
