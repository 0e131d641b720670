"""Commands under a memory limit: what the kernel counted, who gets killed, and nothing left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTE = 1 << 20
READ = "import os,sys\nwith open(sys.argv[1],'rb',buffering=0) as f:\n while f.read(1<<20): pass\nprint('read')"
READ_IN_CHILD = f"import subprocess,sys\nsubprocess.run([sys.executable,'-c',{READ!r},sys.argv[1]],check=True)"
HOG = "import sys\nprint('begun',flush=True)\nb=bytearray(200<<20)\nb[::4096]=b'1'*(len(b)//4096)"


@pytest.fixture(scope="module")
def cgroup(bench_script):
    module = bench_script("cgroup")
    try:
        module.MemoryGroup(1 << 26).close()
    except module.GroupError as error:
        pytest.skip(str(error))
    return module


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cgroup") / "file"
    path.write_bytes(os.urandom(64 * MEGABYTE))
    return path


@pytest.mark.parametrize("code", [READ, READ_IN_CHILD])
def test_reads_are_counted_and_the_page_cache_is_limited(cgroup, file, code):
    limit = 40 * MEGABYTE
    found = cgroup.run_limited([sys.executable, "-c", code, str(file)], limit, cold=[file])
    assert (found.returncode, found.stdout, found.killed) == (0, "read\n", False)
    assert 64 * MEGABYTE <= found.read_bytes < 80 * MEGABYTE
    assert 0.5 * limit < found.peak_bytes <= limit
    assert 0 < found.seconds < 60


def test_what_needs_too_much_is_killed(cgroup):
    found = cgroup.run_limited([sys.executable, "-c", HOG], 60 * MEGABYTE)
    assert (found.returncode, found.stdout, found.killed) == (-9, "begun\n", True)


def test_messages_environment_and_exit_code(cgroup):
    code = "import os,sys\nprint('x'*5000+os.environ['WORD'],file=sys.stderr)\nsys.exit(3)"
    found = cgroup.run_limited([sys.executable, "-c", code], 100 * MEGABYTE, environment={"WORD": "the end"})
    assert found.returncode == 3
    assert found.message.endswith("xthe end")
    assert len(found.message) < 2100


def test_time_runs_out(cgroup):
    with pytest.raises(TimeoutError, match=r"was killed after 0.2 s"):
        cgroup.run_limited([sys.executable, "-c", "import time\ntime.sleep(60)"], 100 * MEGABYTE, timeout_seconds=0.2)


def test_no_such_program(cgroup):
    with pytest.raises(FileNotFoundError, match="nosuchprogram: there is no such program"):
        cgroup.run_limited(["nosuchprogram"], 100 * MEGABYTE)


def test_groups_are_removed(cgroup, tmp_path):
    with cgroup.MemoryGroup(100 * MEGABYTE) as group:
        program = group.wrapper(tmp_path, sys.executable)
        done = subprocess.run([program, "-c", "print(1, 'a b')"], capture_output=True, text=True, check=True)
        assert done.stdout == "1 a b\n"
        assert group.folder.is_dir()
        assert group.peak_bytes > 0
    assert not group.folder.exists()


def test_the_command_line(cgroup):
    script = Path(cgroup.__file__)
    command = [sys.executable, script, "--limit-bytes", str(100 * MEGABYTE), "--", sys.executable, "-c", "print(7)"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["stdout"] == "7\n"
    failed = subprocess.run([*command[:-3], "nosuchprogram"], capture_output=True, text=True, check=False)
    assert failed.stderr == "error: nosuchprogram: there is no such program\n"


V1 = ("4:memory:/outer/inner\n0::/\n", "cgroup {root}/memory cgroup rw,memory 0 0\n", "memory/outer", 1)
V2 = ("0::/outer/inner\n", "cgroup2 {root}/unified cgroup2 rw 0 0\n", "unified/outer", 2)


@pytest.mark.parametrize(("own", "mounts", "parent", "version"), [V1, V2], ids=["v1", "v2"])
def test_where_a_group_is_made(bench_script, tmp_path, monkeypatch, own, mounts, parent, version):
    cgroup = bench_script("cgroup")
    (tmp_path / parent).mkdir(parents=True)
    (tmp_path / parent / "cgroup.subtree_control").write_text("memory io\n")
    if version == 2:
        (tmp_path / parent / "inner").mkdir()
        (tmp_path / parent / "inner" / "cgroup.subtree_control").write_text("\n")
    texts = {"/proc/self/cgroup": own, "/proc/mounts": mounts.format(root=tmp_path)}
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **_: texts.get(str(path)) or real(path))
    assert cgroup._parent() == (tmp_path / parent, version)
    texts["/proc/mounts"] = "proc /proc proc rw 0 0\n"
    with pytest.raises(cgroup.GroupError, match="no memory controller is mounted"):
        cgroup._parent()
