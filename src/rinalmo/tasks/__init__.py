"""What can be learned from labelled RNA: each task is a small object with examples, head, loss and figures."""
