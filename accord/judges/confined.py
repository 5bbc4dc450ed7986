"""How is a program run that nobody has read? In namespaces of its own, under limits, or not at all.

What Linux gives to any user is used, and no other program: namespaces of users, mounts, processes, network, IPC and
host name; a root of its own that holds the interpreter and the system's libraries, read-only, and a small /tmp in
memory; no capability, no way to gain one; limits on time, memory, processes, files. The program sees no network, no
home, no other process. Where any step fails, the program is not run. A hole in the kernel is no matter of this: for
programs of an enemy take a virtual machine.

This file is both sides: `run` starts it as a script, which confines itself and then becomes the program.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import re
import resource
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REFUSED = 97  # exit status of a confinement that failed: nothing was run
MOST = 1 << 20  # bytes that are read of what it says
NOBODY = 65534
INSIDE = 1000  # user and group within


@dataclass(frozen=True)
class Limits:
    """seconds: of the wall clock and of the processor. memory: MiB of each process. processes: threads among them.

    files: MiB that it may write in all.
    """

    seconds: float = 5.0
    memory: int = 512
    processes: int = 8
    files: int = 16


@dataclass(frozen=True)
class Outcome:
    """passed: of each test, in their order; what was not reached is not passed. why: what went wrong first."""

    passed: tuple[bool, ...]
    why: str = ""


def run(code: str, tests: Sequence[str], limits: Limits | None = None, *, confined: bool = True) -> Outcome:
    """Runs a program, and after it each test in the program's names; a test that raises nothing is passed.

    A program that ends by itself (`sys.exit`) before its tests has passed none. Only the standard library is there.

    Args:
        confined: without it there are limits of time, memory and files, and nothing else holds the program.

    Raises:
        PermissionError: the system does not allow the confinement; nothing was run.
    """
    limits, key = limits or Limits(), secrets.token_hex(16)
    python = os.path.realpath(sys.executable)
    words = json.dumps(
        {"confined": confined, "python": python, "prefix": os.path.realpath(sys.base_prefix), **vars(limits)}
    )
    sent = json.dumps({"code": code, "tests": list(tests), "key": key})
    started = subprocess.Popen(
        [python, "-I", "-S", os.path.realpath(__file__), words],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"}, cwd="/",
    )  # fmt: skip
    try:
        said, late = _heard(started, sent.encode("utf-8", "replace"), limits.seconds + 1.0)
    finally:
        _ended(started)
    status, error = started.returncode, said.get("stderr", b"").decode(errors="replace").strip()
    if status == REFUSED:
        raise PermissionError(error or "the confinement failed")
    passed, why = [], ""
    for line in said.get("stdout", b"").split(b"\n"):
        found = _line(line, key)
        if found is not None:
            why = why or str(found.get("why") or "")
            passed += [bool(found["passed"])] if "passed" in found else []
    passed = passed[: len(tests)]
    if len(passed) < len(tests) and not why:
        why = f"it took longer than {limits.seconds:g} s" if late else "it ended before its tests did"
    return Outcome((*passed, *(False for _ in range(len(tests) - len(passed)))), why)


def _line(line: bytes, key: str) -> dict[str, Any] | None:
    """What the driver reports; whatever else is written there lacks the key."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.get("key") == key else None


def _heard(started: subprocess.Popen[bytes], sent: bytes, seconds: float) -> tuple[dict[str, bytes], bool]:
    """What it says on both streams, and whether time ran out; no more than MOST bytes are kept."""
    assert started.stdin is not None
    assert started.stdout is not None
    assert started.stderr is not None
    said: dict[str, bytes] = {"stdout": b"", "stderr": b""}
    end, view = time.monotonic() + seconds, memoryview(sent)
    os.set_blocking(started.stdin.fileno(), False)
    with selectors.DefaultSelector() as waiting:
        waiting.register(started.stdout, selectors.EVENT_READ, "stdout")
        waiting.register(started.stderr, selectors.EVENT_READ, "stderr")
        waiting.register(started.stdin, selectors.EVENT_WRITE, "stdin")
        while (left := end - time.monotonic()) > 0 and len(waiting.get_map()) > 0:
            for key, _ in waiting.select(left):
                if key.data == "stdin":
                    try:
                        view = view[os.write(key.fd, view[: 1 << 16]) :]
                    except OSError:
                        view = view[:0]
                    if not view:
                        waiting.unregister(key.fileobj)
                        started.stdin.close()
                elif not (text := os.read(key.fd, 1 << 16)) or len(said[key.data]) > MOST:
                    waiting.unregister(key.fileobj)
                else:
                    said[key.data] += text
        return said, end <= time.monotonic()


def _ended(started: subprocess.Popen[bytes]) -> None:
    """Kills all that is left of it: with its first process the whole namespace goes."""
    try:
        os.killpg(started.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        started.kill()
    started.wait()
    for stream in (started.stdin, started.stdout, started.stderr):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                continue


@functools.cache
def refused() -> str | None:
    """Why programs cannot be confined here, in one line; None if they can. A program is tried."""
    if sys.platform != "linux":
        return f"this system ({sys.platform}) has no namespaces"
    try:
        found = run("import socket\nx = 1", ["assert x == 1"], Limits(seconds=20))
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return None if found.passed == (True,) else found.why


# -- the other side ----------------------------------------------------------------------------------------------------

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
KEPT = {1: 1, 2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # statvfs flags that a remount must repeat
PDEATHSIG, DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS, AMBIENT = 1, 4, 24, 38, 47
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
DRIVER = r"""
import json, os, sys
given = json.loads(sys.stdin.buffer.read())
out, null = os.dup(1), os.open("/dev/null", os.O_RDWR)
for fd in (0, 1, 2):
    os.dup2(null, fd)
key, code, tests, names = given["key"], given["code"], given["tests"], {"__name__": "answer"}
del given
me, mine = os.getpid(), os.getpid
def tried(text, name, names=names, exec=exec, compile=compile, type=type, str=str):
    try:
        exec(compile(text, name, "exec"), names)
    except BaseException as error:
        return (type(error).__name__ + ": " + str(error))[:300]
    return ""
def say(write=os.write, dumps=json.dumps, key=key, out=out, me=me, mine=mine, **what):
    if mine() == me:  # and not what it has forked
        write(out, (dumps({"key": key, **what}) + "\n").encode())
end = os._exit
why = tried(code, "answer")
if why:
    say(why=why)
else:
    for test in tests:
        why = tried(test, "test")
        say(passed=not why, why=why)
end(0)
"""


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _must(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = (source, target, kind, flags, data)
    _must(_libc().mount(*(w.encode() if isinstance(w, str) else w for w in words)), f"mount {target}")


def _user(proc: int) -> None:
    """A namespace of users, in which this process is INSIDE. Whoever is root becomes nobody first: limits bind nobody.

    Args:
        proc: the folder /proc, opened.
    """
    libc = _libc()
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        _must(libc.prctl(DUMPABLE, 1, 0, 0, 0), "dumpable")  # else its maps in /proc belong to root
    user, group = os.getuid(), os.getgid()
    _must(libc.unshare(NEWUSER), "unshare users")
    maps = (("setgroups", "deny"), ("uid_map", f"{INSIDE} {user} 1"), ("gid_map", f"{INSIDE} {group} 1"))
    for name, text in maps:
        _told(proc, f"self/{name}", text)
    with contextlib.suppress(OSError):  # where it can be had: no further namespaces within
        _told(proc, "sys/user/max_user_namespaces", "0")


def _told(proc: int, name: str, text: str) -> None:
    with os.fdopen(os.open(name, os.O_WRONLY, dir_fd=proc), "w") as stream:
        stream.write(text)


def _root(python: str, prefix: str, files: int) -> None:
    """A root of its own: system and interpreter to be read, a /tmp of so many MiB to be written."""
    system = ("/usr", "/bin", "/lib", "/lib64", "/lib32", "/nix/store", "/etc/ld.so.cache")
    needed = [p for p in system if Path(p).exists()]
    needed += [p for p in (prefix, str(Path(python).parent)) if not any(_below(p, q) for q in needed)]
    new = next(p for p in ("/mnt", "/media", "/srv", "/opt", "/tmp") if Path(p).is_dir() and not _over(p, needed))
    _mount("none", "/", None, REC | PRIVATE)
    _mount("tmpfs", new, "tmpfs", NOSUID | NODEV, "size=1m,mode=755")
    Path(f"{new}/dev").mkdir()
    Path(f"{new}/dev/null").touch()
    _mount("/dev/null", f"{new}/dev/null", None, BIND)
    Path(f"{new}/tmp").mkdir()
    _mount("tmpfs", f"{new}/tmp", "tmpfs", NOSUID | NODEV, f"size={files}m,nr_inodes=1024,mode=1777")
    for path in needed:
        at = new + path
        Path(at).parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_symlink():
            os.symlink(os.readlink(path), at)
            continue
        Path(at).mkdir(exist_ok=True) if Path(path).is_dir() else Path(at).touch()
        _mount(path, at, None, BIND | REC)
        for mounted in _mounts(at):
            _sealed(mounted)
    Path(f"{new}/.old").mkdir()
    os.chdir(new)
    _must(_libc().syscall(PIVOT_ROOT[os.uname().machine], b".", b".old"), "pivot_root")
    os.chdir("/")
    _must(_libc().umount2(b"/.old", 2), "umount")
    os.rmdir("/.old")
    _sealed("/")
    os.chdir("/tmp")


def _below(path: str, other: str) -> bool:
    return Path(other) in (Path(path), *Path(path).parents)


def _over(path: str, needed: Sequence[str]) -> bool:
    return any(_below(os.path.realpath(one), path) for one in needed)


def _mounts(path: str) -> list[str]:
    """What is mounted at a path and below it."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    points = {re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), line.split()[4]) for line in lines}
    return sorted(point for point in points if _below(point, path))


def _sealed(path: str) -> None:
    flags = sum(ours for theirs, ours in KEPT.items() if os.statvfs(path).f_flag & theirs)
    _mount("none", path, None, REMOUNT | BIND | RDONLY | NOSUID | flags)


def _powerless() -> None:
    """No capability, and no way to one: neither by a program that is owned by root nor by another namespace."""
    libc = _libc()
    _must(libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    _must(libc.prctl(AMBIENT, 4, 0, 0, 0), "ambient capabilities")
    for capability in range(64):
        if libc.prctl(CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break
    header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _must(libc.capset(header, nothing), "capset")


def _limited(seconds: float, memory: int, processes: int, files: int, *, alone: bool) -> None:
    """Limits of the system. `alone`: processes are counted in a namespace of its own, so a low number can hold."""
    size = memory << 20
    wanted = [
        (resource.RLIMIT_AS, size), (resource.RLIMIT_DATA, size), (resource.RLIMIT_CPU, int(seconds) + 2),
        (resource.RLIMIT_FSIZE, files << 20), (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0), (resource.RLIMIT_MSGQUEUE, 0),
    ]  # fmt: skip
    for what, most in wanted + ([(resource.RLIMIT_NPROC, processes)] if alone else []):
        resource.setrlimit(what, (most, most))


def main(words: str) -> None:
    """Confines this process, and becomes the program; leaves with REFUSED where that cannot be."""
    try:
        given = json.loads(words)
        limits = {name: given[name] for name in ("seconds", "memory", "processes", "files")}
        program = [given["python"], "-I", "-S", "-B", "-c", DRIVER]
        if not given["confined"]:
            _limited(**limits, alone=False)
            os.execv(program[0], program)
        root, proc = os.getuid() == 0, os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        if not root:
            _user(proc)
        _must(_libc().unshare(NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS), "unshare")
        child = os.fork()
        if child == 0:
            try:  # the first process of a namespace ends all others when it ends
                _root(given["python"], given["prefix"], given["files"])
                if root:
                    _user(proc)
                _powerless()
                _must(_libc().prctl(PDEATHSIG, signal.SIGKILL, 0, 0, 0), "pdeathsig")
                _limited(**limits, alone=True)
                os.execve(program[0], program, {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/tmp"})
            except BaseException as error:
                os.write(2, f"{error}".encode())
                os._exit(REFUSED)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
    except BaseException as error:
        os.write(2, f"{error}".encode())
        os._exit(REFUSED)


if __name__ == "__main__":
    main(sys.argv[1])
