"""One file that is not Python: which handler reads it, and the result."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Mapping

from accel.convert.finding import FileResult, Finding
from accel.convert.options import Options
from accel.convert.sweep import config, docker, native, notebook, plain, requirements, shell
from accel.convert.sweep.languages import language_of
from accel.convert.sweep.text import Text, result_of


def _yaml(text: Text) -> Iterator[Finding]:
    return config.find(text, comment="#")


def _json(text: Text) -> Iterator[Finding]:
    return config.find(text, comment=None)


_HANDLERS: Mapping[str, Callable[[Text], Iterator[Finding]]] = {
    "shell": shell.find,
    "script": plain.find_script,
    "docker": docker.find,
    "requirements": requirements.find,
    "yaml": _yaml,
    "config": _yaml,
    "json": _json,
    "cuda": native.find,
    "c++": native.find,
    "cython": native.find,
    "build": plain.find_build,
    "prose": plain.find_prose,
}


def sweep(data: bytes, path: str, options: Options) -> FileResult:
    """Look through one file that is not Python, and convert what is certain.

    Args:
        data: Its bytes, in any encoding that has ASCII in it.
        path: Its name in the result, with forward slashes; it says what the file is.
        options: What to do.

    Returns:
        The result; a file that is not text has an `error` and is kept as it is.

    Raises:
        ValueError: The name is of no kind that is looked into; see `language_of`.
    """
    language = language_of(path)
    if language is None:
        raise ValueError(f"{path} is not a kind of file that is looked into: ask language_of first")
    text = Text(data, path, options)
    problem = _why_not_text(data)
    if problem:
        return FileResult(path, language, data, data, error=problem, lines=text.count)
    if language == "notebook":
        return notebook.sweep(text)
    if options.source != "cuda" and language != "prose":
        return result_of(text, language, plain.find_foreign(text))
    return result_of(text, language, _HANDLERS[language](text))


def _why_not_text(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "it is in UTF-16: store it in UTF-8 to have it looked into"
    return "it holds NUL bytes, so it is not text" if b"\0" in data else ""
