"""The seccomp profile in force: a Relay's calls pass, others do not, and every rule is needed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab.backend import Completed
from lab.container.engine import Engine
from lab.container.seccomp import PROFILE, text

pytestmark = pytest.mark.slow

RUN = ("run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=10000:10000")
RESTRICTED = ("--read-only", "--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--security-opt", "no-new-privileges")

EXERCISE = """
import asyncio, ctypes, errno, fcntl, os, socket, struct, subprocess, threading

def refused(call, *arguments):
    try:
        made = call(*arguments)
    except PermissionError:
        return
    raise SystemExit(f"{call} {arguments} gave {made}")

refused(socket.socket, socket.AF_PACKET, socket.SOCK_RAW)
refused(socket.socket, 38, socket.SOCK_SEQPACKET)  # AF_ALG
libc = ctypes.CDLL(None, use_errno=True)
for name, count in {"unshare": 1, "setns": 2, "ptrace": 4, "mount": 5}.items():
    assert getattr(libc, name)(*([0x10000000] + [0] * count)[:count]) == -1 and ctypes.get_errno() == errno.EPERM, name
assert libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM  # clone, CLONE_NEWUSER

for family in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_VSOCK):
    socket.socket(family, socket.SOCK_STREAM).close()
socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).close()
threading.Thread(target=int).start()
os.close(os.open("/run/x", os.O_CREAT | os.O_RDWR, 0o600))
os.rename("/run/x", "/run/y")

tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"wg0", 0x5001))

async def talk():
    async def answer(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    async with await asyncio.start_unix_server(answer, "/run/s"):
        reader, writer = await asyncio.open_unix_connection("/run/s")
        writer.write(b"hello\\n")
        assert await reader.readline() == b"hello\\n"
        writer.close()
asyncio.run(talk())

subprocess.run(["nft", "add", "table", "inet", "x"], check=True)
print("all of it")
"""


def exercise(engine: Engine, image: str, profile: Path, *options: str, script: str = EXERCISE) -> Completed:
    """Make a Relay's kind of calls under a profile."""
    words = (
        *RUN,
        *RESTRICTED,
        "--timeout",
        "15",
        "--tmpfs",
        "/run",
        "--device",
        "/dev/net/tun",
        "--security-opt",
        f"seccomp={profile}",
    )
    return engine.run(*words, *options, "--entrypoint", "/opt/wgvsock/bin/python", image, "-c", script, check=False)


def test_a_relay_s_calls_pass_and_others_do_not(engine: Engine, relay_image: str) -> None:
    done = exercise(engine, relay_image, PROFILE)
    assert (done.exit_code, done.stdout) == (0, b"all of it\n"), done.stderr.decode()


@pytest.mark.parametrize(
    "name",
    ["AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_VSOCK", "accept4", "bind", "connect", "epoll_ctl",
     "epoll_wait", "execve", "futex", "ioctl", "listen", "mmap", "openat", "read", "recvmsg", "rename", "sendto",
     "wait4", "write"],
)  # fmt: skip
def test_each_line_that_is_needed_is_missed(name: str, engine: Engine, relay_image: str, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(text({name}))
    assert exercise(engine, relay_image, profile).stdout != b"all of it\n"


def test_doctor_names_the_profile_where_vsock_is_forbidden(engine: Engine, relay_image: str, tmp_path: Path) -> None:
    def doctor(profile: Path) -> dict[str, dict[str, str]]:
        words = (*RUN, *RESTRICTED, "--device", "/dev/net/tun", "--security-opt", f"seccomp={profile}")
        said = engine.run(*words, "--entrypoint", "/usr/bin/wgvsock", relay_image, "doctor", "--json", check=False)
        return {check["name"]: check for check in json.loads(said.stdout)["checks"]}

    profile = tmp_path / "profile.json"
    profile.write_text(text({"AF_VSOCK"}))
    assert doctor(PROFILE)["AF_VSOCK"]["verdict"] == "ok"
    finding = doctor(profile)["AF_VSOCK"]
    assert (finding["verdict"], finding["found"]) == ("forbidden", "the seccomp profile blocks it")
