from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cli_helpers import run_cli


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_works_in_the_shell(tmp_path: Path, shell: str) -> None:
    pytest.importorskip("shtab")
    status, script, _ = run_cli("completion", shell)
    assert status == 0
    (tmp_path / "script").write_text(script)
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell}")
    assert subprocess.run([shell, "-n", str(tmp_path / "script")], check=False).returncode == 0
    if shell == "bash":
        ask = f'source {tmp_path}/script; COMP_WORDS=(thumbnet export --f); COMP_CWORD=2; _shtab_thumbnet thumbnet --f export; echo "${{COMPREPLY[@]}}"'
        done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["--format"]
