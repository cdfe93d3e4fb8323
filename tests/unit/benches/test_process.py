import os
import subprocess
import sys

from benches.process import cpu_seconds, family, memory

SPEND = "import sys, time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\nsys.stdin.read()"
NEST = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SPEND!r}])"


def test_processor_time_and_memory_include_the_descendants():
    with subprocess.Popen([sys.executable, "-c", NEST], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        members = list(family(parent.pid))
        assert len(members) == 2
        assert cpu_seconds([parent.pid]) >= cpu_seconds([members[1]]) >= 0.19
        assert memory([parent.pid]).pss > memory([members[1]]).pss > 0
        parent.stdin.close()


def test_resident_memory_is_at_least_the_proportional_share():
    mine = memory([os.getpid()])
    assert mine.rss >= mine.pss > 1 << 20
