import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.inference.conftest import Tensors, WriteSafetensors

ROOT = Path(__file__).resolve().parent.parent.parent
pytest.importorskip("mlx_lm")
pytestmark = pytest.mark.usefixtures("cache_home")


@contextmanager
def rank(**changes: str) -> Generator[subprocess.Popen[str]]:
    """A rank, waiting for its job."""
    with subprocess.Popen(
        [sys.executable, "-m", "tbshare.inference.rank"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **changes},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def send(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def job(model: Path, **changes: object) -> str:
    asked = {"model": str(model), "prompt": "Hello", "max_tokens": 8, "temperature": 0.0, "seed": 1, "chat": True}
    return json.dumps({**asked, **changes})


def run(line: str, **changes: str) -> tuple[int, list[dict[str, Any]]]:
    """Run one job to its end; the exit status and the events."""
    with rank(**changes) as process:
        send(process, line)
        assert process.stdout is not None
        events = [json.loads(event) for event in process.stdout]
        return process.wait(60), events


def error(line: str, **changes: str) -> tuple[str, str]:
    status, events = run(line, **changes)
    assert status == 1
    assert [event["event"] for event in events][-1:] == ["error"]
    assert events[-1].keys() == {"event", "message", "cure"}
    return events[-1]["message"], events[-1]["cure"]


def text(events: list[dict[str, Any]]) -> str:
    return "".join(event["text"] for event in events if event["event"] == "text")


def test_answers_from_mapped_weights(tiny_model: Path, tiny_tensors: Tensors, module: object) -> None:
    status, events = run(job(tiny_model))
    assert status == 0
    ready, done = events[0], events[-1]
    assert ready["event"] == "ready"
    assert ready["mapped_bytes"] == sum(len(content) for _, _, content in tiny_tensors.values())
    assert (ready["copied_bytes"], ready["copied_tensors"], ready["loaded_bytes"]) == (0, 0, 0)
    assert ready["note"] == ""
    assert 0 < ready["seconds"] < 60
    assert done["event"] == "done"
    assert done["prompt_tokens"] == len("[Hello]")
    assert 0 < done["tokens"] <= 8
    assert done["tokens_per_second"] > 0
    assert done["anonymous_bytes"] > 0
    assert text(events)


def test_without_the_map_it_reads_says_so_and_answers_the_same(
    tiny_model: Path, tmp_path: Path, cache_home: Path, module: object
) -> None:
    mapped = run(job(tiny_model))[1]
    if not list(cache_home.glob("tbshare/map/*/_map*.so")):
        pytest.skip("the native map came with the installation")
    empty = tmp_path / "empty"
    status, events = run(job(tiny_model), XDG_CACHE_HOME=str(empty), PATH="/nonexistent", CXX="")
    assert status == 0
    assert events[0]["mapped_bytes"] == 0
    assert events[0]["loaded_bytes"] == mapped[0]["mapped_bytes"]
    assert events[0]["note"].startswith("the weights are read, not mapped: there is no C++ compiler")
    assert text(events) == text(mapped)


def test_misaligned_weights_answer_the_same(
    tiny_model: Path, tiny_tensors: Tensors, write_safetensors: WriteSafetensors, module: object
) -> None:
    aligned = run(job(tiny_model))[1]
    write_safetensors(tiny_model / "model.safetensors", tiny_tensors, skew=1)
    events = run(job(tiny_model))[1]
    assert events[0]["copied_tensors"] == len(tiny_tensors)
    assert events[0]["mapped_bytes"] == 0
    assert "were copied" in events[0]["note"]
    assert text(events) == text(aligned)


def test_what_mlx_lm_transforms_is_counted_as_copied(
    tiny_model: Path, tiny_tensors: Tensors, write_safetensors: WriteSafetensors, module: object
) -> None:
    """A mixture of experts whose experts come one by one: mlx-lm stacks them into new arrays."""
    config = json.loads((tiny_model / "config.json").read_text())
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "rope_theta": 1e4}
    config |= {**experts, "model_type": "mixtral"}
    (tiny_model / "config.json").write_text(json.dumps(config))
    tensors = {name: part for name, part in tiny_tensors.items() if ".mlp." not in name}
    names = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
    for name, part in tiny_tensors.items():
        if ".mlp." in name:
            layer, kind = name.split(".mlp.")[0], names[name.split(".")[-2]]
            tensors |= {f"{layer}.block_sparse_moe.experts.{at}.{kind}.weight": part for at in (0, 1)}
    for number in range(2):
        gate = f"model.layers.{number}.block_sparse_moe.gate.weight"
        tensors[gate] = ("F32", [2, 64], os.urandom(512).replace(b"\x7f", b"\x3f").replace(b"\xff", b"\xbf"))
    write_safetensors(tiny_model / "model.safetensors", tensors)
    status, events = run(job(tiny_model))
    assert status == 0, events
    stacked = 2 * sum(len(part[2]) for name, part in tiny_tensors.items() if ".mlp." in name)
    assert events[0]["copied_bytes"] == stacked
    assert events[0]["copied_tensors"] == 6
    assert "6 parameters are made by mlx-lm" in events[0]["note"]


def test_seed_repeats_a_warm_answer(tiny_model: Path) -> None:
    first, again = (text(run(job(tiny_model, temperature=1.0, seed=5))[1]) for _ in range(2))
    other = text(run(job(tiny_model, temperature=1.0, seed=6))[1])
    assert first == again != other


def test_plain_prompt_when_chat_is_not_wanted(tiny_model: Path) -> None:
    _, events = run(job(tiny_model, chat=False, system="S"))
    assert events[-1]["prompt_tokens"] == len("S\n\nHello")


def test_template_that_refuses(tiny_model: Path) -> None:
    message, _ = error(job(tiny_model, system="be brief"))
    assert message == "the model's chat template refuses the prompt: no system"


def test_empty_and_long_prompts(tiny_model: Path) -> None:
    assert error(job(tiny_model, prompt="", chat=False))[0] == "the prompt is empty"
    long = error(job(tiny_model, prompt="x" * 256, chat=False))[0]
    assert long == "the prompt has 256 tokens, and the model takes 256"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "the job cannot be read"),
        ("[]", "the job cannot be read"),
        ("{}", "missing required field `model`"),
        ('{"model": "x", "prompt": "y", "max_tokens": 0}', "max_tokens"),
        ('{"model": "x", "prompt": "y", "nonsense": 1}', "nonsense"),
        ('{"model": "/nonexistent", "prompt": "y"}', "/nonexistent is not a directory with a model in it"),
    ],
)
def test_job_that_makes_no_sense(line: str, reason: str) -> None:
    assert reason in error(line)[0]


def test_no_job_at_all() -> None:
    with rank() as process:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 1
    assert json.loads(out)["message"] == "no job came: one line of JSON on standard input"


def test_refused_model_never_reaches_mlx(tiny_model: Path) -> None:
    (tiny_model / "model.safetensors").write_bytes(b"\xff" * 100)
    message, _ = error(job(tiny_model), PYTHONPATH=f"{broken(tiny_model, 'mlx')}{os.pathsep}{ROOT}")
    assert message.startswith("model.safetensors is damaged or not whole: ")


def broken(directory: Path, package: str) -> Path:
    """A directory to put first on the path, in which `package` cannot be imported."""
    place = directory.parent / f"without-{package}"
    place.mkdir()
    (place / package).mkdir()
    (place / package / "__init__.py").write_text(f"raise ImportError('no {package}')")
    return place


@pytest.mark.parametrize("package", ["mlx", "mlx_lm"])
def test_missing_packages_name_the_extra(tiny_model: Path, package: str) -> None:
    message, cure = error(job(tiny_model), PYTHONPATH=f"{broken(tiny_model, package)}{os.pathsep}{ROOT}")
    assert "not installed" in message
    assert cure == "pip install 'tbshare[run]'"


def test_no_parameter_stays_random(
    tiny_model: Path, tiny_tensors: Tensors, write_safetensors: WriteSafetensors
) -> None:
    whole = dict(tiny_tensors)
    del whole["model.norm.weight"]
    write_safetensors(tiny_model / "model.safetensors", whole)
    message, _ = error(job(tiny_model))
    assert message.startswith("mlx-lm cannot load this model: Missing 1 parameters")
    whole |= {"model.norm.weight": ("F32", [32], bytes(128))}
    write_safetensors(tiny_model / "model.safetensors", whole)
    assert "shape" in error(job(tiny_model))[0]


def test_kind_of_model_that_mlx_lm_does_not_know(tiny_model: Path) -> None:
    (tiny_model / "config.json").write_text('{"model_type": "no_such_kind"}')
    assert "no_such_kind" in error(job(tiny_model))[0]


def test_tokenizer_that_needs_code_is_refused_and_the_code_not_run(tiny_model: Path) -> None:
    settings = json.loads((tiny_model / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (tiny_model / "tokenizer_config.json").write_text(json.dumps(settings))
    (tiny_model / "evil.py").write_text(f"open({str(tiny_model / 'ran')!r}, 'w')\nclass Evil: pass\n")
    run(job(tiny_model))
    assert not (tiny_model / "ran").exists()


def test_missing_tokenizer(tiny_model: Path) -> None:
    (tiny_model / "tokenizer.json").unlink()
    (tiny_model / "tokenizer_config.json").unlink()
    assert error(job(tiny_model))[0].startswith("the model's tokenizer cannot be loaded: ")


def until(process: subprocess.Popen[str], event: str) -> None:
    """Read events until this one."""
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == event:
            return
    raise AssertionError(f"no {event}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_when_told_to(tiny_model: Path, number: signal.Signals) -> None:
    with rank() as process:
        send(process, job(tiny_model, max_tokens=1_000_000))
        until(process, "text")
        process.send_signal(number)
        assert process.wait(10) == -number
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_ends_when_its_starter_goes_away(tiny_model: Path) -> None:
    with rank() as process:
        send(process, job(tiny_model, max_tokens=1_000_000))
        until(process, "text")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 1


def test_ends_when_nobody_reads(tiny_model: Path) -> None:
    with rank() as process:
        send(process, job(tiny_model, max_tokens=1_000_000))
        until(process, "text")
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(30) == 1


def test_file_that_shrinks_under_the_run_is_one_error_line(tiny_model: Path, module: object) -> None:
    with rank() as process:
        send(process, job(tiny_model, max_tokens=1_000_000))
        until(process, "text")
        os.truncate(tiny_model / "model.safetensors", 4096)
        assert process.stdout is not None
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait(10) == 1
    assert rest[-1]["event"] == "error"
    assert rest[-1]["message"].startswith("the weights can no longer be read")


@pytest.mark.model
def test_real_model_answers_from_mapped_weights(tmp_path: Path, module: object) -> None:
    cache = Path(os.environ.get("TBSHARE_TEST_CACHE", tmp_path / "cache"))
    command = [sys.executable, str(ROOT / "bench" / "smollm.py"), str(tmp_path / "smollm"), "--cache", str(cache)]
    subprocess.run([*command, "--shards", "2"], check=True, capture_output=True, timeout=100)
    status, events = run(job(tmp_path / "smollm", prompt="What is the capital of France?", max_tokens=16))
    assert status == 0
    assert "Paris" in text(events)
    ready = events[0]
    assert ready["mapped_bytes"] == 538_060_032
    assert ready["copied_bytes"] == ready["loaded_bytes"] == 0
    assert events[-1]["anonymous_bytes"] < 0.4 * ready["mapped_bytes"]
