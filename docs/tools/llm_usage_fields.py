"""Write the table of the fields that `llm_usage` reads into its README, from the readers themselves.

Run `python docs/tools/llm_usage_fields.py` after a change of `src/llm_usage/providers/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from llm_usage.providers import BY_NAME
from llm_usage.providers.langchain import LANGCHAIN
from llm_usage.providers.pydantic_ai import PYDANTIC_AI
from llm_usage.providers.xai import XAI

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llm_usage.providers.reader_interface import ProviderApi, UsageShape

README = Path(__file__).parents[2] / "src/llm_usage/README.md"
BEGIN = "<!-- fields: python docs/tools/llm_usage_fields.py writes this table -->\n"
END = "<!-- end of fields -->"
MODALITIES = ("text", "audio", "image", "video")


def apis() -> list[ProviderApi]:
    """Every API that is read, of providers first and of frameworks' objects then."""
    named = [BY_NAME[word][0] for word in sorted(BY_NAME) if word != "auto"]
    return [*named, XAI, LANGCHAIN, PYDANTIC_AI]


def table() -> str:
    """A row for each figure of each shape."""
    rows = ["| API | shape | figure | fields |", "|---|---|---|---|"]
    for api in apis():
        for shape in api.shapes:
            found = dict(_figures(shape.fields))
            same = [figure for figure, fields in found.items() if fields == [figure]]
            cells = [
                (_code([figure]), _code(fields)) for figure, fields in found.items() if figure not in same
            ]
            cells += [(_code(same), "by the same name")] * bool(same)
            for nth, (figures, fields) in enumerate(cells):
                place = f"`{api.name}` | {_described(shape)}" if nth == 0 else " | "
                rows.append(f"| {place} | {figures} | {fields} |")
    return "\n".join([*rows, ""])


def _code(words: Sequence[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _described(shape: UsageShape) -> str:
    places = ", ".join(f"`{place}`" for place in shape.place.split(", ") if place)
    return f"{shape.name}: {places}" if places else shape.name


def _figures(fields: Mapping[str, Sequence[Sequence[str]]]) -> Iterator[tuple[str, list[str]]]:
    """Each figure with its fields; parts that differ by their modality alone are one row."""
    found = {figure: [".".join(path) for path in paths] for figure, paths in fields.items()}
    for figure, paths in found.items():
        modality = next((word for word in MODALITIES if word in figure.split("_")), None)
        if modality is None:
            yield figure, paths
            continue
        alike = (figure.replace(modality, "*"), [path.replace(modality, "*") for path in paths])
        others = [alike[0].replace("*", word) for word in MODALITIES]
        is_one_of_all = all(
            [path.replace(word, "*") for path in found.get(other, [])] == alike[1]
            for word, other in zip(MODALITIES, others, strict=True)
        )
        if not is_one_of_all:
            yield figure, paths
        elif modality == MODALITIES[0]:
            yield alike


def with_table(readme: str) -> str:
    """The README with the table of today's readers."""
    head, _, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"README.md has no lines {BEGIN.strip()!r} and {END!r}")
    return f"{head}{BEGIN}\n{table()}\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
