"""A server in a process of its own, which writes down whatever it asks of another machine, and tells its sessions."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("gradio")

# Addresses and names that are looked up or connected to outside of this machine go into the file of the first argument.
# At a signal the sessions that the web app keeps go into another one, a line each.
_WATCHED = """
import gc, os, signal, socket, sys
out = sys.argv.pop(1)
def watch(function):
    def watched(*arguments, **options):
        asked = arguments[1] if isinstance(arguments[0], socket.socket) else arguments
        host = asked[0] if isinstance(asked, tuple) else asked
        if str(host) not in ("127.0.0.1", "localhost", "::1", "", "None"):
            print(host, file=open(out, "a"), flush=True)
        return function(*arguments, **options)
    return watched
connect, connect_ex = watch(socket.socket.connect), watch(socket.socket.connect_ex)
socket.socket.connect, socket.socket.connect_ex = connect, connect_ex
socket.getaddrinfo = watch(socket.getaddrinfo)
def tell(*_):
    from gradio.state_holder import StateHolder
    holders = [each for each in gc.get_objects() if isinstance(each, StateHolder)]
    with open(out + ".new", "w") as file:
        file.write("\\n".join(session for each in holders for session in each.session_data))
    os.replace(out + ".new", out + ".sessions")
signal.signal(signal.SIGUSR1, tell)
from rinalmo.cli import main
main()
"""


@dataclass
class Served:
    """A running web app."""

    process: subprocess.Popen
    address: str
    outside: Path
    log: Path
    temporary: Path

    def sessions(self):
        """The visitors that the server remembers."""
        found = self.outside.with_suffix(".sessions")
        found.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR1)
        while not found.exists():
            time.sleep(0.02)
        return set(found.read_text().split())

    def cpu_seconds(self):
        """What the server has computed, however busy the machine is."""
        user, system = (Path("/proc") / str(self.process.pid) / "stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def resident(self):
        """Bytes of the server that are in memory."""
        pages = (Path("/proc") / str(self.process.pid) / "statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, seconds=30):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start `rinalmo web`; all are stopped in the end."""
    started = []

    def run():
        folder = tmp_path_factory.mktemp("served")
        (folder / "tmp").mkdir()
        command = [sys.executable, "-c", _WATCHED, str(folder / "outside"), "web", "--port", "0", "--threads", "1"]
        log = folder / "log"
        environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True, env=environment)
        started.append(process)
        line = process.stdout.readline()
        assert line.startswith("serving on http://127.0.0.1:"), log.read_text()
        return Served(process, line.split()[2], folder / "outside", log, folder / "tmp")

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def served(start):
    """The web app that the tests of a worker share."""
    return start()


@pytest.fixture(scope="session")
def client(served):
    """A visitor by the API."""
    from gradio_client import Client

    visitor = Client(served.address, verbose=False)
    yield visitor
    visitor.close()


@pytest.fixture
def until():
    """Wait for what is to become true."""

    def wait(holds, seconds=20):
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.05)

    return wait
