from __future__ import annotations

from pathlib import Path

from thumbnet.training.tracker import remember, remembered


def test_a_remembered_name_is_believed_only_if_it_is_one(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.json"
    assert remembered(path) is None
    remember(path, "abc-123")
    assert remembered(path) == "abc-123"
    for content in ("", "[]", "{", '{"id": 3}', '{"id": "../x"}', '{"id": ""}', "[" * 100_000):
        path.write_text(content)
        assert remembered(path) is None
