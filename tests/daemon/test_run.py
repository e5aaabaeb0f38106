"""run through the daemon: a model that is whole answers; one that is not is refused before MLX sees it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tbshare.errors import Interrupted, ModelRefused, ObjectMissing, RefUnknown
from tbshare.wire.local import RunParams
from tbshare.wire.report import AnyEvent, Ready, Started, Text
from tests.inference.conftest import tiny_model, tiny_tensors
from tests.nodes import MIB, Node, random_model, running, until

__all__ = ["tiny_model", "tiny_tensors"]
Make = Callable[..., Node]


def test_a_pushed_model_answers_on_another_node(make_node: Make, tiny_model: Path) -> None:
    pytest.importorskip("mlx_lm")
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        ada.push(tiny_model, name="tiny")
        events: list[AnyEvent] = []
        with grace.client() as client:
            report = client.run(RunParams("tiny", "hello", max_tokens=5), events.append)
        assert 0 < report.tokens <= 5
        assert any(isinstance(event, Text) for event in events)
        (ready,) = [event for event in events if isinstance(event, Ready)]
        assert ready.mapped_bytes + ready.copied_bytes > 0
        assert grace.status().processes == 0

        def stop(event: AnyEvent) -> None:
            if isinstance(event, Text):
                with grace.client() as other:
                    (line,) = [line for line in other.processes().processes if line.kind == "run"]
                    other.stop(line.id)

        with grace.client() as client, pytest.raises(Interrupted):
            client.run(RunParams("tiny", "hello", max_tokens=100_000), stop)
        until("the run has ended", lambda: grace.status().processes == 0)
        with grace.client() as client:
            assert client.evict("tiny").bytes_freed > 0, "the lease went with the run"


def test_what_is_refused_before_mlx_sees_it(make_node: Make, tmp_path: Path) -> None:
    ada, grace = make_node("ada"), make_node("grace")
    with running(ada, grace):
        ada.push(random_model(tmp_path / "m", 1, MIB), name="no-model")
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
        torn = random_model(tmp_path / "torn", 2, config='{"model_type": "llama"}')
        (torn / "model.safetensors.index.json").write_text(json.dumps(index))
        (torn / "model-00001-of-00002.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
        ada.push(torn, name="torn")
        ada.push(random_model(tmp_path / "n", 3, MIB), name="elsewhere", to=["grace"])
        started: list[AnyEvent] = []
        with ada.client() as client:
            client.evict("elsewhere")
            with pytest.raises(ModelRefused):
                client.run(RunParams("no-model", "x"), started.append)
            with pytest.raises(ModelRefused, match="model-00002-of-00002"):
                client.run(RunParams("torn", "x"), started.append)
            with pytest.raises(ObjectMissing, match=r"0\.00 of 0\.00 GB|not complete on this node") as missing:
                client.run(RunParams("elsewhere", "x"), started.append)
            assert missing.value.cure == "tbshare pull elsewhere@1"
            with pytest.raises(RefUnknown):
                client.run(RunParams("nothing", "x"), started.append)
        assert not [event for event in started if isinstance(event, Started | Ready)]
