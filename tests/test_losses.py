"""Route losses as data."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from duoviz.cli import app
from duoviz.study import Study, losses

ASKED = ["landscape", "--source", "shipped-code", "--documents", "2", "--length", "6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("losses") / "x"
    done = CliRunner().invoke(app, [*ASKED, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "10 positions, each with the losses of 4,096 routes" in done.output
    return out


def test_the_losses_are_those_of_the_model(folder):
    study = Study(sources=("shipped-code",), documents=2, length=6)
    tokens, (routes, table, found) = study.tokens("shipped-code"), losses.read(folder)
    assert routes.shape == (4096, 12)
    assert set(found) == {"nll", "expected"}
    assert found["nll"].shape == (10, 4096)
    assert table["document"].tolist() == [name for name in tokens.documents for _ in range(5)]
    np.testing.assert_array_equal(table["target_id"], tokens.ids[:, 1:].ravel())
    for route, row in ((0, 3), (4095, 7), (1234, 9)):
        given = np.full((2, 5, 12), 2, np.int8)
        given[row // 5, row % 5] = routes[route]
        want = study.lm.score(tokens, given)[row // 5, row % 5]
        assert found["nll"][row, route] == pytest.approx(want, abs=1e-5)


def test_rounded_losses_are_within_half_a_step(folder, tmp_path):
    assert CliRunner().invoke(app, [*ASKED, "--step", "0.002", "--out", str(tmp_path / "x")]).exit_code == 0
    assert np.stack(pd.read_parquet(tmp_path / "x" / "part-00000.parquet")["nll"]).dtype == np.uint16
    for name, values in losses.read(tmp_path / "x")[2].items():
        assert 0.0009 < abs(values - losses.read(folder)[2][name]).max() < 0.00101
    done = CliRunner().invoke(app, [*ASKED, "--step", "0.00001", "--out", str(tmp_path / "y")])
    assert done.exit_code == 2
    assert "with steps of 1e-05 the most is 0.66" in done.output
    for step in ("nan", "-1"):
        assert CliRunner().invoke(app, [*ASKED, "--step", step, "--out", str(tmp_path / "z")]).exit_code == 2


def test_what_an_earlier_version_wrote_is_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "old")
    schema = json.loads((folder / "schema.json").read_text())
    del schema["step_nats"]
    (tmp_path / "old" / "schema.json").write_text(json.dumps(schema))
    np.testing.assert_array_equal(losses.read(tmp_path / "old")[2]["nll"], losses.read(folder)[2]["nll"])


def test_what_was_cut_off_is_finished_and_nothing_is_computed_twice(folder, tmp_path):
    first, second = (folder / f"part-0000{number}.parquet" for number in (0, 1))
    kept, want = first.stat().st_mtime_ns, pd.read_parquet(second)
    second.unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 2 parts, the first part-00001.parquet"):
        losses.read(folder)
    assert CliRunner().invoke(app, [*ASKED, "--out", str(folder)]).exit_code == 0
    assert first.stat().st_mtime_ns == kept
    again = pd.read_parquet(second)
    np.testing.assert_allclose(np.stack(again["nll"]), np.stack(want["nll"]), atol=1e-6)


def test_a_folder_of_other_losses_is_refused(folder):
    done = CliRunner().invoke(app, [*ASKED[:-1], "7", "--out", str(folder)])
    assert done.exit_code != 0
    assert "holds other losses" in done.output + str(done.exception)
    schema = json.loads((folder / "schema.json").read_text())
    assert schema["unit"] == "nats"
    assert schema["context"] == "reference:big"
