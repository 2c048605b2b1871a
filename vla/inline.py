"""EO-1's layout of training data: rows of chunks stand inside the text, not behind it.

    loss, parts = inline.loss(net, batch)
<|action_pad|> tokens are the rows of a noisy chunk, <|action_pass|> tokens those of one that is
given clean, so that a row of text can interleave several chunks of an episode with words and
pictures (EO-1's interleaved rectifying sampling, arXiv 2508.21112). No script here makes such
batches. This is what the parity with EO-1's published code is tested on, and the door for its data.
Acting needs none of it: `VLA.act` puts the rows behind a prompt that ends with <|action_start|>.

Besides what the prefix takes, a batch lists its chunks in order of appearance:
    actions, noise   (n, H, A)
    time             (n), flow time, 1 noise .. 0 data
    action_mask      bool (n, H)
A batch of text and pictures only has n = 0.
"""

# n chunks of a batch, H horizon, A action, B batch, L tokens, D width
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vla.layout import Batch, Layout

if TYPE_CHECKING:
    from model import VLA


def layout(net: 'VLA', batch: Batch) -> Layout:
    """Layout (B, L) of text with rows in it."""
    text = net.prefix_layout(batch)
    if net.cfg.chunk_attention == 'causal':
        return text
    row = net.row_tokens(batch['input_ids'])
    row_of_chunk = (row.cumsum(1) - 1) % net.cfg.horizon
    order = torch.where(row, text.order - row_of_chunk, text.order)
    return text._replace(order=order)


def clean_rows(net: 'VLA', batch: Batch) -> Tensor:
    """Which rows are given clean, bool (n, H)."""
    ids = batch['input_ids']
    clean = ids[net.row_tokens(ids)] == net.cfg.action_pass_id  # (n * H)
    return clean.view(batch['actions'].shape[:2])


def embed(net: 'VLA', batch: Batch, eo1_compat: bool = False) -> Tensor:
    """Embeddings (B, L, D) of text, pictures, state and noisy rows; see `loss`."""
    clean = clean_rows(net, batch)
    time = batch['time'][:, None].expand(clean.shape)  # (n, H)
    true_time = time.masked_fill(clean, 0.0)
    t = true_time[..., None]
    x_t = t * batch['noise'] + (1 - t) * batch['actions']  # (n, H, A)
    rows = net.head.embed(x_t, time if eo1_compat else true_time)  # (n, H, D)
    return net.embed_prefix(batch, rows.flatten(0, 1))[0]


def loss(net: 'VLA', batch: Batch, eo1_compat: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """Flow loss of the noisy rows and text loss, as VLA.forward returns them.

    Args:
        net: a model whose action_pad_id and action_pass_id are known.
        batch: see above.
        eo1_compat: compute what EO-1's code computes: its mean is diluted by the rows that do not
            count, and clean rows are told the time that was drawn for their chunk. False: the mean
            over rows that are denoised, and clean rows have time 0.
    """
    described = layout(net, batch)
    x = embed(net, batch, eo1_compat)
    hidden, _ = net.decoder(x, described)  # (B, L, D)
    actions = batch['actions']
    rows = net.row_tokens(batch['input_ids'])
    predicted = net.head.read(hidden[rows]).view(actions.shape)
    target = net.flow_target(actions, batch['noise'])
    error = net.row_error(predicted, target)  # (n, H)
    valid = batch['action_mask'] & ~clean_rows(net, batch)
    count = valid.numel() if eo1_compat else int(valid.sum())
    flow = (error * valid).sum() / max(count, 1)
    return net.add_text_loss(flow, hidden, described.document, batch)
