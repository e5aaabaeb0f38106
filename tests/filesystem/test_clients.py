"""Programs that people have, over `tbshare://`: each writes, reads back, and reads a part."""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tbshare.wire.local import PushParams
from tests.nodes import Node

pytestmark = pytest.mark.usefixtures("at_home")
ROWS = 200_000


def module(name: str) -> Any:
    """Import a program: not before it is needed, as some take a second, and without types, as most have none."""
    return importlib.import_module(name)


@pytest.fixture
def table_url(film: str) -> str:
    """A Parquet file of 20 row groups that pandas wrote."""
    pd = module("pandas")

    url = f"tbshare://{film}/t/rows.parquet"
    frame = pd.DataFrame({"number": np.arange(ROWS), "text": [f"row {number % 97}" for number in range(ROWS)]})
    frame.to_parquet(url, row_group_size=ROWS // 20)
    return url


def test_pandas_reads_parquet_and_csv(table_url: str, film: str) -> None:
    pd = module("pandas")

    frame = pd.read_parquet(table_url)
    assert frame["number"].sum() == ROWS * (ROWS - 1) // 2
    frame.head(1000).to_csv(f"tbshare://{film}/t/rows.csv", index=False)
    assert pd.read_csv(f"tbshare://{film}/t/rows.csv").equals(frame.head(1000))


def test_pyarrow_reads_parquet_datasets_and_maps_arrow_files(table_url: str, fs: Any, film: str) -> None:
    pa = module("pyarrow")
    ds = module("pyarrow.dataset")
    pq = module("pyarrow.parquet")

    path = table_url.removeprefix("tbshare://")
    table = pq.read_table(path, filesystem=fs, filters=[("number", "<", 10)])
    assert table["number"].to_pylist() == list(range(10))
    with fs.open(path) as file:
        assert pq.ParquetFile(file).metadata.num_row_groups == 20
    ds.write_dataset(table, f"{film}/dataset", format="parquet", filesystem=fs, partitioning=["number"])
    assert ds.dataset(f"{film}/dataset", filesystem=fs, partitioning=["number"]).count_rows() == 10
    large = pa.table({"number": np.arange(ROWS)})
    with fs.open(f"{film}/rows.arrow", "wb") as sink, pa.ipc.new_file(sink, large.schema) as writer:
        writer.write_table(large)
    with fs.open(f"{film}/rows.arrow") as source:
        before = pa.total_allocated_bytes()
        column = pa.ipc.open_file(source).read_all()["number"]
        assert column[-1].as_py() == ROWS - 1
        assert pa.total_allocated_bytes() - before < ROWS, "the column is the store's own pages"


def test_safetensors(fs: Any, film: str, ada: Node, tmp_path: Path) -> None:
    safetensors = module("safetensors.numpy")

    tensors = {"a": np.arange(300_000, dtype=np.float32), "b": np.ones((3, 5), dtype=np.int8)}
    fs.pipe_file(f"{film}/w.safetensors", safetensors.save(tensors))
    found = safetensors.load(fs.cat_file(f"{film}/w.safetensors"))
    assert all((found[name] == tensors[name]).all() for name in tensors)
    (tmp_path / "m").mkdir()
    safetensors.save_file(tensors, tmp_path / "m" / "model.safetensors")
    with ada.client() as client:
        client.push(PushParams(path=str(tmp_path / "m"), name="weights"))
    with fs.open("models/weights@1/model.safetensors") as file:
        found = safetensors.load(bytes(file.memoryview()))
    assert all((found[name] == tensors[name]).all() for name in tensors)


def test_mlx_loads_a_file_object(fs: Any, ada: Node, tmp_path: Path) -> None:
    mx: Any = pytest.importorskip("mlx.core")
    (tmp_path / "m").mkdir()
    mx.save_safetensors(str(tmp_path / "m" / "model.safetensors"), {"a": mx.arange(300_000), "b": mx.ones((3, 5))})
    with ada.client() as client:
        client.push(PushParams(path=str(tmp_path / "m"), name="mlx"))
    with fs.open("models/mlx/model.safetensors") as file:
        found = mx.load(file, format="safetensors")
        assert mx.array_equal(found["a"], mx.arange(300_000))
        assert found["b"].shape == (3, 5)


def test_zarr(film: str) -> None:
    zarr = module("zarr")

    url, values = f"tbshare://{film}/grid.zarr", np.arange(200 * 300).reshape(200, 300)
    array = zarr.create_array(url, shape=values.shape, chunks=(50, 100), dtype=values.dtype)
    array[:] = values
    again = zarr.open_array(url, mode="r")
    assert (again[60:70, 90:110] == values[60:70, 90:110]).all()
    assert (again[:] == values).all()


def test_duckdb(table_url: str, fs: Any, film: str) -> None:
    duckdb = module("duckdb")

    with duckdb.connect() as connection:
        connection.register_filesystem(fs)
        query = f"SELECT count(*), sum(number) FROM '{table_url}' WHERE text = 'row 5'"
        count, total = connection.sql(query).fetchall()[0]
        assert (count, total) == (len(range(5, ROWS, 97)), sum(range(5, ROWS, 97)))
        connection.sql(f"COPY (SELECT 42 AS answer) TO 'tbshare://{film}/out.csv' (HEADER)")
        assert connection.sql(f"SELECT answer FROM 'tbshare://{film}/*.csv'").fetchall() == [(42,)]


def test_hugging_face_datasets(table_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = module("datasets")

    streamed = datasets.load_dataset("parquet", data_files=table_url, split="train", streaming=True)
    assert next(iter(streamed))["text"] == "row 0"
    whole = datasets.load_dataset(
        "parquet", data_files=table_url, split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(whole) == ROWS
    assert os.path.isdir(tmp_path / "cache")
    target = table_url.replace("rows.parquet", "saved")
    whole.select(range(100)).save_to_disk(target)
    assert datasets.load_from_disk(target)[99]["number"] == 99
