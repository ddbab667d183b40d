"""LSTMs that can be exported with a free length."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

warnings.filterwarnings("ignore", message="LSTM with projections is not supported with oneDNN")  # slower, but right


def lstm_outputs(lstm: nn.LSTM, x: Tensor) -> Tensor:
    """Outputs of the last layer from a zero state, ``lstm(x)[0]``; in an ONNX graph the LSTM that ONNX has."""
    return _onnx_lstm(lstm, x) if torch.onnx.is_in_onnx_export() else lstm(x)[0]


def _onnx_lstm(lstm: nn.LSTM, x: Tensor) -> Tensor:
    # The exporter would unroll it over the example's frames. ONNX knows no projection, but it is linear: with W_hh W_hr
    # for recurrent weights and W_hr applied to the output, a projected LSTM is a plain one.
    x = x.transpose(0, 1) if lstm.batch_first else x  # (frames, batch, features)
    ways = ("", "_reverse") if lstm.bidirectional else ("",)
    for layer in range(lstm.num_layers):
        input_weights, weights, biases, projections = [], [], [], []
        for way in ways:
            w_ih, w_hh, *b, w_hr = _parameters(lstm, f"_l{layer}{way}")
            input_weights.append(_onnx_gates(w_ih))
            weights.append(_onnx_gates(w_hh @ w_hr))
            biases.append(torch.cat([_onnx_gates(each) for each in b]))
            projections.append(w_hr)
        hidden = torch.onnx.ops.symbolic(
            "LSTM",
            (x, torch.stack(input_weights), torch.stack(weights), torch.stack(biases)),
            {"hidden_size": lstm.hidden_size, "direction": "bidirectional" if lstm.bidirectional else "forward"},
            dtype=x.dtype,
            shape=(x.shape[0], len(ways), x.shape[1], lstm.hidden_size),
        )
        if lstm.proj_size:
            hidden = hidden @ torch.stack(projections).mT.unsqueeze(0)
        x = hidden.transpose(1, 2).flatten(2)
    return x.transpose(0, 1) if lstm.batch_first else x


def _parameters(lstm: nn.LSTM, suffix: str) -> list[Tensor]:
    """W_ih, W_hh, b_ih, b_hh and W_hr of a layer's one way; the latter is the identity without projections."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    parameters = [getattr(lstm, name + suffix) for name in names]
    identity = torch.eye(lstm.hidden_size, dtype=parameters[0].dtype)
    return [*parameters, getattr(lstm, f"weight_hr{suffix}") if lstm.proj_size else identity]


def _onnx_gates(x: Tensor) -> Tensor:
    """Rows of the gates input, forget, cell, output to those of input, output, forget, cell."""
    gates = x.unflatten(0, (4, -1))
    return torch.cat((gates[:1], gates[3:], gates[1:3])).flatten(0, 1)
