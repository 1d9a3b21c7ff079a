"""``thumbnet review``: from a run or a folder to a file of labels."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli_helpers import forget_modules
from helpers import coloured, write_picture
from thumbnet.cli import build_parser, main, parse
from thumbnet.cli import review as command
from thumbnet.cli.options import data_settings
from thumbnet.data.corrections import Correction, read_corrections, write_corrections
from thumbnet.reviewing.session import lock_labels
from thumbnet.runs.folder import Run
from thumbnet.sources.load import load_data

httpx = pytest.importorskip("httpx")
testclient = pytest.importorskip("starlette.testclient")
Tokens = pytest.importorskip("thumbnet.reviewing.service").Tokens

Visit = Callable[[Any, Any], None]
QUICK = ["--folds", "0", "--port", "0", "--no-browser"]


@pytest.fixture
def run(trained: tuple[Path, str, str], tmp_path: Path) -> Path:
    """A copy of a run, because a review writes into it."""
    return Path(shutil.copytree(trained[0], tmp_path / "run"))


@pytest.fixture
def tokens(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What opens the page of every review."""
    tokens = Tokens()
    monkeypatch.setattr("thumbnet.reviewing.service.Tokens", lambda: tokens)
    return tokens


@pytest.fixture
def visiting(tokens: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[Visit], None]:
    """Replaces the server: the function that is set visits the page with a client."""

    def set_visit(visit: Visit) -> None:
        def serve(app: Any, listener: socket.socket, greet: Callable[[str], None]) -> None:
            greet("http://127.0.0.1:1")
            with testclient.TestClient(app, base_url="http://localhost") as client:
                assert client.get(f"/?token={tokens.printed}").status_code == 200

                def decide(picture: int, decision: str, label: int | None = None) -> None:
                    sent = {"picture": picture, "decision": decision, "label": label}
                    answer = client.post("/decide", json=sent)
                    assert answer.status_code == 200, answer.text

                visit(client, decide)

        monkeypatch.setattr("thumbnet.serving.server.serve", serve)

    return set_visit


def test_a_review_writes_labels_that_train_takes_and_the_next_one_continues(
    run: Path,
    folder: Path,
    tokens: Any,
    visiting: Callable[[Visit], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    names: list[str] = []

    def first(client: Any, decide: Any) -> None:
        state = client.get("/state").json()
        assert (state["title"], state["shown"], len(state["classes"])) == ("Review of run", 10, 3)
        assert {one["split"] for one in state["pictures"]} <= {"train", "test"}
        assert client.get("/picture/0").headers["Content-Type"] == "image/png"
        names.extend(one["name"] for one in state["pictures"])
        decide(0, "relabel", state["classes"].index("blue"))
        decide(1, "drop")

    visiting(first)
    assert main(["review", str(run), "--first", "10", *QUICK]) == 0
    out = capsys.readouterr().out
    assert f"review at http://127.0.0.1:1/?token={tokens.printed}   0 of 10 decided" in out
    assert f"2 of 10 decided, written to {run / 'labels.csv'}" in out
    assert re.search(rf"train with these labels: .* train {folder} --labels {run / 'labels.csv'}\n", out)
    written = read_corrections(run / "labels.csv")
    assert [(one.name, one.label) for one in written] == [(names[0], "blue"), (names[1], "")]
    corrected = load_data(str(folder), labels=run / "labels.csv")
    assert sum(map(len, corrected.splits.values())) == 119

    def second(client: Any, decide: Any) -> None:
        state = client.get("/state").json()
        assert [one["name"] for one in state["pictures"]] == names  # in the same order
        assert (state["done"], state["undo"]) == (2, True)

    visiting(second)
    assert main(["review", str(run), "--first", "10", *QUICK]) == 0


def test_the_next_training_reads_the_data_as_the_run_did(run: Path) -> None:
    options = build_parser().parse_args(["review", str(run)])
    recipe = Run.open(run).recipe
    changed = recipe.override(["data.group_by='-([a-z])'", "data.classes_from='2'", "data.on_bad_image=skip"])
    (run / "recipe.toml").write_text(changed.to_toml())
    words = shlex.split(command._Suspects(options).next_command())
    again = build_parser().parse_args(words[words.index("train") :])
    assert data_settings(again, recipe.data) == changed.data
    unlabelled = build_parser().parse_args(["review", str(run.parent), "--run", str(run)])
    words = shlex.split(command._Unlabelled(unlabelled).next_command())
    assert (
        data_settings(build_parser().parse_args(words[words.index("train") :]), recipe.data) == changed.data
    )


def test_a_review_without_a_decision_leaves_no_file(
    run: Path, visiting: Callable[[Visit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    visiting(lambda client, decide: None)
    assert main(["review", str(run), *QUICK]) == 0
    assert "nothing is decided yet" in capsys.readouterr().out
    assert not (run / "labels.csv").exists()


def test_new_pictures_get_labels_that_train_adds(
    trained: tuple[Path, str, str],
    folder: Path,
    tmp_path: Path,
    visiting: Callable[[Visit], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(5):
        write_picture(tmp_path / "new" / f"{number}.png", coloured(number % 3, 500 + number))
    (tmp_path / "new" / "broken.png").write_bytes(b"no picture")
    names: list[str] = []

    def visit(client: Any, decide: Any) -> None:
        state = client.get("/state").json()
        assert (state["title"], state["shown"]) == ("Labels for new", 5)
        names.extend(one["name"] for one in state["pictures"])
        decide(0, "relabel", 2)
        decide(1, "drop")

    visiting(visit)
    words = ["review", str(tmp_path / "new"), "--run", str(trained[0]), "--port", "0", "--no-browser"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "1 picture(s) cannot be read and are skipped, such as" in said.err
    labels = tmp_path / "new-labels.csv"
    assert f"train {folder} --labels {labels}" in said.out
    assert sorted(names) == [f"new/{number}.png" for number in range(5)]
    assert [(one.name, one.was, one.split) for one in read_corrections(labels)] == [
        (names[0], "", "train"),
        (names[1], "", "train"),
    ]
    assert len(load_data(str(folder), labels=labels).splits["train"]) == 61


def test_labels_for_new_pictures_include_the_corrections_of_the_run(
    run: Path, folder: Path, tmp_path: Path, visiting: Callable[[Visit], None]
) -> None:
    pictures = [write_picture(tmp_path / "new" / f"{n}.png", coloured(n, 500 + n)) for n in range(3)]
    wrong = "train/red/0.png"
    earlier = [
        Correction(wrong, "train", "red", "blue", "relabel"),
        Correction(str(pictures[0]), "train", "", "red", "relabel"),
    ]
    write_corrections(run / "corrections.csv", earlier)

    def visit(client: Any, decide: Any) -> None:
        state = client.get("/state").json()
        decided = {one["name"]: one["decided"] for one in state["pictures"]}
        assert decided["new/0.png"] == {"decision": "relabel", "label": "red"}
        assert (state["done"], state["undo"]) == (1, False)
        decide([one["name"] for one in state["pictures"]].index("new/2.png"), "relabel", 2)

    visiting(visit)
    assert main(["review", str(tmp_path / "new"), "--run", str(run), "--port", "0", "--no-browser"]) == 0
    labels = tmp_path / "new-labels.csv"
    assert [one.name for one in read_corrections(labels)] == [wrong, "new/0.png", "new/2.png"]
    corrected = load_data(str(folder), labels=labels).corrected
    assert corrected is not None
    assert (corrected.relabelled, corrected.added) == (1, 2)


def test_pictures_beyond_the_first_are_counted_and_the_named_command_shows_them(
    run: Path, tmp_path: Path, visiting: Callable[[Visit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(5):
        write_picture(tmp_path / "new" / f"{number}.png", coloured(number % 3, 500 + number))
    learned = tmp_path.resolve() / "new" / "0.png"
    write_corrections(run / "corrections.csv", [Correction(str(learned), "train", "", "red", "relabel")])
    seen: list[tuple[list[str], int, int]] = []

    def visit(client: Any, decide: Any) -> None:
        state = client.get("/state").json()
        seen.append(([one["name"] for one in state["pictures"]], state["done"], state["remaining"]))
        decide(0, "relabel", 0)
        decide(1, "drop")

    visiting(visit)
    words = ["review", str(tmp_path / "new"), "--first", "2", "--run", str(run), "--port", "0"]
    assert main([*words, "--no-browser"]) == 0
    said = capsys.readouterr().out
    more = re.findall("not shown: 2 more without a label. To review them too: (.*)\n", said)
    assert len(more) == 2  # in the greeting and at the end
    assert len(set(more)) == 1
    again = shlex.split(more[0])
    again = again[again.index("review") :]
    assert (again[1:3], again.count("--first")) == (["--first", "4"], 1)
    assert main([*words, "--no-browser"]) == 0  # the same pictures, and what was decided about them
    assert main(again) == 0
    first, second, third = seen
    assert "new/0.png" not in first[0]
    assert first[1:] == (0, 2)
    assert second == (first[0], 2, 2)
    assert (third[0][:2], len(third[0]), third[1], third[2]) == (first[0], 4, 2, 0)
    assert "new/0.png" not in third[0]


def test_suspects_beyond_the_first_are_counted(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    visiting: Callable[[Visit], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    from thumbnet.reviewing import suspects

    monkeypatch.setattr(suspects.Suspect, "is_doubtful", property(lambda one: one.name.endswith("/3.png")))
    visiting(lambda client, decide: None)
    assert main(["review", str(run), "--first=1", *QUICK]) == 0
    said = capsys.readouterr().out
    found = re.findall("not shown: [56] more whose label may be wrong. To review them too: (.*)\n", said)
    words = shlex.split(found[0])
    assert "--first=1" not in words
    assert main(words[words.index("review") :]) == 0
    assert "not shown" not in capsys.readouterr().out


def test_the_command_that_shows_more_keeps_all_other_words(run: Path) -> None:
    task = command._Suspects(parse(["review", "--first", "3", str(run), "--first=4", "--no-browser"]))
    words = shlex.split(task.show_more(9))
    again = parse(words[words.index("review") :])
    assert (again.first, again.place, again.no_browser) == (9, str(run), True)


def test_what_cannot_be_reviewed_is_explained_before_anything_is_scored(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def scored(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("thumbnet.reviewing.scores.score_pictures", scored)
    monkeypatch.setattr("thumbnet.reviewing.unlabelled.score_unlabelled", scored)
    (tmp_path / "pictures").mkdir()
    unfinished = Path(shutil.copytree(run, tmp_path / "unfinished"))
    (unfinished / "summary.json").unlink()
    gone = Path(shutil.copytree(run, tmp_path / "gone"))
    settings = gone / "run.json"
    settings.write_text(re.sub(r'"data": ".*?"', '"data": "/nowhere/pictures"', settings.read_text()))
    with socket.create_server(("127.0.0.1", 0)) as taken, lock_labels(tmp_path / "locked.csv"):
        for words, message in (
            (["nowhere"], "there is no run nowhere"),
            (["pictures"], "To label the pictures in this folder with the help of a run: "),
            (["unfinished"], "is not complete. Resume it: "),
            (["gone"], "If the run's data have moved, name their new place: "),
            (["run", "--port", str(taken.getsockname()[1])], ": Address already in use"),
            (["run", "--out", "pictures"], "cannot write pictures: it is a folder. Name a file in it"),
            (["run", "--out", "no/folder.csv"], "cannot write no/folder.csv: there is no folder"),
            (["run", "--out", "locked.csv"], "another review is writing locked.csv"),
            (["run", "--first", "0"], "--first 0: expected 1 or more"),
            (["run", "--folds", "1"], "--folds 1: expected 2 or more, or 0 to train no network"),
            (["run", "--run", "run"], "run is a run: with --run, name a folder of unlabelled pictures"),
            (
                ["pictures", "--run", "run", "--folds", "2"],
                "--folds and --data are for reviewing a run's own data",
            ),
            (["pictures", "--run", "run"], "there are no pictures in the folder"),
            (["elsewhere", "--run", "run"], "there is no folder"),
        ):
            monkeypatch.chdir(tmp_path)
            port = [] if "--port" in words else ["--port", "0"]
            assert main(["review", *words, *port, "--no-browser"]) == 2, words
            error = capsys.readouterr().err
            assert message in error, words
            assert "Traceback" not in error


def test_a_run_on_data_in_memory_needs_data(
    tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "labels.csv")
    assert main(["review", str(tiny_run.path), "--out", out, *QUICK]) == 2
    assert "was trained on data in memory" in capsys.readouterr().err


def test_without_the_extra_serve_it_says_how_to_install_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("thumbnet.serving.server", "thumbnet.serving.protection", "thumbnet.reviewing.service"):
        forget_modules(monkeypatch, module)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["review", str(run), *QUICK]) == 2
    assert "thumbnet review needs the extra 'serve': " in capsys.readouterr().err


def test_a_browser_is_opened_only_where_it_can_open_a_window(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from review_helpers import made_review

    opened: list[str] = []
    tokens = Tokens()
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr("threading.Thread.start", lambda thread: thread.run())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    for display, no_browser in (("", False), (":0", True), (":0", False)):
        monkeypatch.setenv("DISPLAY", display)
        command._greet("http://127.0.0.1:1", tokens, made_review(tmp_path), [], no_browser)
    assert opened == [f"http://127.0.0.1:1/?token={tokens.once}"]


def test_a_review_that_is_killed_loses_nothing(run: Path) -> None:
    words = [sys.executable, "-m", "thumbnet", "review", str(run), "--first", "6", *QUICK]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        page = httpx.URL(re.findall(r"http://\S+", process.stdout.readline())[0])
        with httpx.Client(base_url=page.join("/")) as client:
            assert client.get("/state").status_code == 403
            assert client.get(page).status_code == 200
            for position in range(3):
                decision = {"picture": position, "decision": "drop"}
                assert client.post("/decide", json=decision).json()["done"] == position + 1
    finally:
        process.kill()
        process.communicate()
    assert len(read_corrections(run / "labels.csv")) == 3
    with lock_labels(run / "labels.csv"):  # the lock disappeared with its process
        pass


def test_ctrl_c_during_the_scoring_says_how_to_continue(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("thumbnet.reviewing.scores.score_pictures", stopped)
    assert main(["review", str(run), *QUICK]) == 130
    assert f"review {run} --folds 0 --port 0 --no-browser\n" in capsys.readouterr().err
    with lock_labels(run / "labels.csv"):
        pass
