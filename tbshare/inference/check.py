"""Refuses a model directory that is incomplete or does not hold together, before MLX sees any of it.

mlx-lm keeps random numbers for weights that are missing, takes any of two tensors of one name, and reads what it
finds; so the files are checked against each other here, by their headers alone: nothing of the weights is read,
no pickle is opened, and no code that came with the model runs. MLX is not imported.
"""

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tbshare.content import safetensors
from tbshare.content.weights import Header
from tbshare.errors import HeaderInvalid, ModelRefused

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
JSON_BYTES_MAX = 64 * 1024 * 1024  # the index of 100,000 tensors is 10 MB
DIMENSION_MAX = (1 << 31) - 1  # MLX counts a dimension in 32 bits
NAMED_MAX = 3  # names in one sentence; the others are counted

# What MLX has arrays for; packed 4- and 6-bit floats and 64-bit floats are not among them.
BYTE_DTYPES = ("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0")
DTYPES = frozenset([*BYTE_DTYPES, "U16", "I16", "F16", "BF16", "U32", "I32", "F32", "U64", "I64", "C64"])
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{2,9})-of-(?P<count>\d{2,9})\.safetensors")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a directory's headers say: the files mlx-lm will load, and their sizes.

    `total_bytes` are the files' bytes, headers included; `tensor_bytes` those of the tensors alone.
    """

    model_type: str
    files: tuple[Path, ...]
    total_bytes: int
    tensor_bytes: int
    tensors: int


def check(directory: Path) -> ModelFacts:
    """Return what there is to load in a model directory; ModelRefused, with the reason, if it is not whole."""
    if not directory.is_dir():
        raise ModelRefused(f"{directory} is not a directory with a model in it")
    model_type = _model_type(directory)
    weight_map = _weight_map(directory)
    files = _weight_files(directory, weight_map)
    _no_shard_missing(files)
    headers = {path.name: _header(path) for path in files}
    _nothing_twice(headers)
    _index_holds(weight_map, headers)
    _mlx_can(headers)
    tensors = [tensor for header in headers.values() for tensor in header.tensors]
    return ModelFacts(
        model_type=model_type,
        files=tuple(files),
        total_bytes=sum(path.stat().st_size for path in files),
        tensor_bytes=sum(tensor.end - tensor.start for tensor in tensors),
        tensors=len(tensors),
    )


def _json_object(path: Path) -> dict[str, object]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ModelRefused(f"{path.name} is not a regular file")
        if path.stat().st_size > JSON_BYTES_MAX:
            raise ModelRefused(f"{path.name} has over {JSON_BYTES_MAX} bytes")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, object])
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ModelRefused(f"{path.name} is not a JSON object: {error}") from error


def _model_type(directory: Path) -> str:
    path = directory / CONFIG
    if not os.path.lexists(path):
        raise ModelRefused(f"there is no {CONFIG}, so nothing says what kind of model this is")
    config = _json_object(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise ModelRefused(f"{CONFIG} has no model_type, so nothing says what kind of model this is")
    if config.get("model_file") is not None:
        raise ModelRefused(
            f"{CONFIG} asks to run code that came with the model ({config['model_file']!r}), which is not done"
        )
    return model_type


def _weight_map(directory: Path) -> dict[str, str]:
    """Return the index's tensor name -> file name; empty when there is no index."""
    path = directory / INDEX
    if not os.path.lexists(path):
        return {}
    try:
        weight_map = msgspec.convert(_json_object(path).get("weight_map"), dict[str, str])
    except msgspec.ValidationError as error:
        raise ModelRefused(f"{INDEX} does not map tensors to files: {error}") from error
    for name in weight_map.values():
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ModelRefused(f"{INDEX} names {name!r}, which is not a file of this directory")
    return weight_map


def _weight_files(directory: Path, weight_map: dict[str, str]) -> list[Path]:
    """Return the files that mlx-lm loads, after making sure that they are the ones meant."""
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        raise ModelRefused(f"{directory} cannot be read: {error.strerror or error}") from error
    missing = sorted(set(weight_map.values()) - set(names))
    if missing:
        raise ModelRefused(f"{_some(missing)} {_is(missing)} named in {INDEX} and not here")
    loaded = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    ignored = sorted(set(weight_map.values()) - set(loaded))
    if ignored:
        raise ModelRefused(f"{INDEX} names {_some(ignored)}; mlx-lm loads files called model*.safetensors only")
    if not loaded:
        others = [name for name in names if name.endswith(".safetensors")]
        pickles = [name for name in names if name.endswith(PICKLES)]
        if others:
            raise ModelRefused(f"{_some(others)}: mlx-lm loads files called model*.safetensors only")
        if pickles:
            raise ModelRefused(
                f"the weights are pickles ({_some(pickles)}), which can hold code and are never opened",
                cure="mlx_lm.convert --hf-path MODEL --mlx-path OUT",
            )
        raise ModelRefused("there are no weights (no .safetensors file) in this directory")
    return [directory / name for name in loaded]


def _no_shard_missing(files: list[Path]) -> None:
    """Refuse `model-00001-of-00003` without its 2 and 3, and shards of two different divisions."""
    numbers: dict[tuple[str, str], set[int]] = {}
    for path in files:
        shard = _SHARD.fullmatch(path.name)
        if shard:
            numbers.setdefault((shard["stem"], shard["count"]), set()).add(int(shard["number"]))
    for (stem, count), present in numbers.items():
        wanted = int(count)
        absent = wanted - sum(1 for number in present if 1 <= number <= wanted)
        if absent:
            first = next(number for number in range(1, wanted + 1) if number not in present)
            name = f"{stem}-{first:0{len(count)}d}-of-{count}.safetensors"
            others = f" and {absent - 1} more" if absent > 1 else ""
            raise ModelRefused(f"{name}{others} of the {wanted} files of the weights are missing")


def _header(path: Path) -> Header:
    try:
        # Without O_NONBLOCK the open of a FIFO waits for a writer that never comes.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ModelRefused(f"{path.name} is not a regular file")
            first = file.read(safetensors.LENGTH_BYTES)
            rest = safetensors.header_length(first, status.st_size) - len(first)
            return safetensors.parse(first + file.read(rest), status.st_size)
    except HeaderInvalid as error:
        raise ModelRefused(f"{path.name} is damaged or not whole: {error}") from error
    except OSError as error:
        raise ModelRefused(f"{path.name} cannot be read: {error.strerror or error}") from error


def _nothing_twice(headers: dict[str, Header]) -> None:
    where: dict[str, str] = {}
    for name, header in headers.items():
        for tensor in header.tensors:
            if tensor.name in where:
                raise ModelRefused(f"tensor {tensor.name!r} is in {where[tensor.name]} and in {name}")
            where[tensor.name] = name


def _index_holds(weight_map: dict[str, str], headers: dict[str, Header]) -> None:
    names = {file: {tensor.name for tensor in header.tensors} for file, header in headers.items()}
    absent = sorted(tensor for tensor, file in weight_map.items() if tensor not in names[file])
    if absent:
        file = weight_map[absent[0]]
        raise ModelRefused(f"{INDEX} says that {file} holds {_some(absent)}, and it does not")


def _mlx_can(headers: dict[str, Header]) -> None:
    for name, header in headers.items():
        for tensor in header.tensors:
            if tensor.dtype not in DTYPES:
                raise ModelRefused(f"{name}: tensor {tensor.name!r} is {tensor.dtype}; MLX has no such array")
            if any(length > DIMENSION_MAX for length in tensor.shape):
                raise ModelRefused(f"{name}: tensor {tensor.name!r} has a dimension above {DIMENSION_MAX}")
    if not any(header.tensors for header in headers.values()):
        raise ModelRefused("the weight files hold no tensors")


def _some(names: Iterable[str]) -> str:
    every = list(names)
    more = f" and {len(every) - NAMED_MAX} more" if len(every) > NAMED_MAX else ""
    return ", ".join(every[:NAMED_MAX]) + more


def _is(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"
