"""The seam to mlx-lm: a model directory becomes a model whose weights are mapped, and a prompt becomes text.

mlx-lm's `load_model` builds the network and reads its files by `mx.load`; for the time of that call, and only
that name, our own loader stands in its place. mlx-lm has no types: what is used of it is declared here.

This file imports MLX and mlx-lm; the daemon never imports it.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import mlx.core
import mlx_lm
import mlx_lm.sample_utils
import mlx_lm.utils

from tbshare.errors import InputRefused, ModelRefused
from tbshare.inference import weights
from tbshare.inference.arrays import Array
from tbshare.inference.extension import Extension
from tbshare.inference.weights import Load, Loaded

mx: Any = mlx.core
utils: Any = mlx_lm.utils
sampling: Any = mlx_lm.sample_utils
library: Any = mlx_lm

# What mlx-lm and transformers raise for a directory they cannot use.
LIBRARY_ERRORS = (ValueError, LookupError, TypeError, AttributeError, OSError, RuntimeError, ImportError)


class Tokenizer(Protocol):
    """What is used of mlx-lm's tokenizer."""

    has_chat_template: bool

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text."""
        ...

    def apply_chat_template(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> list[int]:
        """Return the tokens of a conversation that the model is to continue."""
        ...


@dataclass(frozen=True, slots=True)
class Network:
    """A model that can compute, and where its parameters' bytes are.

    `mapped_bytes` are pages of the files; `copied_bytes` belong to parameters that lie misaligned in the files or
    that mlx-lm makes from what is in them; `loaded_bytes` were read. `seconds` is what it took.
    """

    model: Any  # a module of mlx-lm, which has no types
    context_tokens: int | None
    mapped_bytes: int
    copied_bytes: int
    copied_tensors: int
    loaded_bytes: int
    note: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the answer, and how far it has come."""

    text: str
    prompt_tokens: int
    tokens: int
    tokens_per_second: float


def load_network(directory: Path, extension: Extension) -> Network:
    """Return the model in a directory that `check` found whole; ModelRefused if mlx-lm cannot make it from it.

    Every parameter comes from the files: one that is missing, left over or of another shape is refused.
    """
    started = time.perf_counter()
    files: list[Loaded] = []
    original: Load = mx.load

    def load(path: str) -> dict[str, Array]:
        if not str(path).endswith(".safetensors"):
            return original(path)
        file = weights.load(Path(path), extension.module, extension.sentence, read=original)
        files.append(file)
        return file.tensors

    try:
        with _in_place_of_load(load):
            model, config = utils.load_model(directory, lazy=True, strict=True, trust_remote_code=False)
    except LIBRARY_ERRORS as error:
        raise ModelRefused(f"mlx-lm cannot load this model: {_sentence(error)}") from error
    return _accounted(model, _context_tokens(config), files, started)


@contextmanager
def _in_place_of_load(load: Load) -> Generator[None]:
    original = mx.load
    mx.load = load
    try:
        yield
    finally:
        mx.load = original


def load_tokenizer(directory: Path) -> Tokenizer:
    """Return the tokenizer in a model directory; ModelRefused if it has none, or needs code of its own to run."""
    try:
        return cast(Tokenizer, utils.load_tokenizer(directory, {"trust_remote_code": False}))
    except LIBRARY_ERRORS as error:
        raise ModelRefused(f"the model's tokenizer cannot be loaded: {_sentence(error)}") from error


def _accounted(model: Any, context: int | None, files: list[Loaded], started: float) -> Network:
    """Count where the parameters' bytes are; what mlx-lm made from the files' tensors is computed here, once."""
    copied_ids = {id(file.tensors[name]) for file in files for name in file.copied}
    mapped_ids = {id(array) for file in files for array in file.tensors.values()} - copied_ids
    loaded_bytes = sum(file.loaded_bytes for file in files)
    parameters = _leaves(model.parameters())
    notes = sorted({file.note for file in files if file.note})
    mapped: list[Array] = []
    copies: list[Array] = []
    if loaded_bytes:
        mx.eval(parameters)
    else:
        made = [array for array in parameters if id(array) not in mapped_ids | copied_ids]
        mx.eval(made)
        if made:
            notes.append(f"{len(made)} parameters are made by mlx-lm from those in the files, and are copies")
        copies = made + [array for array in parameters if id(array) in copied_ids]
        mapped = [array for array in parameters if id(array) in mapped_ids]
    return Network(
        model=model,
        context_tokens=context,
        mapped_bytes=sum(array.nbytes for array in mapped),
        copied_bytes=sum(array.nbytes for array in copies),
        copied_tensors=len(copies),
        loaded_bytes=loaded_bytes,
        note="; ".join(notes),
        seconds=time.perf_counter() - started,
    )


def _leaves(tree: Any) -> list[Array]:
    """Return the arrays of a tree of dicts and lists."""
    if isinstance(tree, dict):
        return [array for value in cast(dict[str, Any], tree).values() for array in _leaves(value)]
    if isinstance(tree, list | tuple):
        return [array for value in cast(Sequence[Any], tree) for array in _leaves(value)]
    return [tree] if isinstance(tree, mx.array) else []


def _context_tokens(config: dict[str, Any]) -> int | None:
    """Return how many tokens the model takes, if its configuration says so."""
    text: Any = config.get("text_config") or {}
    length: Any = config.get("max_position_embeddings") or text.get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


def prompt_tokens(
    tokenizer: Tokenizer, prompt: str, *, system: str, chat: bool, context_tokens: int | None
) -> list[int]:
    """Return the tokens of a prompt, in the model's chat form if it has one and `chat` is wanted.

    InputRefused for an empty prompt, one that the model's template does not take, and one too long for the model.
    """
    if chat and tokenizer.has_chat_template:
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        try:
            tokens = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True))
        except Exception as error:  # whatever the model's own template raises
            raise InputRefused(f"the model's chat template refuses the prompt: {_sentence(error)}") from error
    else:
        tokens = list(tokenizer.encode(f"{system}\n\n{prompt}" if system else prompt))
    if not tokens:
        raise InputRefused("the prompt is empty")
    if context_tokens is not None and len(tokens) >= context_tokens:
        raise InputRefused(f"the prompt has {len(tokens)} tokens, and the model takes {context_tokens}")
    return tokens


def generate(
    network: Network,
    tokenizer: Tokenizer,
    tokens: list[int],
    *,
    max_tokens: int,
    temperature: float,
    seed: int | None,
) -> Iterator[Step]:
    """Yield the answer to a prompt's tokens as it comes; temperature 0 takes the likeliest token each time."""
    if seed is not None:
        mx.random.seed(seed)
    answer: Any = library.stream_generate(
        network.model,
        tokenizer,
        tokens,
        max_tokens=max_tokens,
        sampler=sampling.make_sampler(temp=temperature),
    )
    for part in answer:
        yield Step(part.text, part.prompt_tokens, part.generation_tokens, part.generation_tps)


def _sentence(error: BaseException) -> str:
    """Return the first line of what an error of a library says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
