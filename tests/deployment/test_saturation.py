"""Which files and processors 8-bit products saturate in."""

import numpy as np
import pytest

from xtclib.deployment import saturation


@pytest.mark.parametrize(
    "machine, flags, exact",
    [
        ("x86_64", "flags\t: fpu avx2 avx512bw", False),
        ("x86_64", "flags\t: fpu avx2 avx_vnni", True),
        ("x86_64", "flags\t: avx512_vnni", True),
        ("x86_64", "processor\t: 0", None),
        ("arm64", "", True),
    ],
)
def test_processors_that_add_exactly(monkeypatch, tmp_path, machine, flags, exact):
    (tmp_path / "cpuinfo").write_text(f"model name\t: any\n{flags}\nbugs\t: none\n")
    monkeypatch.setattr(saturation, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(saturation.platform, "machine", lambda: machine)
    assert saturation.adds_exactly() is exact
    (tmp_path / "cpuinfo").unlink()
    assert saturation.adds_exactly() is (None if machine == "x86_64" else True)


@pytest.mark.parametrize("table, largest", [([-1, 1], 1), ([-64, 63], 64), ([-128, 127], 128)])
def test_the_largest_weight_is_that_of_the_table_which_opens_it(tmp_path, table, largest):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    stored = {"table": np.array(table, np.int8), "bytes": np.zeros((4, 3), np.int32),
              "beside": np.full(3, -128, np.int8)}  # fmt: skip
    nodes = [helper.make_node("Gather", ["table", "bytes"], ["weight"]),
             helper.make_node("MatMulInteger", ["x", "weight"], ["y"])]  # fmt: skip
    shown = [helper.make_tensor_value_info(name, kind, None)
             for name, kind in (("x", TensorProto.UINT8), ("y", TensorProto.INT32))]  # fmt: skip
    weights = [numpy_helper.from_array(value, name) for name, value in stored.items()]
    graph = helper.make_graph(nodes, "small", shown[:1], shown[1:], weights)
    onnx.save(helper.make_model(graph), tmp_path / "a.onnx")
    assert saturation.largest_weight(tmp_path / "a.onnx") == largest
    assert 2 * 255 * saturation.EXACT <= 2**15 - 1 < 2 * 255 * (saturation.EXACT + 1)
