"""LSTMs in their ONNX form, computed by onnxruntime, against torch's own."""

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from speakerkit.nn.lstm import lstm_outputs


def run_node(kind, inputs, attributes, *, dtype, shape):
    """What ``torch.onnx.ops.symbolic`` stands for, as a graph of this one node."""
    names = ["X", "W", "R", "B"]
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["Y"], **attributes)],
        "node",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, x.shape)
            for name, x in zip(names, inputs, strict=True)
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {name: x.detach().numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, feeds)[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # slower, but right
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("proj_size", [0, 3])
def test_onnx_form_is_the_lstm(monkeypatch, bidirectional, batch_first, proj_size):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(4, 5, num_layers=2, batch_first=batch_first, bidirectional=bidirectional, proj_size=proj_size)
    x = torch.randn(7, 6, 4)
    with torch.no_grad():
        expected = lstm_outputs(lstm, x)
        assert torch.equal(expected, lstm(x)[0])
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        monkeypatch.setattr(torch.onnx.ops, "symbolic", run_node)
        assert torch.allclose(lstm_outputs(lstm, x), expected, atol=1e-6)
