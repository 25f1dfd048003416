"""The benchmarks' command lines: what they print and record. What they measure is not tested."""

import json

import pytest

from benchmarks import step, training
from sae_lib import records

TINY = ["--d", "8", "--width", "64", "--batch", "16", "--l0", "4", "--rounds", "1"]


def test_step_prints_json_rows_and_records_the_same(tmp_path, capsys):
    record = tmp_path / "step.json"
    step.main([*TINY, "--only", "sae_lib", "--json", "--record", str(record)])
    rows = json.loads(capsys.readouterr().out)
    names = [row["name"] for row in rows]
    assert names[0] == "encoder product"
    assert {"sae_lib GBA", "sae_lib GBA, dense", "sae_lib TopK"} <= set(names)
    assert all(row["ms"] > 0 for row in rows)
    assert rows[1]["x_gemm"] == pytest.approx(rows[1]["ms"] / rows[0]["ms"])
    assert records.read(record).rows == rows


def test_products_in_bfloat16_are_refused_on_a_cpu():
    with pytest.raises(SystemExit, match="--bf16 with --device cpu"):
        step.main([*TINY, "--bf16"])


def test_training_compares_itself_with_its_steps(capsys):
    sizes = ["--d", "8", "--width", "64", "--batch", "16", "--l0", "4", "--rows", "200", "--turns", "1"]
    training.main([*sizes, "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["BA", "TopK"]
    assert all(row["of_bare"] == pytest.approx(row["bare_ms"] / row["train_ms"]) for row in rows)
