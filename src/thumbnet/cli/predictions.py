"""Print the predictions of ``predict``: a class, or several labels, per picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from thumbnet.classifiers.words import in_words
from thumbnet.cli.console import json_line, say, table, write_row
from thumbnet.data.listings import safe_name, safe_text
from thumbnet.errors import printable

if TYPE_CHECKING:
    from thumbnet.classifiers.base import Prediction

    # Names of pictures with their predictions; a text says why a picture could not be read.
    Results: TypeAlias = list[tuple[str, Prediction | str]]
    Printer: TypeAlias = Callable[[Results], None]

Shape: TypeAlias = Literal["table", "json", "csv"]


def prediction_printer(shape: Shape, top: int, tells_unlike: bool = False) -> Printer:
    """Return a function that prints pictures' predictions, or why a picture could not be read.

    Args:
        shape: an aligned table with the answer in words, one JSON object per line, or comma-separated values
            (prints the header now).
        top: classes to print per picture.
        tells_unlike: whether the predictions tell pictures that are unlike the training pictures.
    """

    def pairs(result: Prediction) -> list[tuple[str, float]]:
        return list(zip(result.labels[:top], result.probabilities[:top], strict=True))

    def fields(result: Prediction) -> dict[str, Any]:
        classes = [{"class": label, "probability": round(p, 6)} for label, p in pairs(result)]
        found: dict[str, Any] = {"predictions": classes}
        if result.unlike is not None and result.unlikeness is not None:
            found |= {"unlike": result.unlike, "unlikeness": round(result.unlikeness, 6)}
        return found

    def cells(result: Prediction) -> list[str]:
        words = in_words(result.labels, result.probabilities, unlike=bool(result.unlike))
        classes = [cell for label, p in pairs(result) for cell in (printable(label), f"{100 * p:.1f} %")]
        return [printable(words), *classes]

    def row(result: Prediction) -> list[str]:
        classes = [cell for label, p in pairs(result) for cell in (safe_text(label), f"{p:.6f}")]
        told = [str(result.unlike).lower(), f"{result.unlikeness:.6g}"] if tells_unlike else []
        return [*classes, *told]

    heads = ["answer", *["class", "probability"] * top]
    columns = [column for k in range(1, top + 1) for column in (f"class_{k}", f"probability_{k}")]
    columns += ["unlike", "unlikeness"] if tells_unlike else []
    return _printer(shape, fields, heads, cells, columns, row)


def label_printer(shape: Shape) -> Printer:
    """Return a function that prints pictures' labels, or why a picture could not be read.

    Args:
        shape: an aligned table, one JSON object per line, or comma-separated values (prints the header now).
    """

    def pairs(result: Prediction) -> list[tuple[str, float]]:
        probability = dict(zip(result.labels, result.probabilities, strict=True))
        return [(label, probability[label]) for label in result.found or ()]

    def fields(result: Prediction) -> dict[str, Any]:
        return {"labels": [{"label": label, "probability": round(p, 6)} for label, p in pairs(result)]}

    def cells(result: Prediction) -> list[str]:
        return [", ".join(f"{printable(label)} {100 * p:.1f} %" for label, p in pairs(result)) or "-"]

    def row(result: Prediction) -> list[str]:
        labels = safe_text(";".join(label for label, _ in pairs(result)))
        return [labels, ";".join(f"{p:.6f}" for _, p in pairs(result))]

    return _printer(shape, fields, ["labels"], cells, ["labels", "probabilities"], row)


def _printer(
    shape: Shape,
    fields: Callable[[Prediction], dict[str, Any]],
    heads: Sequence[str],
    cells: Callable[[Prediction], list[str]],
    columns: Sequence[str],
    row: Callable[[Prediction], list[str]],
) -> Printer:
    """Return a function that prints results, each after the picture's name.

    Args:
        shape: see :func:`prediction_printer`.
        fields: what the JSON object of a prediction contains.
        heads, cells: the heads of the table, and a prediction's cells.
        columns, row: the names of the comma-separated values, and those of a prediction.
    """

    def as_json(results: Results) -> None:
        for name, result in results:
            found: dict[str, Any] = {"error": result} if isinstance(result, str) else fields(result)
            say(json_line({"path": name, **found}))

    def as_table(results: Results) -> None:
        rows = [
            [printable(name), *([f"cannot be read: {result}"] if isinstance(result, str) else cells(result))]
            for name, result in results
        ]
        if rows:
            say(table(["picture", *heads], rows, left=2))

    def as_csv(results: Results) -> None:
        for name, result in results:
            if isinstance(result, str):
                write_row(safe_name(name), *[""] * len(columns), safe_text(result))
            else:
                write_row(safe_name(name), *row(result), "")

    if shape == "csv":
        write_row("path", *columns, "error")
    return {"json": as_json, "table": as_table, "csv": as_csv}[shape]
