"""Kills by count: a process that ends itself at the n-th call that changes what is on the disk.

Counted so, a kill comes at the same place on a fast machine and on a slow one, and every place gets its turn.
"""

import os
import signal

DURABLE = ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")


def killing_at(number, signal_number=None):
    """Send this process a signal, SIGKILL if None, at the number-th call that makes something durable or removes it."""
    calls = [0]
    signal_number = signal_number or signal.SIGKILL  # which Windows does not have, so it is no default

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
