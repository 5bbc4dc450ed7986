"""Programs that nobody has read: what they pass, and what they cannot do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from accord.data.records import Record
from accord.errors import ConfigError, RecordError
from accord.judges import code, confined
from accord.judges.confined import Limits, run
from accord.judges.table import find


@pytest.fixture(scope="module")
def here() -> None:
    """Skips where the system confines nothing."""
    if (why := confined.refused()) is not None:
        assert not os.environ.get("ACCORD_CI"), f"CI must let programs be confined: {why}"
        pytest.skip(f"programs cannot be confined here: {why}")


pytestmark = pytest.mark.usefixtures("here")
SHORT = Limits(seconds=1.5, memory=256, processes=6, files=4)


def test_a_program_is_run_with_its_tests_one_by_one():
    found = run("def f(x): return x * 2", ["assert f(2) == 4", "assert f(2) == 5", "assert f('a') == 'aa'", "f()"])
    assert found.passed == (True, False, True, False)
    assert found.why.startswith("AssertionError")
    assert run("def f(:", ["1"]).why.startswith("SyntaxError")
    assert run("import json, math, collections, itertools, re, datetime, decimal, random", ["1"]).passed == (True,)


def test_it_sees_no_network():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        came: list[bool] = []
        server.settimeout(3)

        def wait() -> None:
            try:
                server.accept()
                came.append(True)
            except OSError:
                return

        waiting = threading.Thread(target=wait)
        waiting.start()
        port = server.getsockname()[1]
        reach = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)"
        found = run(reach, ["1"], SHORT)
        assert (found.passed, found.why[:7]) == ((False,), "OSError")
        assert run("import socket\nsocket.create_connection(('1.1.1.1', 53), 1)", ["1"], SHORT).passed == (False,)
        waiting.join()
        assert came == []


def test_it_writes_nowhere_and_reads_no_home(tmp_path):
    target = tmp_path / "mine"
    target.write_text("secret")
    tmp_path.chmod(0o777)
    for place in (str(target), str(tmp_path / "new"), "/usr/lib/x", "/etc/x", "/x", str(Path.home() / "x")):
        found = run(f"open({place!r}, 'a').write('x')", ["1"], SHORT)
        assert found.passed == (False,), place
    assert target.read_text() == "secret"
    assert list(tmp_path.iterdir()) == [target]
    for place in (str(target), "/etc/passwd", "/proc/self/environ", str(Path(__file__).resolve())):
        assert run(f"open({place!r}).read()", ["1"], SHORT).why.startswith("FileNotFoundError"), place
    assert run("open('/tmp/own', 'w').write('x')", ["assert open('/tmp/own').read() == 'x'"], SHORT).passed == (True,)
    assert run("import os", ["assert not os.path.exists('/tmp/own')"], SHORT).passed == (True,)  # the next is empty
    assert run("import os", ["assert set(os.environ) <= {'PATH', 'LANG', 'HOME', 'LC_CTYPE'}"], SHORT).passed == (True,)


def test_it_cannot_fill_the_disk_or_the_memory():
    began = time.monotonic()
    full = run("f = open('/tmp/a', 'wb')\nwhile True: f.write(b'0' * 1000000)", ["1"], SHORT)
    assert full.why.startswith("OSError")
    many = run("n = 0\nwhile True:\n  open(f'/tmp/{n}', 'wb').write(b'0' * 1000000)\n  n += 1", ["1"], SHORT)
    assert many.why.startswith("OSError")
    more = run("x = []\nwhile True: x.append(bytearray(10 ** 7))", ["1"], Limits(seconds=10, memory=256))
    assert more.why.startswith("MemoryError")
    assert time.monotonic() - began < 30


def test_it_cannot_fork_without_end_and_leaves_nobody_behind():
    mark = f"accord-left-{os.getpid()}"
    bomb = run("import os\nwhile True: os.fork()", ["1"], SHORT)
    assert bomb.passed == (False,)
    stay = f"import os, time\nif os.fork() == 0:\n  os.setsid()\n  name = {mark!r}\n  time.sleep(60)"
    assert run(stay, ["1"], SHORT).passed == (True,)
    end = time.monotonic() + 5
    while (left := _running()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left
    count = "import threading, time\nfor _ in range(50):"
    count += "\n  threading.Thread(target=time.sleep, args=(9,), daemon=True).start()"
    assert run(count, ["1"], SHORT).why.startswith("RuntimeError")


def _running() -> list[str]:
    """Command lines of programs that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(w.startswith(confined.DRIVER[:30].encode()) for w in words):
            found.append(str(path))
    return found


SPAM = "import os\nwhile True: os.write(3, b'{}\\n' * 9999)"


@pytest.mark.parametrize("loop", ["while True: pass", "import time; time.sleep(60)", SPAM])
def test_it_ends_in_time(loop):
    began = time.monotonic()
    found = run(loop, ["1"], SHORT)
    assert (found.passed, found.why) == ((False,), "it took longer than 1.5 s")
    assert time.monotonic() - began < 8
    late = run("", ["1", loop, "1"], SHORT)
    assert late.passed == (True, False, False)  # what was reached counts


FORGED = """
import os
for fd in range(1, 9):
    try:
        os.write(fd, b'{"passed": true, "key": ""}\\n' + b"[" * 9999 + b"\\n")
    except OSError:
        pass
os._exit(0)
"""


@pytest.mark.parametrize(
    "cheat",
    [
        "import sys; sys.exit(0)", "import os; os._exit(0)", "raise SystemExit",
        FORGED,
        "import os\nif os.fork(): os._exit(0)",
    ],
)  # fmt: skip
def test_a_program_that_ends_early_has_passed_nothing(cheat):
    assert run(cheat, ["1", "1"], SHORT).passed == (False, False)


def test_it_has_no_power_and_cannot_get_one():
    libc = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    for call in ("mount(b'none', b'/usr', None, 4128, None)", "umount2(b'/tmp', 2)", "unshare(0x10000000)",
                 "unshare(0x20000)", "sethostname(b'x', 1)", "setuid(0)", "chroot(b'/tmp')"):  # fmt: skip
        assert run(f"{libc}assert libc.{call} == 0", ["1"], SHORT).why.startswith("AssertionError"), call
    assert run(f"{libc}libc.prctl(39, 0, 0, 0, 0)", ["assert libc.prctl(39, 0, 0, 0, 0) == 1"], SHORT).passed == (True,)
    assert run("import os", ["assert os.getuid() != 0", "assert os.getpid() == 1"], SHORT).passed == (True, True)
    assert run("import os\nos.kill(-1, 9)", ["1"], SHORT).why.startswith("ProcessLookupError")


def test_an_ordinary_user_is_confined_as_well(tmp_path):
    if os.getuid() != 0 or not Path("/usr/bin/python3").exists() or not Path("/usr/bin/setpriv").exists():
        pytest.skip("not root, so every other test was one of an ordinary user")
    copy = tmp_path / "confined_copy.py"
    copy.write_text(Path(confined.__file__).read_text())
    for folder in (tmp_path, *tmp_path.parents):
        if str(folder).startswith("/tmp/"):
            folder.chmod(0o755)
    script = (
        "import confined_copy as c; o = c.run('import os', ['assert os.getuid() == 1000', 'open(\"/usr/x\", \"w\")'])"
    )
    words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-B", "-c"]
    made = subprocess.run(
        [*words, f"{script}; print(o.passed)"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert made.stdout.strip() == "(True, False)", made.stderr


def test_where_nothing_can_be_confined_nothing_is_run(tmp_path, monkeypatch):
    """The confinement fails at its first step, and then at a later one."""
    ran = tmp_path / "ran"
    for broken in ("def _root(*_): raise OSError('no mounts')", "def _powerless(): raise OSError('no capset')"):
        copy = tmp_path / "broken.py"
        text = Path(confined.__file__).read_text()
        copy.write_text(text.replace('if __name__ == "__main__":', f"{broken}\n\n\nif __name__ == '__main__':"))
        monkeypatch.setattr(confined, "__file__", str(copy))
        with pytest.raises(PermissionError, match=r"no (mounts|capset)"):
            run(f"open({str(ran)!r}, 'w')", ["1"])
        assert not ran.exists()
        confined.refused.cache_clear()
        with pytest.raises(ConfigError, match=r"answers are not run: .*\(no .*unsafe_exec=true"):
            find("dstc")
    confined.refused.cache_clear()


def test_unsafe_is_asked_for_by_name_and_still_limited(monkeypatch):
    monkeypatch.setattr(code, "refused", lambda: "not here")
    judge = find("dstc:unsafe_exec=true,seconds=1")
    answers = [{"text": "def f(): return 1\nassert f() == 1"}, {"text": "while True: pass\nassert True"}]
    (said,) = judge([Record(prompt="p", responses=answers)])
    assert [j.value for j in said] == [1.0, 0.0]


# -- judges ------------------------------------------------------------------------------------------------------------


def test_tests_of_a_file(tmp_path):
    rows = [
        {"prompt": "Double it.", "tests": ["assert f(1) == 2", "assert f(3) == 6"]},
        {"text": "Add them.", "test_list": ["assert add(1, 2) == 3"], "test_setup_code": "import math"},
        {"prompt": "def inc(x):\n", "test": "def check(g):\n    assert g(1) == 2", "entry_point": "inc"},
    ]
    path = tmp_path / "tests.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    judge = find(f"tests:{path}")
    fenced = "Sure.\n```python\ndef f(x):\n    return x * 2\n```\nDone."
    records = [
        Record(prompt="Double it.", responses=[{"text": t} for t in (fenced, "def f(x): return 2", "def f(x", "no")]),
        Record(prompt="Add them.", responses=[{"text": "def add(a, b): return math.fsum((a, b))"}]),
        Record(prompt="def inc(x):\n", responses=[{"text": "    return x + 1"}, {"text": "def inc(x): return x + 1"}]),
        Record(prompt="What else?", responses=[{"text": "1"}]),
    ]
    said = judge(records)
    assert [[j.value for j in s] for s in said] == [[1.0, 0.5, 0.0, 0.0], [1.0], [1.0, 1.0], []]
    assert said[3].why == f"{path} has no tests of this prompt"  # type: ignore[attr-defined]
    assert said[0][0].scale == (0, 1)
    path.write_text(json.dumps(rows[0]) + "\n" + json.dumps(rows[0]) + "\n")
    with pytest.raises(RecordError, match="line 2, field 'prompt': this prompt has tests already"):
        find(f"tests:{path}")
    path.write_text(json.dumps({"prompt": "p", "tests": []}))
    with pytest.raises(RecordError, match="line 1, field 'tests': there is no test in it"):
        find(f"tests:{path}")
    with pytest.raises(ConfigError, match="memory of 64 MiB or more"):
        find("dstc:memory=1")


def test_dstc_by_hand():
    """m = [[1, 1, 0], [1, 1, 1], [0, 0, 1]]: own tests are passed by all; everybody's by the second one."""
    answers = [
        "def f(x): return abs(x)\nassert f(2) == 2",
        "def f(x): return abs(x) if x != 9 else 0\ndef test_negative():\n    assert f(-2) == 2",
        "def f(x): return 0\nassert f(9) == 0",
        "This is no program.",
        "def f(x): return 1\nassert f(2) == 2",  # fails its own: m = 0
    ]
    (said,) = find("dstc")([Record(prompt="p", responses=[{"text": t} for t in answers])])
    # tests of 1, 2, 3 and 5 stand: the first passes 1, 2, 5; the second all; the third its own alone
    assert [j.value for j in said] == pytest.approx([3 / 4, 1, 1 / 4, 0, 0])


def test_this_process_imports_none_of_it():
    """The file that confines is started as a script, so it may import the standard library alone."""
    made = subprocess.run([sys.executable, "-I", "-S", confined.__file__, "{}"], capture_output=True, text=True)
    assert made.returncode == confined.REFUSED
    assert "Error" not in made.stdout
