"""Hosts on one Linux machine: each has its own address, name, processes, home, `/tmp`, `/run`, `/dev/shm` and SSH server.

A host is a process in namespaces of its own, and so is the switch between them, which has no way out. Namespaces, links and all that
runs on a host end with these processes, and they end with the process that made them, however that ends. The machine's own network is
not touched.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_PROGRAMS = ("ip", "make", "mount", "nsenter", "rsync", "setpriv", "ssh", "ssh-keygen", "sshd", "unshare")
_HOME = Path.home()
_TOLD = 5000  # characters of what a failed command printed, the last ones
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NAMESPACES = ("unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")

# what a host does first: it waits for its link, hides what is the machine's, and starts its SSH server
_BOOT = """
set -eu
read -r _
hostname {name}
ip link set lo up
ip address add {address}/24 dev eth0
ip link set eth0 up
ip route add default dev eth0
mount -t tmpfs tmpfs /dev/shm
mount --bind {root}/hosts /etc/hosts
mount --bind /dev/null /etc/resolv.conf
{mounts}
mount --rbind {root}/mnt /mnt
mount --rbind {root}/home {home}
mount --rbind {root}/run /run
mount --rbind {root}/tmp /tmp
cd /
echo ready
exec >/run/boot.log 2>&1
exec /usr/sbin/sshd -D -e -f /run/sshd_config
"""
_SSHD = """
HostKey /run/host_key
AuthorizedKeysFile /run/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
UseDNS no
PidFile none
"""


def why_not() -> str | None:
    """Why this machine cannot have such hosts; `None` if it can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root, for namespaces"
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=_PATH)]
    if missing:
        return f"needs {', '.join(missing)}: on Debian from iproute2, make, openssh-server, rsync, util-linux"
    probe = subprocess.run([*_NAMESPACES, "ip", "link", "add", "probe", "type", "bridge"], capture_output=True, text=True, check=False)
    return f"cannot make namespaces: {probe.stderr.strip()}" if probe.returncode else None


class Host:
    """A running host.

    Args:
        name: its host name.
        address: its IPv4 address, in 10.77.0.0/24.
        root: an empty folder for what is its own.
        shared: folders of the machine that it sees, by their place below `root`: `mnt/…`, `home/…` or `tmp/…`.
        hidden: folders of the machine that it does not see.
        bashrc: what each shell on it runs first, when it is new.
    """

    def __init__(self, name: str, address: str, root: Path, shared: Mapping[str, Path], hidden: Sequence[Path], bashrc: str) -> None:
        self.name, self.address, self.root = name, address, root
        self._shared, self._hidden, self._bashrc = shared, hidden, bashrc
        self._process: subprocess.Popen[str] | None = None

    def power_on(self, switch: Switch) -> None:
        """Boots, with empty `/tmp` and the home as it was left."""
        for folder in ("run", "tmp"):
            shutil.rmtree(self.root / folder, ignore_errors=True)
        for folder in ("home/.ssh", "mnt", "run/sshd", "tmp"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        mounts = []
        for place, source in self._shared.items():
            target = self.root / place
            target.mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --rbind {source} {target}")
        mounts += [f"mount -t tmpfs tmpfs {folder}" for folder in self._hidden]
        (self.root / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{a} {n}\n" for n, a in switch.addresses.items()))
        (self.root / "run/sshd_config").write_text(f"ListenAddress {self.address}{_SSHD}")
        if not (self.root / "home/.bashrc").exists():
            (self.root / "home/.bashrc").write_text(self._bashrc)
        switch.give_keys(self.root)
        script = _BOOT.format(name=self.name, address=self.address, root=self.root, home=_HOME, mounts="\n".join(mounts))
        self._process = _start([*_NAMESPACES, "bash", "-c", script])
        switch.plug_in(self.name, self.pid)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if answer != "ready\n":
            raise RuntimeError(f"{self.name} does not boot: {answer}{self._process.stdout.read()}")

    @property
    def pid(self) -> int:
        """Of its first process, as the machine counts."""
        assert self._process
        return _child(self._process)

    @property
    def is_on(self) -> bool:
        """Whether it was switched on, and not off since."""
        return self._process is not None

    def power_off(self) -> None:
        """At once: all that runs on it is killed. Its connections are closed by the kernel, as where a cloud ends a machine."""
        _end(self._process)
        self._process = None

    def command(self, line: str) -> list[str]:
        """What runs a shell's line on the host, as a user there would type it."""
        environment = ["env", "-i", f"HOME={_HOME}", f"PATH={_PATH}", "USER=root", "LANG=C.UTF-8", "TERM=dumb"]
        inside = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--uts", "--ipc", "--pid", "--wdns=/"]
        return [*inside, *environment, "bash", "-c", f"cd; . ~/.bashrc; {line}"]

    def run(self, line: str, timeout_s: float = 300.0) -> str:
        """Runs a line to its end.

        Returns:
            What it printed, errors too.

        Raises:
            AssertionError: if it failed.
        """
        done = subprocess.run(
            self.command(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{self.name}: {line}\n{done.stdout[-_TOLD:]}"
        return done.stdout

    @contextmanager
    def running(self, line: str) -> Iterator[None]:
        """Starts a line, and ends it with all that it started."""
        process = _start(self.command(line))
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # `nsenter` alone would leave its child, which holds the pipe
            process.communicate()


class Switch:
    """The network between hosts, and their keys.

    Args:
        root: an empty folder.
        names: of the hosts that there may be; they get addresses from 10.77.0.10 on.
    """

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self.root = root
        self.addresses = {name: f"10.77.0.{10 + number}" for number, name in enumerate(names)}
        self._process: subprocess.Popen[str] | None = None

    def power_on(self) -> None:
        """Starts the network."""
        for key in ("user_key", "host_key"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.root / key], check=True)
        self._process = _start(
            [*_NAMESPACES, "bash", "-c", "ip link add bridge type bridge; ip link set bridge up; echo ready; exec sleep infinity"]
        )
        assert self._process.stdout
        self._process.stdout.readline()

    def power_off(self) -> None:
        """Ends the network."""
        _end(self._process)
        self._process = None

    def plug_in(self, name: str, pid: int) -> None:
        """A cable to a host that has just been started."""
        self._ip("link", "delete", f"to-{name}", check=False)  # that of the time before, where the kernel has not got so far
        self._ip("link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        self._ip("link", "set", f"to-{name}", "master", "bridge", "up")

    def cut(self, name: str) -> None:
        """Pulls the cable: what is sent is lost, and no end is told."""
        self._ip("link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        """Plugs the cable in again."""
        self._ip("link", "set", f"to-{name}", "up")

    def give_keys(self, root: Path) -> None:
        """Lets a host in, and be entered by, all others."""
        for key, place in (("user_key", "home/.ssh/id_ed25519"), ("user_key.pub", "run/authorized_keys"), ("host_key", "run/host_key")):
            shutil.copy(self.root / key, root / place)
            (root / place).chmod(0o600)

    def _ip(self, *words: str, check: bool = True) -> None:
        assert self._process
        inside = ["nsenter", "--target", str(_child(self._process)), "--net", "ip"]
        subprocess.run([*inside, *words], check=check, capture_output=True, text=True)


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _child(process: subprocess.Popen[str]) -> int:
    """The one child of `unshare`, the first process of the new namespaces."""
    while not (children := Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()):
        if process.poll() is not None:
            raise RuntimeError(f"ended with {process.returncode}")
    return int(children[0])


def _end(process: subprocess.Popen[str] | None) -> None:
    if process is not None:
        process.kill()
        process.communicate()
