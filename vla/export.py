"""A checkpoint's chunk as an ONNX file: what acts needs neither torch nor this code's model.

    export_chunk('out/demo', 'out/demo/chunk.onnx', steps=1, tokens=64)
    predict = load_chunk('out/demo/chunk.onnx')       # needs onnxruntime
    rows = predict(obs)                               # (H, C) absolute commands

All shapes are fixed: one observation, prompts padded to `tokens`. Inputs are those of a batch of
one (the table on top of data.py: images, state, tool, input_ids, user_len, total_len), the output
is `actions` (1, H, A), normalised, from noise that is zero. What turns an observation into inputs
and the output into commands is in the file's metadata under `processor`, see Processor.from_dict.
"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import VLA
from vla.policy import command_in_force, load_predictor
from vla.processor import Batch, Processor

INPUTS = ('images', 'state', 'tool', 'input_ids', 'user_len', 'total_len')
PIP = 'pip install onnx onnxscript onnxruntime'


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise ImportError(f'ONNX needs {fault.name}: {PIP}') from None


def inputs_of(processor: Processor, obs: dict[str, Any], tokens: int) -> Batch:
    """What the file takes for an observation, padded to so many tokens.

    Raises:
        ValueError: The instruction is longer.
    """
    batch = processor.encode([obs])
    ids = batch['input_ids']
    if int(batch['user_len'][0]) > tokens:
        raise ValueError(
            f'instruction {obs["instruction"]!r}: its prompt has {int(batch["user_len"][0])} '
            f'tokens, the exported chunk {tokens}: --export_tokens when exporting'
        )
    ids = F.pad(ids[:, :tokens], (0, max(0, tokens - ids.shape[1])), value=_pad_id(processor))
    batch['input_ids'] = ids
    return {name: batch[name] for name in INPUTS if name in batch}


def _pad_id(processor: Processor) -> int:
    return processor.token_id['<|pad|>']


class Chunk(nn.Module):
    """The part that is exported: the tensors of a batch in, the normalised chunk out."""

    def __init__(self, net: VLA, names: list[str], steps: int):
        super().__init__()
        self.net = net
        self.names = names
        self.steps = steps

    def forward(self, *tensors: Tensor) -> Tensor:
        """See VLA.act; the chunk (1, H, A) from zero noise."""
        return self.net.act(dict(zip(self.names, tensors)), self.steps)


def export_chunk(folder: str | Path, path: str | Path, steps: int = 1, tokens: int = 64) -> float:
    """Write the chunk of a checkpoint as an ONNX file and compare it with torch's.

    Args:
        folder: A checkpoint of train.py.
        path: Of the file.
        steps: Denoising steps.
        tokens: Length of prompts, which are padded to it.

    Returns:
        The largest difference between the normalised chunks of both, on a made-up observation.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
    """
    onnx = _need('onnx')
    for module in ('onnxscript', 'onnxruntime'):
        _need(module)
    predictor = load_predictor(folder, steps=steps, device='cpu')
    processor = predictor.processor
    batch = inputs_of(processor, made_up(processor), tokens)
    chunk = Chunk(predictor.net, list(batch), steps).eval()
    with torch.no_grad():
        expected = chunk(*batch.values()).numpy()
        program = torch.onnx.export(
            chunk,
            tuple(batch.values()),
            input_names=list(batch),
            output_names=['actions'],
            dynamo=True,
            verbose=False,
            custom_translation_table={torch.ops.aten.nonzero_static.default: _nonzero_static()},
        )
    assert program is not None, 'the exporter that traces a graph returns it'
    exported = program.model_proto
    facts = {
        'processor': json.dumps(processor.to_dict()),
        'tokens': str(tokens),
        'steps': str(steps),
        'checkpoint': json.dumps({key: predictor.meta[key] for key in ('step', 'git_rev')}),
    }
    onnx.helper.set_model_props(exported, facts)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(exported, str(path))
    got = _session(path).run(['actions'], {name: value.numpy() for name, value in batch.items()})
    return float(np.abs(got[0] - expected).max())


def made_up(processor: Processor, seed: int = 0) -> dict[str, Any]:
    """An observation of random pictures and a state near the mean, to trace and compare with."""
    rng = np.random.default_rng(seed)
    size = processor.image_size
    state = np.zeros(len(processor.state_names), np.float32)
    state[processor.state_index] = processor.stats['state_mean']
    if processor.hands is not None:
        state[processor.hands[:, 3]] = 1  # a quaternion that turns nothing
    command = np.zeros(len(processor.action_names), np.float32)
    obs = {'state': state, 'instruction': 'put it', f'{processor.action_space}_command': command}
    for camera in processor.cameras:
        obs[f'image/{camera}'] = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return obs


def _nonzero_static() -> Callable:
    """How ONNX says torch's nonzero_static: where the number of places is known."""
    _need('onnxscript')
    from onnxscript import opset18 as op

    def nonzero_static(x, size: int, fill_value: int = -1):  # type: ignore[no-untyped-def]
        return op.Reshape(op.Transpose(op.NonZero(x)), op.Constant(value_ints=[size, 1]))

    return nonzero_static


def _session(path: str | Path) -> Any:
    """An inference session on one thread of the CPU, as sim_rollout.py gives each worker one."""
    onnxruntime = _need('onnxruntime')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def load_chunk(path: str | Path) -> Callable[[dict[str, Any]], np.ndarray]:
    """Load a file of `export_chunk`; returns a function from an observation to (H, C) commands."""
    session = _session(path)
    facts = session.get_modelmeta().custom_metadata_map
    processor = Processor.from_dict(json.loads(facts['processor']))
    tokens = int(facts['tokens'])

    def predict(obs: dict[str, Any]) -> np.ndarray:
        batch = inputs_of(processor, obs, tokens)
        feed = {name: value.numpy() for name, value in batch.items()}
        (chunk,) = session.run(['actions'], feed)
        command = command_in_force(obs, processor.action_space)[None]
        return processor.decode_actions(chunk, command)[0]

    return predict
