"""Kills by count: a process that ends itself at the n-th call that changes what is on the disk.

Counted so, a kill comes at the same place on a fast machine and on a slow one, and every place gets its turn.
"""

import os
import signal

DURABLE = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def killing_at(number, signal_number=signal.SIGKILL):
    """Send this process a signal at the number-th call of `os` that makes something durable or removes it."""
    calls = [0]

    def killing(call):
        def maybe(*arguments, **options):
            calls[0] += 1
            if calls[0] == number:
                os.kill(os.getpid(), signal_number)
            return call(*arguments, **options)

        return maybe

    for name in DURABLE:
        setattr(os, name, killing(getattr(os, name)))
    return calls
