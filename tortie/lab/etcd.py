"""The lab's datastore: a real etcd, which can be killed, frozen and started again on its data."""

import os
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

from tortie.core.errors import ConfigError
from tortie.lab.box import PATIENCE


class Etcd:
    def __init__(self, folder: Path, address: str = "127.0.0.1", port: int = 2379) -> None:
        self.endpoint = f"http://{address}:{port}"
        self._folder = folder
        self._peer = f"http://{address}:{port + 1}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start (again) and wait until it answers. Raises ConfigError if it does not."""
        program = shutil.which("etcd", path=os.environ.get("PATH", "") + ":/usr/bin")
        if program is None:
            raise ConfigError("etcd", "", "is not installed (Debian package etcd-server)")
        self._folder.mkdir(parents=True, exist_ok=True)
        # fmt: off
        argv = [
            program, "--data-dir", str(self._folder / "data"), "--name", "lab",
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", self._peer, "--initial-advertise-peer-urls", self._peer,
            "--initial-cluster", f"lab={self._peer}",
        ]
        # fmt: on
        with (self._folder / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + PATIENCE
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self._folder / "etcd.log").read_text(errors="replace")[-2000:]
                raise ConfigError("etcd", self.endpoint, f"did not start: {text}")
            time.sleep(0.05)

    def _healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/health", timeout=2) as answer:
                return b"true" in answer.read()
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """Stop answering without closing a connection."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait()
